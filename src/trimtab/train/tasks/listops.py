"""ListOps: nested lists of MIN, MAX, MED and SUM modulo 10, and the digit they come to.

The rules are those of the Long Range Arena ("Long Range Arena: A Benchmark for Efficient
Transformers", Tay et al., 2021, section 2.2.1): a node is a digit with probability 3/4, else an
operator of 2 to 10 arguments; trees are at most 10 deep, and only those of some lengths are kept.
Opening and closing brackets are tokens: an early version of that benchmark dropped them, which
makes the task unsolvable. Trees grow level by level, thousands at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trimtab.errors import InputError

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
TOKENS = ("<pad>", "[CLS]", "]", *OPERATORS, *"0123456789")
"""The task's vocabulary; a token's index is its place here."""

PAD, CLS, CLOSE, FIRST_OPERATOR, FIRST_DIGIT = 0, 1, 2, 3, 7
_DIGIT_SHARE = 0.75


class _Level(NamedTuple):
    """The nodes of all trees at one depth, children of one parent side by side."""

    tree: np.ndarray
    parent: np.ndarray  # Index into the level above.
    operator: np.ndarray  # 0 to 3, or -1 at a digit.
    arguments: np.ndarray  # Number of children; 0 at a digit.
    digit: np.ndarray


def generate_listops(
    examples: int,
    *,
    shortest: int = 500,
    longest: int = 2000,
    max_depth: int = 10,
    max_arguments: int = 10,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Draw expressions whose number of tokens lies strictly between two bounds.

    Args:
        examples: how many.
        shortest: expressions must have more tokens than this.
        longest: and fewer than this.
        max_depth: of the trees; nodes at this depth are digits.
        max_arguments: of an operator.
        seed: the same seed gives the same expressions.

    Returns:
        ``ids`` int32 (examples, longest): [CLS], the expression, padding; ``lengths`` with [CLS];
        ``labels``, the expressions' values; ``roots``, 0 to 3 for the outermost operator.

    Raises:
        InputError: bounds that no tree, or next to none, can meet.
    """
    if not 0 <= shortest < longest - 1 or max_depth < 2 or max_arguments < 2:
        raise InputError(
            f"No expression has more than {shortest} and fewer than {longest} tokens at depth "
            f"{max_depth} with {max_arguments} arguments: widen the bounds."
        )
    generator = np.random.default_rng(seed)
    parts: list[dict[str, np.ndarray]] = []
    found = tried = 0
    while found < examples:
        batch = 8192
        part = _draw(batch, shortest, longest, max_depth, max_arguments, generator)
        parts.append(part)
        tried += batch
        found += len(part["labels"])
        if tried >= 200 * batch and found == 0:
            raise InputError(
                f"None of {tried} trees had more than {shortest} and fewer than {longest} tokens; "
                "widen the bounds or allow deeper trees."
            )
    return {name: np.concatenate([p[name] for p in parts])[:examples] for name in parts[0]}


def _draw(
    trees: int,
    shortest: int,
    longest: int,
    max_depth: int,
    max_arguments: int,
    generator: np.random.Generator,
) -> dict[str, np.ndarray]:
    levels, sizes = _grow(trees, longest, max_depth, max_arguments, generator)
    kept = (sizes > shortest) & (sizes < longest)
    levels = _only(levels, kept)
    values = _evaluate(levels)
    ids = np.full((int(kept.sum()), longest), PAD, np.int32)
    ids[:, 0] = CLS
    _write(levels, ids)
    return {
        "ids": ids,
        "lengths": (sizes[kept] + 1).astype(np.int32),
        "labels": values.astype(np.int32),
        "roots": levels[0].operator.astype(np.int32) if levels else np.zeros(0, np.int32),
    }


def _grow(
    trees: int, longest: int, max_depth: int, max_arguments: int, generator: np.random.Generator
) -> tuple[list[_Level], np.ndarray]:
    """Grow all trees by one level at a time; trees that become too long stop growing."""
    sizes = np.zeros(trees, np.int64)
    tree, parent = np.arange(trees), np.zeros(trees, np.int64)
    levels: list[_Level] = []
    for depth in range(1, max_depth + 1):
        count = len(tree)
        if count == 0:
            break
        is_operator = generator.random(count) >= _DIGIT_SHARE
        if depth == max_depth:
            is_operator[:] = False
        is_operator &= sizes[tree] < longest
        operator = np.where(is_operator, generator.integers(0, 4, count), -1)
        arguments = np.where(is_operator, generator.integers(2, max_arguments + 1, count), 0)
        digit = generator.integers(0, 10, count)
        levels.append(_Level(tree, parent, operator, arguments, digit))
        sizes += np.bincount(tree, 1 + is_operator, trees).astype(np.int64)
        tree = np.repeat(tree, arguments)
        parent = np.repeat(np.arange(count), arguments)
    return levels, sizes


def _only(levels: list[_Level], kept: np.ndarray) -> list[_Level]:
    """Leave out the trees that are not kept and number the rest anew."""
    number = np.cumsum(kept) - 1
    found: list[_Level] = []
    place = np.zeros(len(kept), np.int64)
    for level in levels:
        rows = kept[level.tree]
        parent = place[level.parent[rows]]
        place = np.cumsum(rows) - 1
        if not rows.any():
            break
        found.append(
            _Level(
                number[level.tree[rows]],
                parent,
                level.operator[rows],
                level.arguments[rows],
                level.digit[rows],
            )
        )
    return found


def _evaluate(levels: list[_Level]) -> np.ndarray:
    """Work out every node from the deepest level up; return the roots' values."""
    values = np.zeros(0, np.int64)
    for level in reversed(levels):
        mine = level.digit.astype(np.int64)
        at = np.flatnonzero(level.arguments)
        if len(at):
            mine[at] = _apply(level.operator[at], level.arguments[at], values)
        values = mine
    return values


def _apply(operator: np.ndarray, arguments: np.ndarray, values: np.ndarray) -> np.ndarray:
    starts = np.cumsum(arguments) - arguments
    ends = starts + arguments - 1
    # Sorted within each parent's children, minimum, maximum and median are single reads.
    group = np.repeat(np.arange(len(arguments)), arguments)
    ordered = np.sort(group * 10 + values) % 10
    median = (ordered[starts + (arguments - 1) // 2] + ordered[starts + arguments // 2]) // 2
    total = np.add.reduceat(values, starts) % 10
    return np.choose(operator, [ordered[starts], ordered[ends], median, total])


def _write(levels: list[_Level], ids: np.ndarray) -> None:
    """Put every node's token where a depth-first walk meets it."""
    spans: list[np.ndarray] = []
    below = np.zeros(0, np.int64)
    for level in reversed(levels):
        span = np.ones(len(level.tree), np.int64)
        at = np.flatnonzero(level.arguments)
        if len(at):
            starts = np.cumsum(level.arguments[at]) - level.arguments[at]
            span[at] = 2 + np.add.reduceat(below, starts)
        spans.append(span)
        below = span
    spans.reverse()
    place = np.ones(len(levels[0].tree), np.int64) if levels else np.zeros(0, np.int64)
    for depth, (level, span) in enumerate(zip(levels, spans)):
        opens = level.arguments > 0
        ids[level.tree, place] = np.where(
            opens, FIRST_OPERATOR + level.operator, FIRST_DIGIT + level.digit
        )
        ids[level.tree[opens], (place + span - 1)[opens]] = CLOSE
        if depth + 1 < len(levels):
            child, width = levels[depth + 1], spans[depth + 1]
            before = np.cumsum(width) - width
            counts = level.arguments[opens]
            first = np.repeat(before[np.cumsum(counts) - counts], counts)
            place = place[child.parent] + 1 + before - first


def expression(ids: np.ndarray) -> str:
    """Return the text of one example, such as ``"[MAX 2 [MIN 4 7 ] 0 ]"``."""
    return " ".join(TOKENS[token] for token in np.asarray(ids) if token not in (PAD, CLS))


def root_operator_accuracy(train: dict[str, np.ndarray], test: dict[str, np.ndarray]) -> float:
    """Return what a classifier scores that sees nothing but the outermost operator.

    It is the baseline to quote with every result: at the benchmark's sizes it scores about 37 %,
    where all the published results are.
    """
    best = [
        np.bincount(train["labels"][train["roots"] == root], minlength=10).argmax()
        for root in range(-1, 4)
    ]
    return float(np.mean(np.asarray(best)[test["roots"] + 1] == test["labels"]))
