"""Masked words and sentence order: examples from documents, the loss, the optimizer.

Follows FNet's published training code (section 2.4 of its description): windows of consecutive
lines, split in two at random and swapped half of the time, 15 % of the tokens hidden. Every
example is drawn from its own random stream, so a position in the data resumes exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

from trimtab.errors import InputError
from trimtab.train.data import ResumableIterator, batch_iterator
from trimtab.train.language.tokens import Vocabulary

MASKED_SHARE = 0.15


def windows(lines: Sequence[Sequence[int]], longest: int) -> list[list[list[int]]]:
    """Group consecutive tokenised lines greedily into windows of at most ``longest`` tokens.

    A line longer than that is cut into several.
    """
    found: list[list[list[int]]] = []
    current: list[list[int]] = []
    size = 0
    for line in lines:
        for start in range(0, len(line), longest):
            part = list(line[start : start + longest])
            if current and size + len(part) > longest:
                found.append(current)
                current, size = [], 0
            current.append(part)
            size += len(part)
    return [*found, current] if current else found


@dataclass(frozen=True)
class PretrainingBatches:
    """Batches by number, a random-access source for Grain.

    Each epoch visits all windows in a new order; every example draws its split, order and masks
    from a generator seeded by (seed, epoch, window). What does not fill an epoch's last batch is
    left out of that epoch.

    Args:
        windows: tokenised lines by window, see :func:`windows`.
        vocabulary: gives the special tokens.
        tokens: length of every example, padded.
        batch_size: examples in a batch.
        predictions: hidden tokens an example at most.
        seed: of all randomness.
        epochs: how many; practically endless by default.
    """

    windows: Sequence[Sequence[Sequence[int]]]
    vocabulary: Vocabulary
    tokens: int
    batch_size: int
    predictions: int
    seed: int
    epochs: int = 2**20

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= len(self.windows):
            raise InputError(
                f"{len(self.windows)} windows of text cannot fill a batch of {self.batch_size}; "
                "pass more text, shorter inputs or a smaller batch."
            )

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one pass over the text."""
        return len(self.windows) // self.batch_size

    def __len__(self) -> int:
        return self.batches_per_epoch * self.epochs

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        epoch, batch = divmod(int(index), self.batches_per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.windows))
        rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
        examples = [
            make_example(
                self.windows[row],
                self.vocabulary,
                self.tokens,
                self.predictions,
                np.random.default_rng((self.seed, epoch, int(row))),
            )
            for row in rows
        ]
        return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def make_example(
    window: Sequence[Sequence[int]],
    vocabulary: Vocabulary,
    tokens: int,
    predictions: int,
    generator: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Build one example.

    Args:
        window: consecutive tokenised lines, at most ``tokens - 3`` tokens together.
        vocabulary: gives the special tokens.
        tokens: length of the example, padded.
        predictions: slots for hidden tokens.
        generator: consumed.

    Returns:
        int32 ``ids``, ``segments`` (1 in the second part), ``positions`` and ``targets`` of the
        hidden tokens, float32 ``weights`` (0 in unused slots), int32 ``order`` (1 if swapped).
    """
    first, second = _split(window, generator)
    swapped = int(generator.random() < 0.5)
    if swapped:
        first, second = second, first
    sequence = [vocabulary.start, *first, vocabulary.separator, *second, vocabulary.separator]
    ids = np.full(tokens, vocabulary.padding, np.int32)
    ids[: len(sequence)] = sequence
    segments = np.zeros(tokens, np.int32)
    segments[len(first) + 2 : len(sequence)] = 1
    return {
        **_hide(ids, len(sequence), vocabulary, predictions, generator),
        "segments": segments,
        "order": np.asarray(swapped, np.int32),
    }


def _split(
    window: Sequence[Sequence[int]], generator: np.random.Generator
) -> tuple[list[int], list[int]]:
    if len(window) > 1:
        pivot = int(generator.integers(1, len(window)))
        return [t for line in window[:pivot] for t in line], [
            t for line in window[pivot:] for t in line
        ]
    line = list(window[0])
    pivot = int(generator.integers(1, len(line))) if len(line) > 1 else len(line)
    return line[:pivot], line[pivot:]


def _hide(
    ids: np.ndarray,
    length: int,
    vocabulary: Vocabulary,
    predictions: int,
    generator: np.random.Generator,
) -> dict[str, np.ndarray]:
    ordinary = np.flatnonzero(~np.isin(ids[:length], vocabulary.special))
    count = min(predictions, max(1, int(MASKED_SHARE * length)), len(ordinary))
    chosen = np.sort(generator.choice(ordinary, count, replace=False)) if count else ordinary
    positions = np.zeros(predictions, np.int32)
    targets = np.zeros(predictions, np.int32)
    weights = np.zeros(predictions, np.float32)
    positions[:count], targets[:count], weights[:count] = chosen, ids[chosen], 1.0
    hidden = ids.copy()
    fate = generator.random(count)
    hidden[chosen[fate < 0.8]] = vocabulary.mask
    random_words = chosen[fate >= 0.9]
    hidden[random_words] = _ordinary_words(len(random_words), vocabulary, generator)
    return {"ids": hidden, "positions": positions, "targets": targets, "weights": weights}


def _ordinary_words(
    count: int, vocabulary: Vocabulary, generator: np.random.Generator
) -> np.ndarray:
    words = generator.integers(0, len(vocabulary), count)
    special = np.isin(words, vocabulary.special)
    while special.any():
        words[special] = generator.integers(0, len(vocabulary), int(special.sum()))
        special = np.isin(words, vocabulary.special)
    return words


def pretraining_batches(
    documents: Sequence[Sequence[str]],
    vocabulary: Vocabulary,
    *,
    tokens: int,
    batch_size: int,
    predictions: int = 80,
    seed: int = 0,
    threads: int = 1,
) -> ResumableIterator:
    """Return an endless iterator over batches, whose position can be saved and restored.

    Args:
        documents: lines of text by document; windows never cross documents.
        vocabulary: the tokenizer.
        tokens: length of every example.
        batch_size: examples in a batch.
        predictions: hidden tokens an example at most.
        seed: of all randomness.
        threads: Grain threads that read ahead; 0 reads when asked.

    Raises:
        InputError: too little text for one batch, or inputs too short for their special tokens.
    """
    if tokens < 5:
        raise InputError(f"Inputs of {tokens} tokens hold no text beside three special tokens.")
    found = [
        window
        for lines in documents
        for window in windows([ids for ids in vocabulary.encode(lines) if ids], tokens - 3)
    ]
    source = PretrainingBatches(found, vocabulary, tokens, batch_size, predictions, seed)
    return batch_iterator(source, threads=threads)


def pretraining_loss(
    model: Any, batch: Mapping[str, Array], key: PRNGKeyArray | None
) -> tuple[Array, dict[str, Array]]:
    """Return the sum of both tasks' cross-entropies, and accuracies.

    Args:
        model: a :class:`trimtab.models.PretrainingModel`.
        batch: as made by :class:`PretrainingBatches`.
        key: turns dropout on.
    """
    size = batch["ids"].shape[0]
    keys = None if key is None else jax.random.split(key, size)

    def run(ids, segments, positions, key):
        return model(ids, segments, positions, key=key)

    in_axes = (0, 0, 0, None if keys is None else 0)
    logits, order = jax.vmap(run, in_axes=in_axes)(
        batch["ids"], batch["segments"], batch["positions"], keys
    )
    weights = batch["weights"]
    total = jnp.maximum(weights.sum(), 1.0)
    cross = optax.softmax_cross_entropy_with_integer_labels
    words = (cross(logits, batch["targets"]) * weights).sum() / total
    orders = cross(order, batch["order"]).mean()
    hits = (jnp.argmax(logits, -1) == batch["targets"]) * weights
    metrics = {
        "masked_loss": words,
        "order_loss": orders,
        "masked_accuracy": hits.sum() / total,
        "order_accuracy": jnp.mean(jnp.argmax(order, -1) == batch["order"]),
    }
    return words + orders, metrics


def pretraining_optimizer(
    steps: int, *, rate: float = 1e-4, warmup: int | None = None, decay: float = 0.01
) -> optax.GradientTransformation:
    """Return Adam with decoupled weight decay on all parameters and a linear schedule.

    The rate climbs over ``warmup`` steps, falls linearly to zero at ``steps`` and stays there.
    (The published code jumps back to the full rate on the step after the last.)

    Args:
        steps: length of training.
        rate: the highest learning rate.
        warmup: steps to reach it; 1 % of ``steps`` if None, as published.
        decay: weight decay.
    """
    warmup = max(1, steps // 100) if warmup is None else warmup
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, rate, warmup),
            optax.linear_schedule(rate, 0.0, max(1, steps - warmup)),
        ],
        [warmup],
    )
    return optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-6, weight_decay=decay)
