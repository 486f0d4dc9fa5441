"""Choose the next token from logits: penalties, filters in a stated order, and a counted draw.

NumPy only, one row at a time, so that a request's tokens depend on its own logits, options and seed
and never on what else is in the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from trimtab.errors import InputError, unknown_name

DEFAULT_ORDER = ("temperature", "top_k", "top_p", "min_p", "typical")
# llama.cpp filters first and heats last.
LLAMA_CPP_ORDER = ("top_k", "typical", "top_p", "min_p", "temperature")


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How to choose tokens.

    Attributes:
        temperature: divides logits; 0 always takes the most likely token (lowest id on ties).
        top_k: keep the k most likely; 0 keeps all.
        top_p: keep the smallest set whose probability reaches it (nucleus; Holtzman et al., 2020).
        min_p: keep tokens at least this share as likely as the best (Nguyen et al., 2024).
        typical_p: keep the most typical set of this probability (Meister et al., 2023).
        repetition_penalty: divides positive and multiplies negative logits of recent tokens.
        repetition_window: how many recent tokens, prompt included, that looks at.
        presence_penalty: subtracted once from tokens generated before.
        frequency_penalty: subtracted for each time a token was generated before.
        logit_bias: token id -> added to its logit.
        seed: of the draws; None takes a fresh one.
        order: filters in the order they are applied.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    order: tuple[str, ...] = DEFAULT_ORDER

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, 0, 100)
        _require("top_k", self.top_k, 0, 2**31)
        _require("top_p", self.top_p, 0, 1)
        _require("min_p", self.min_p, 0, 1)
        _require("typical_p", self.typical_p, 0, 1)
        _require("repetition_penalty", self.repetition_penalty, 1e-3, 100)
        _require("repetition_window", self.repetition_window, 0, 2**31)
        _require("presence_penalty", self.presence_penalty, -100, 100)
        _require("frequency_penalty", self.frequency_penalty, -100, 100)
        for name in self.order:
            if name not in FILTERS:
                raise unknown_name("sampling step", name, FILTERS)


def _require(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(f"{name} must lie between {low:g} and {high:g}, not {value!r}.")


def adjust(
    logits: np.ndarray,
    options: SamplingOptions,
    recent: Sequence[int],
    generated: Mapping[int, int],
    allowed: np.ndarray | None = None,
) -> np.ndarray:
    """Apply bias, penalties and a constraint.

    Args:
        logits: float32 ``[vocabulary]``; not changed.
        options: how to choose.
        recent: the sequence so far; its last ``repetition_window`` entries are penalised.
        generated: token -> how often it was generated.
        allowed: bool ``[vocabulary]`` of tokens that a grammar permits, or None.
    """
    changed = (
        options.logit_bias
        or options.repetition_penalty != 1.0
        or options.presence_penalty
        or options.frequency_penalty
        or allowed is not None
    )
    if not changed:
        return logits
    logits = biased(logits, options).copy()
    if options.repetition_penalty != 1.0 and options.repetition_window:
        seen = np.unique(np.asarray(recent[-options.repetition_window :], np.int64))
        chosen = logits[seen]
        factor = np.float32(options.repetition_penalty)
        logits[seen] = np.where(chosen > 0, chosen / factor, chosen * factor)
    if generated and (options.presence_penalty or options.frequency_penalty):
        tokens = np.fromiter(generated, np.int64, len(generated))
        counts = np.fromiter(generated.values(), np.float32, len(generated))
        logits[tokens] -= counts * options.frequency_penalty + options.presence_penalty
    if allowed is not None:
        logits[~allowed] = -np.inf
    return logits


def biased(logits: np.ndarray, options: SamplingOptions) -> np.ndarray:
    """Add ``logit_bias``; log-probabilities are reported after this step."""
    if not options.logit_bias:
        return logits
    logits = logits.copy()
    for token, bias in options.logit_bias.items():
        if not 0 <= token < logits.size:
            raise InputError(f"logit_bias names token {token}; the vocabulary has {logits.size}.")
        logits[token] += bias
    return logits


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return float32 log-probabilities along the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def choose(logits: np.ndarray, options: SamplingOptions, draw: Callable[[], float]) -> int:
    """Pick a token from adjusted logits.

    Args:
        logits: float32 ``[vocabulary]`` from :func:`adjust`.
        options: how to choose.
        draw: returns a uniform number in [0, 1); called only when one is needed.
    """
    if options.temperature == 0.0 or options.top_k == 1:
        return int(logits.argmax())
    tokens = np.flatnonzero(np.isfinite(logits))
    if options.top_k and set(options.order[:2]) == {"temperature", "top_k"}:
        # Heating keeps the order, so the cut comes first and the rest works on few tokens.
        tokens = tokens[_largest(logits[tokens], options.top_k)]
    kept = logits[tokens].astype(np.float64)
    for name in options.order:
        selection, kept = FILTERS[name](kept, options)
        tokens = tokens if selection is None else tokens[selection]
    cumulative = np.cumsum(_softmax(kept))
    place = np.searchsorted(cumulative, draw() * cumulative[-1], side="right")
    return int(tokens[min(int(place), tokens.size - 1)])


Filter = Callable[[np.ndarray, SamplingOptions], tuple[np.ndarray | None, np.ndarray]]


def _heat(logits: np.ndarray, options: SamplingOptions) -> tuple[None, np.ndarray]:
    return None, logits / options.temperature


def _keep_top_k(
    logits: np.ndarray, options: SamplingOptions
) -> tuple[np.ndarray | None, np.ndarray]:
    if not 0 < options.top_k < logits.size:
        return None, logits
    selection = _largest(logits, options.top_k)
    return selection, logits[selection]


def _keep_top_p(
    logits: np.ndarray, options: SamplingOptions
) -> tuple[np.ndarray | None, np.ndarray]:
    if options.top_p >= 1.0:
        return None, logits
    probabilities, size = _softmax(logits), 256
    while True:
        # A nucleus is small as a rule; sorting the whole vocabulary would cost more than the rest.
        selection = _largest(logits, size)
        reached = np.cumsum(probabilities[selection])
        if reached[-1] >= options.top_p or selection.size == logits.size:
            count = int(np.searchsorted(reached, options.top_p, side="left")) + 1
            return selection[:count], logits[selection[:count]]
        size *= 8


def _keep_min_p(
    logits: np.ndarray, options: SamplingOptions
) -> tuple[np.ndarray | None, np.ndarray]:
    if options.min_p == 0.0:
        return None, logits
    selection = np.flatnonzero(logits >= logits.max() + np.log(options.min_p))
    return selection, logits[selection]


def _keep_typical(
    logits: np.ndarray, options: SamplingOptions
) -> tuple[np.ndarray | None, np.ndarray]:
    if options.typical_p >= 1.0:
        return None, logits
    surprise = -log_softmax(logits)
    probabilities = np.exp(-surprise)
    entropy = float((probabilities * surprise).sum())
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    reached = np.cumsum(probabilities[order])
    count = int(np.searchsorted(reached, options.typical_p, side="left")) + 1
    return order[:count], logits[order[:count]]


FILTERS: dict[str, Filter] = {
    "temperature": _heat,
    "top_k": _keep_top_k,
    "top_p": _keep_top_p,
    "min_p": _keep_min_p,
    "typical": _keep_typical,
}
GREEDY = SamplingOptions(temperature=0.0)


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Return indices of the ``count`` largest values, best first, lowest index first on ties."""
    if count >= values.size:
        return np.argsort(-values, kind="stable")
    # argpartition leaves ties at the border undefined: take all of the border, then sort stably.
    border = np.partition(values, values.size - count)[values.size - count]
    candidates = np.flatnonzero(values >= border)
    return candidates[np.argsort(-values[candidates], kind="stable")][:count]


def top_log_probabilities(row: np.ndarray, count: int) -> list[tuple[int, float]]:
    """Return the ``count`` best tokens of a log-softmax row, best first."""
    return [(int(token), float(row[token])) for token in _largest(row, count)] if count else []


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def uniform(seed: int, stream: int, position: int) -> float:
    """Return the uniform number that belongs to a seed, a stream and a position.

    A counter-based generator (Philox; Salmon et al., 2011) gives each position its own number, so a
    request draws the same whatever it is batched with and wherever it is resumed.
    """
    key = np.array([seed & (2**64 - 1), stream], np.uint64)
    counter = np.array([position, 0, 0, 0], np.uint64)
    return float(np.random.Generator(np.random.Philox(key=key, counter=counter)).random())
