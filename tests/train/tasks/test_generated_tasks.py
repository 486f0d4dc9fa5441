"""ListOps and Pathfinder: what is generated is what the rules say."""

import numpy as np
import pytest

from trimtab.errors import InputError, UnknownNameError
from trimtab.train.tasks import (
    PATHFINDER,
    TOKENS,
    PathfinderSettings,
    expression,
    generate_listops,
    generate_pathfinder,
    root_operator_accuracy,
)


def value_and_depth(tokens: list[str]) -> tuple[int, int]:
    """Evaluate an expression by recursive descent."""
    token = tokens.pop(0)
    if token.isdigit():
        return int(token), 1
    arguments, depth = [], 0
    while tokens[0] != "]":
        argument, below = value_and_depth(tokens)
        arguments.append(argument)
        depth = max(depth, below)
    tokens.pop(0)
    assert 2 <= len(arguments) <= 10
    apply = {
        "[MIN": min,
        "[MAX": max,
        "[MED": lambda a: int(np.median(a)),
        "[SM": lambda a: sum(a) % 10,
    }
    return apply[token](arguments), depth + 1


@pytest.mark.parametrize(("shortest", "longest"), [(3, 30), (50, 200), (500, 2000)])
def test_labels_are_the_values_of_the_expressions(shortest, longest):
    data = generate_listops(60, shortest=shortest, longest=longest, seed=2)
    assert data["ids"].shape == (60, longest)
    for ids, label, length, root in zip(*(data[n] for n in ("ids", "labels", "lengths", "roots"))):
        tokens = expression(ids).split()
        assert len(tokens) + 1 == length
        assert shortest < len(tokens) < longest
        assert TOKENS.index(tokens[0]) - 3 == root
        value, depth = value_and_depth(tokens)
        assert tokens == []
        assert value == label
        assert depth <= 10


def test_the_same_seed_gives_the_same_expressions():
    a, b, c = (generate_listops(20, shortest=5, longest=40, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(a["ids"], b["ids"])
    assert (a["ids"] != c["ids"]).any()


def test_the_outermost_operator_alone_scores_what_published_models_do():
    data = generate_listops(3000, seed=0)
    halves = [
        {name: array[part] for name, array in data.items()}
        for part in (slice(1500), slice(1500, None))
    ]
    assert 0.33 < root_operator_accuracy(*halves) < 0.42
    assert abs(np.mean(data["labels"] == 0) - 0.17) < 0.03


def test_impossible_lengths_are_refused():
    with pytest.raises(InputError, match="widen the bounds"):
        generate_listops(1, shortest=10, longest=11)
    with pytest.raises(InputError, match="allow deeper trees"):
        generate_listops(1, shortest=500, longest=600, max_depth=2)


def test_pathfinder_images_are_balanced_reproducible_and_marked():
    data = generate_pathfinder(120, "pathfinder32", seed=1)
    images, labels = data["images"], data["labels"]
    assert images.shape == (120, 32, 32)
    assert images.dtype == np.uint8
    assert 0.3 < labels.mean() < 0.7
    again = generate_pathfinder(120, "pathfinder32", seed=1)
    np.testing.assert_array_equal(images, again["images"])
    # Two discs of radius 1.5 and thin, half-bright lines.
    bright = (images == 255).sum((1, 2))
    assert bright.min() >= 4
    assert (images > 0).mean() > 0.1


def test_a_marked_contour_joins_the_dots_exactly_where_the_label_says():
    ndimage = pytest.importorskip("scipy.ndimage")
    # Far apart, with gaps that closing bridges: connectivity then answers the question.
    easy = PathfinderSettings(
        96,
        contour=6,
        distractors=0,
        paddle=5.0,
        thickness=2.0,
        margin=2.0,
        seed_distance=24.0,
        continuity=3.0,
        marker=4.0,
    )
    data = generate_pathfinder(60, easy, seed=0)
    right = 0
    for image, label in zip(data["images"], data["labels"]):
        closed = ndimage.binary_dilation(image > 60, iterations=3)
        parts, _ = ndimage.label(closed)
        dots, count = ndimage.label(ndimage.binary_opening(image > 200, np.ones((5, 5))))
        where = {
            int(parts[tuple(map(int, c))])
            for c in ndimage.center_of_mass(image, dots, range(1, count + 1))
        }
        right += (len(where) == 1) == bool(label)
    # Dilation also joins contours that only pass close by; chance would be 30.
    assert right >= 45


def test_wrong_pathfinder_requests_are_refused():
    assert set(PATHFINDER) == {f"pathfinder{size}" for size in (32, 64, 128, 256)}
    with pytest.raises(UnknownNameError, match="Did you mean"):
        generate_pathfinder(1, "pathfinder23")
    with pytest.raises(InputError, match="never fitted 16 pixels"):
        generate_pathfinder(1, PathfinderSettings(16, contour=40))
