"""Pathfinder: are two dots joined by one dashed contour, among contours that go elsewhere?

Geometry of Linsley et al. ("Learning long-range spatial dependencies with horizontal gated
recurrent units", 2018, appendix), in the sizes of the Long Range Arena: two target contours grow
paddle by paddle from seeds a fixed distance apart, short distractor contours fill the rest, and two
dots mark the ends of one target (label 1) or one end of each (label 0). Paddles are kept apart by
their distance, where the original compares dilated pixel masks. Images are drawn many at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trimtab.errors import InputError, unknown_name


@dataclass(frozen=True)
class PathfinderSettings:
    """The sizes of a Pathfinder task, in pixels.

    Args:
        size: side of the square image.
        contour: paddles in a target contour.
        distractor: paddles in a distractor contour.
        distractors: number of distractor contours tried.
        paddle: length of a paddle.
        thickness: of a paddle.
        margin: half the gap between neighbours, and half the distance kept from others.
        marker: radius of the dots.
        seed_distance: between the starts of the two targets.
        continuity: 1 lets contours turn by up to 90 degrees, 2 by up to 45.
        contrast: brightness of the paddles.
    """

    size: int
    contour: int = 14
    distractor: int = 4
    distractors: int = 5
    paddle: float = 2.0
    thickness: float = 0.5
    margin: float = 1.0
    marker: float = 1.5
    seed_distance: float = 7.0
    continuity: float = 1.0
    contrast: float = 1.0


PATHFINDER: dict[str, PathfinderSettings] = {
    "pathfinder32": PathfinderSettings(32),
    "pathfinder64": PathfinderSettings(
        64, distractors=5, thickness=1.0, marker=2.5, seed_distance=12, continuity=1.8
    ),
    "pathfinder128": PathfinderSettings(
        128,
        distractors=8,
        paddle=5.0,
        thickness=1.5,
        margin=2.0,
        marker=3.0,
        seed_distance=20,
        continuity=1.8,
    ),
    "pathfinder256": PathfinderSettings(
        256,
        distractors=7,
        paddle=10.0,
        thickness=2.0,
        margin=3.0,
        marker=5.0,
        seed_distance=40,
        continuity=1.8,
    ),
}

_TRIES = 8  # Candidates for each new paddle.
_PATIENCE = 6  # Attempts allowed, in paddles of both targets.
_ANGLES = np.linspace(-np.pi / 2, np.pi / 2, 181)


class _Drawing:
    """The paddles of a batch of images."""

    def __init__(self, images: int, settings: PathfinderSettings, generator: np.random.Generator):
        paddles = 2 * settings.contour + settings.distractors * settings.distractor
        self.settings, self.generator = settings, generator
        self.tail = np.zeros((images, paddles, 2), np.float32)
        self.head = np.zeros((images, paddles, 2), np.float32)
        self.angle = np.zeros((images, paddles), np.float32)
        self.used = np.zeros((images, paddles), bool)
        weights = np.cos(np.minimum(np.abs(_ANGLES) * settings.continuity, np.pi / 2)) ** 2
        self._cumulative = np.cumsum(weights) / weights.sum()

    def keep(self, rows: np.ndarray) -> None:
        """Leave only some images."""
        for name in ("tail", "head", "angle", "used"):
            setattr(self, name, getattr(self, name)[rows])

    def random_turns(self, shape: tuple[int, ...]) -> np.ndarray:
        """Angles by which contours turn, smaller ones likelier."""
        drawn = self.generator.random(shape)
        place = np.minimum(np.searchsorted(self._cumulative, drawn), len(_ANGLES) - 1)
        return _ANGLES[place].astype(np.float32)

    def seed(self, rows: np.ndarray, paddle: int, tails: np.ndarray) -> np.ndarray:
        """Start a contour at one of the candidate tails (rows, tries, 2); return who could."""
        angle = self.generator.uniform(-np.pi, np.pi, tails.shape[:2]).astype(np.float32)
        return self._place(rows, np.full(len(rows), paddle), None, tails, angle)

    def extend(self, rows: np.ndarray, paddle: np.ndarray, previous: np.ndarray) -> np.ndarray:
        """Add a paddle to each row's contour, whose last one is ``previous``; return who could."""
        margin = self.settings.margin
        angle = self.angle[rows, previous]
        pivot = self.head[rows, previous] + margin * _unit(angle)
        turned = angle[:, None] + self.random_turns((len(rows), _TRIES))
        tails = pivot[:, None] + margin * _unit(turned)
        return self._place(rows, paddle, previous, tails, turned)

    def _place(
        self,
        rows: np.ndarray,
        paddle: np.ndarray,
        ignored: np.ndarray | None,
        tails: np.ndarray,
        angles: np.ndarray,
    ) -> np.ndarray:
        """Take each row's first candidate (rows, tries, 2) that is inside and touches nothing."""
        s = self.settings
        heads = tails + s.paddle * _unit(angles)
        ends = np.stack([tails, heads], 2)
        free = ((ends >= 1.0) & (ends <= s.size - 2.0)).all((2, 3))
        there = self.used[rows]
        if ignored is not None:
            there[np.arange(len(rows)), ignored] = False
        columns = np.flatnonzero(np.any(there, 0))
        if len(columns):
            theirs = _three_points(self.tail[rows][:, columns], self.head[rows][:, columns])
            near = _squared_distances(_three_points(tails, heads), theirs)
            near = near.reshape(len(rows), 3, tails.shape[1], 3, len(columns)).min((1, 3))
            apart = 1.5 * s.margin + s.thickness / 2
            free &= ~((near < apart**2) & there[:, None, columns]).any(2)
        found, choice = np.any(free, 1), free.argmax(1)
        at = np.arange(len(rows))
        self.tail[rows, paddle] = tails[at, choice]
        self.head[rows, paddle] = heads[at, choice]
        self.angle[rows, paddle] = angles[at, choice]
        self.used[rows, paddle] = found
        return found


def _three_points(tails: np.ndarray, heads: np.ndarray) -> np.ndarray:
    return np.concatenate([tails, (tails + heads) / 2, heads], 1)


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Between all points (rows, m, 2) and (rows, n, 2), as (rows, m, n)."""
    cross = a @ b.swapaxes(1, 2)
    return (a * a).sum(-1)[:, :, None] + (b * b).sum(-1)[:, None, :] - 2.0 * cross


def generate_pathfinder(
    examples: int, task: str | PathfinderSettings = "pathfinder32", *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Draw labelled images.

    Args:
        examples: how many; half of them, at random, have label 1.
        task: a name in :data:`PATHFINDER`, or sizes of your own.
        seed: the same seed gives the same images.

    Returns:
        ``images`` uint8 (examples, size, size) and int32 ``labels``.

    Raises:
        UnknownNameError: no such task.
        InputError: contours so long that they never fit the image.
    """
    if isinstance(task, str) and task not in PATHFINDER:
        raise unknown_name("Pathfinder task", task, PATHFINDER)
    settings = PATHFINDER[task] if isinstance(task, str) else task
    generator = np.random.default_rng(seed)
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    found = rounds = 0
    while found < examples:
        batch_images, batch_labels = _draw(512, settings, generator)
        images.append(batch_images)
        labels.append(batch_labels)
        found += len(batch_labels)
        rounds += 1
        if rounds >= 20 and found == 0:
            raise InputError(
                f"Two contours of {settings.contour} paddles never fitted {settings.size} pixels; "
                "make the image larger or the contours shorter."
            )
    return {
        "images": np.concatenate(images)[:examples],
        "labels": np.concatenate(labels)[:examples],
    }


def _draw(
    count: int, settings: PathfinderSettings, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    drawing = _Drawing(count, settings, generator)
    drawing.keep(np.flatnonzero(_grow_targets(drawing)))
    for number in range(settings.distractors):
        _grow_distractor(drawing, 2 * settings.contour + number * settings.distractor)
    labels = generator.integers(0, 2, len(drawing.used)).astype(np.int32)
    last = 2 * settings.contour - 2
    end = np.where(labels[:, None] == 1, drawing.head[:, last], drawing.head[:, last + 1])
    return _render(drawing, drawing.tail[:, 0], end), labels


def _grow_targets(drawing: _Drawing) -> np.ndarray:
    """Grow both targets in turn, paddles 0, 2, 4 ... and 1, 3, 5 ...; return which images worked.

    A contour that is stuck gives up some of its last paddles and tries another way.
    """
    s, generator = drawing.settings, drawing.generator
    count, total = len(drawing.used), 2 * s.contour
    everyone = np.arange(count)
    reach = 2.0 * s.seed_distance
    low, high = min(reach, s.size / 2 - 2), max(s.size - 1 - reach, s.size / 2 + 2)
    drawing.seed(everyone, 0, generator.uniform(low, high, (count, _TRIES, 2)).astype(np.float32))
    away = generator.uniform(-np.pi, np.pi, (count, _TRIES)).astype(np.float32)
    drawing.seed(everyone, 1, drawing.tail[:, 0][:, None] + s.seed_distance * _unit(away))
    step = np.full(count, 2)
    seeded = np.all(drawing.used[:, :2], 1)
    paddles = np.arange(drawing.used.shape[1])
    for _ in range(_PATIENCE * total):
        rows = np.flatnonzero(seeded & (step < total))
        if len(rows) == 0:
            break
        found = drawing.extend(rows, step[rows], step[rows] - 2)
        step[rows[found]] += 1
        stuck = rows[~found]
        step[stuck] = np.maximum(2, step[stuck] - generator.integers(1, 9, len(stuck)))
        drawing.used[stuck] &= paddles < step[stuck, None]
    return seeded & (step == total)


def _grow_distractor(drawing: _Drawing, first: int) -> None:
    """Grow one distractor; images where it gets stuck go without."""
    s, generator = drawing.settings, drawing.generator
    everyone = np.arange(len(drawing.used))
    tails = generator.uniform(1, s.size - 2, (len(everyone), 4 * _TRIES, 2)).astype(np.float32)
    rows = everyone[drawing.seed(everyone, first, tails)]
    for paddle in range(first + 1, first + s.distractor):
        at = np.full(len(rows), paddle)
        rows = rows[drawing.extend(rows, at, at - 1)]
    unfinished = np.setdiff1d(everyone, rows)
    drawing.used[unfinished, first : first + s.distractor] = False


def _unit(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.sin(angle), np.cos(angle)], -1)


def _render(drawing: _Drawing, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Draw every paddle as a soft-edged line and both markers as discs."""
    s = drawing.settings
    count, paddles = drawing.used.shape
    border = int(np.ceil(s.paddle / 2 + s.thickness + 2))
    canvas = np.zeros((count, s.size + 2 * border, s.size + 2 * border), np.float32)
    offsets = np.arange(-border, border + 1)
    rows = np.arange(count)[:, None, None]
    for paddle in range(paddles):
        tail, head = drawing.tail[:, paddle], drawing.head[:, paddle]
        centre = np.rint((tail + head) / 2).astype(int)
        y = (centre[:, :1] + offsets)[:, :, None]
        x = (centre[:, 1:] + offsets)[:, None, :]
        gap = _distance_to_segment(y, x, tail, head)
        shade = np.clip(s.thickness / 2 + 0.5 - gap, 0.0, 1.0) * min(1.0, s.contrast)
        shade *= drawing.used[:, paddle, None, None]
        y = np.clip(y + border, 0, canvas.shape[1] - 1)
        x = np.clip(x + border, 0, canvas.shape[2] - 1)
        canvas[rows, y, x] = np.maximum(canvas[rows, y, x], shade)
    images = canvas[:, border:-border, border:-border]
    axis = np.arange(s.size, dtype=np.float32)
    for marker in (start, end):
        y = axis[None, :, None] - marker[:, 0, None, None]
        x = axis[None, None, :] - marker[:, 1, None, None]
        images = np.maximum(images, np.clip(s.marker + 0.5 - np.sqrt(y * y + x * x), 0.0, 1.0))
    return np.rint(images * 255).astype(np.uint8)


def _distance_to_segment(
    y: np.ndarray, x: np.ndarray, tail: np.ndarray, head: np.ndarray
) -> np.ndarray:
    line = (head - tail)[:, None, None, :]
    dy, dx = y - tail[:, 0, None, None], x - tail[:, 1, None, None]
    along = (dy * line[..., 0] + dx * line[..., 1]) / np.maximum(1e-9, (line**2).sum(-1))
    along = np.clip(along, 0.0, 1.0)
    return np.sqrt((dy - along * line[..., 0]) ** 2 + (dx - along * line[..., 1]) ** 2)
