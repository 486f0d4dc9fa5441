"""Fine-tuning an encoder to classify text: arrays, loss, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

from trimtab.errors import InputError
from trimtab.train.data import evaluation_batches
from trimtab.train.language.corpora import LabelledText
from trimtab.train.language.tokens import Vocabulary, train_vocabulary


def encode_texts(
    texts: Sequence[str],
    vocabulary: Vocabulary,
    tokens: int,
    *,
    second: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Tokenise texts, or pairs of texts, to one length.

    Args:
        texts: the first parts.
        vocabulary: the tokenizer.
        tokens: length of every example; what does not fit is cut from the longer part.
        second: the second parts of pairs.

    Returns:
        int32 ``ids`` and ``segments`` (examples, tokens), and ``lengths``.
    """
    if tokens < 4:
        raise InputError(f"Inputs of {tokens} tokens hold no text beside their special tokens.")
    firsts = vocabulary.encode(texts)
    seconds: Sequence[Sequence[int] | None] = (
        [None] * len(firsts) if second is None else vocabulary.encode(second)
    )
    ids = np.full((len(firsts), tokens), vocabulary.padding, np.int32)
    segments = np.zeros_like(ids)
    lengths = np.zeros(len(firsts), np.int32)
    for row, (a, b) in enumerate(zip(firsts, seconds, strict=True)):
        a, b = _fit(list(a), None if b is None else list(b), tokens)
        sequence = [vocabulary.start, *a, vocabulary.separator]
        if b is not None:
            segments[row, len(sequence) : len(sequence) + len(b) + 1] = 1
            sequence += [*b, vocabulary.separator]
        ids[row, : len(sequence)] = sequence
        lengths[row] = len(sequence)
    return {"ids": ids, "segments": segments, "lengths": lengths}


def _fit(a: list[int], b: list[int] | None, tokens: int) -> tuple[list[int], list[int] | None]:
    if b is None:
        return a[: tokens - 2], None
    room = tokens - 3
    excess = len(a) + len(b) - room
    if excess > 0:
        # Cut the longer part down to the other's length first, then both alike.
        keep_a = min(len(a), max(room // 2, room - len(b)))
        a, b = a[:keep_a], b[: room - keep_a]
    return a, b


@dataclass(frozen=True)
class TextClassification:
    """A labelled corpus as arrays, split at random.

    Args:
        name: of the corpus.
        train: ``ids``, ``segments``, ``lengths`` and ``labels``.
        test: the same for held-out texts.
        classes: names of the classes.
        vocabulary: the tokenizer, learnt from the training texts only.
    """

    name: str
    train: Mapping[str, np.ndarray]
    test: Mapping[str, np.ndarray]
    classes: tuple[str, ...]
    vocabulary: Vocabulary

    @staticmethod
    def split(
        corpus: LabelledText,
        *,
        train: int,
        test: int,
        tokens: int,
        words: int,
        kind: Any = "words",
        seed: int = 0,
    ) -> TextClassification:
        """Draw disjoint training and test texts and tokenise them.

        Args:
            corpus: labelled texts.
            train: number of training texts.
            test: number of test texts.
            tokens: length of every example.
            words: size of the vocabulary.
            kind: of tokenizer, see :func:`trimtab.train.language.train_vocabulary`.
            seed: of the split.

        Raises:
            InputError: the corpus is too small.
        """
        if train + test > len(corpus):
            raise InputError(
                f"{corpus.name} has {len(corpus)} texts, fewer than {train} to train on and {test} "
                "to test on."
            )
        order = np.random.default_rng(seed).permutation(len(corpus))
        rows = {"train": order[:train], "test": order[train : train + test]}
        texts = {part: [corpus.texts[i] for i in chosen] for part, chosen in rows.items()}
        vocabulary = train_vocabulary(texts["train"], words, kind=kind)
        labels = np.asarray(corpus.labels, np.int32)
        arrays = {
            part: encode_texts(texts[part], vocabulary, tokens) | {"labels": labels[chosen]}
            for part, chosen in rows.items()
        }
        return TextClassification(
            corpus.name, arrays["train"], arrays["test"], corpus.classes, vocabulary
        )


def length_buckets(
    lengths: np.ndarray, batch_tokens: int, *, seed: int | None = None
) -> list[np.ndarray]:
    """Group examples of exactly equal length into batches, so that none needs padding.

    One compiled program serves each length that occurs. This is the cheap way to use Fourier
    mixing on texts of different lengths without padding changing the outputs.

    Args:
        lengths: true length of each example.
        batch_tokens: tokens in a batch at most; at least one example is taken.
        seed: shuffles examples and batches if given.

    Returns:
        index arrays; together they hold every example once.
    """
    order = np.arange(len(lengths))
    generator = None if seed is None else np.random.default_rng(seed)
    if generator is not None:
        generator.shuffle(order)
    batches: list[np.ndarray] = []
    for length in np.unique(lengths):
        rows = order[lengths[order] == length]
        size = max(1, batch_tokens // max(1, int(length)))
        batches += [rows[start : start + size] for start in range(0, len(rows), size)]
    if generator is not None:
        generator.shuffle(batches)  # pyright: ignore[reportArgumentType]
    return batches


def classification_loss(
    model: Any, batch: Mapping[str, Array], key: PRNGKeyArray | None
) -> tuple[Array, dict[str, Array]]:
    """Return the cross-entropy of integer ``labels``, or the squared error of real ones.

    Args:
        model: a :class:`trimtab.models.Classifier`; of one output for real labels.
        batch: ``ids``, ``segments`` and ``labels``.
        key: turns dropout on.
    """
    keys = None if key is None else jax.random.split(key, batch["ids"].shape[0])

    def run(ids, segments, key):
        return model(ids, segments, key=key)

    in_axes = (0, 0, None if keys is None else 0)
    logits = jax.vmap(run, in_axes=in_axes)(batch["ids"], batch["segments"], keys)
    labels = batch["labels"]
    if jnp.issubdtype(labels.dtype, jnp.floating):
        loss = jnp.square(logits[:, 0] - labels).mean()
        return loss, {"squared_error": loss}
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, {"accuracy": jnp.mean(jnp.argmax(logits, -1) == labels)}


def accuracy(model: Any, arrays: Mapping[str, np.ndarray], *, batch_size: int = 256) -> float:
    """Return the share of examples that a classifier labels correctly."""
    run = eqx.filter_jit(lambda m, i, s: jnp.argmax(jax.vmap(m)(i, s), -1))
    names = ("ids", "segments", "labels")
    hits = 0
    for batch, count in evaluation_batches({n: arrays[n] for n in names}, batch_size):
        predicted = np.asarray(run(model, batch["ids"], batch["segments"]))
        hits += int((predicted[:count] == batch["labels"][:count]).sum())
    return hits / len(arrays["labels"])


def scores(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the scores that GLUE uses for a task.

    Args:
        predicted: class indices, or real numbers for a regression.
        labels: of the same kind.

    Returns:
        ``accuracy``, and for two classes ``f1`` and ``matthews``; for real labels ``pearson`` and
        ``spearman``.
    """
    if np.issubdtype(np.asarray(labels).dtype, np.floating):
        first, second = (_ranks(np.asarray(values)) for values in (predicted, labels))
        return {
            "pearson": float(np.corrcoef(predicted, labels)[0, 1]),
            "spearman": float(np.corrcoef(first, second)[0, 1]),
        }
    found = {"accuracy": float(np.mean(predicted == labels))}
    if set(np.unique(labels)) | set(np.unique(predicted)) <= {0, 1}:
        tp, tn, fp, fn = (
            int(np.sum((predicted == p) & (labels == t)))
            for p, t in ((1, 1), (0, 0), (1, 0), (0, 1))
        )
        found["f1"] = 2 * tp / max(1, 2 * tp + fp + fn)
        spread = np.sqrt(float(tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        found["matthews"] = (tp * tn - fp * fn) / spread if spread else 0.0
    return found


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks in which equal values share the mean of their places."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]
