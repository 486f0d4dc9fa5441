"""Measure a model: perplexity of a text, and multiple choice by likelihood."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from trimtab.errors import InputError
from trimtab.generate.batch import Request
from trimtab.generate.language_model import LanguageModel
from trimtab.progress import Progress, silent


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """How well a text is predicted.

    Attributes:
        perplexity: ``exp`` of the mean negative log-likelihood per token.
        nats_per_token: that mean.
        bits_per_byte: the whole in bits over the text's bytes; comparable between tokenizers.
        tokens: predicted tokens.
        windows: mean of each window.
    """

    perplexity: float
    nats_per_token: float
    bits_per_byte: float
    tokens: int
    windows: tuple[float, ...]


def perplexity(
    model: LanguageModel,
    text: str,
    *,
    window: int = 1024,
    stride: int | None = None,
    limit: int | None = None,
    progress: Progress = silent,
) -> Perplexity:
    """Predict a text in windows.

    Each window starts afresh. Tokens that an earlier window predicted are context only, and so is
    the very first; with ``stride`` equal to ``window`` no token is seen twice.

    Args:
        model: what to measure.
        text: at least two tokens.
        window: tokens in a window; at most the context.
        stride: how far windows are apart; None means ``window``.
        limit: most windows to use.
        progress: told how many are done.

    Raises:
        InputError: the text is too short, or the sizes do not fit.
    """
    stride = stride or window
    if not 2 <= window <= model.engine.capacity:
        raise InputError(
            f"A window of {window} tokens does not fit a context of {model.engine.capacity}."
        )
    if not 1 <= stride <= window:
        raise InputError(f"The stride must lie between 1 and the window, not {stride}.")
    tokens = model.tokenizer.encode(text, begin=False)
    if len(tokens) < 2:
        raise InputError("The text has fewer than two tokens, so nothing can be predicted.")
    # What the tokenizer itself puts before a text; some vocabularies name a token and never add it.
    begin = [token for token in model.tokenizer.encode("")[:1] if token == model.tokenizer.begin]
    starts = [0, *range(stride, max(1, len(tokens) - window + stride), stride)][:limit]
    means: list[float] = []
    total, count, scored = 0.0, 0, 0
    for number, start in enumerate(starts):
        progress("Predicting", number, len(starts))
        part = [*begin, *tokens[start : start + window - len(begin)]]
        values = -model.score(part)[1:].astype(np.float64)
        overlap = max(0, scored - start - (1 - len(begin)))
        fresh = values[overlap:]
        scored = start + len(part) - len(begin)
        total, count = total + fresh.sum(), count + fresh.size
        means.append(float(fresh.mean()) if fresh.size else math.nan)
    mean = float(total / count)
    length = len(model.tokenizer.decode_bytes(tokens[:scored], special=True))
    bits = float(total) / math.log(2) / max(length, 1)
    return Perplexity(math.exp(mean), mean, bits, count, tuple(means))


@dataclasses.dataclass(frozen=True)
class Question:
    """One multiple-choice item.

    Attributes:
        context: text before the answer.
        options: possible continuations.
        answer: index of the right one.
    """

    context: str
    options: tuple[str, ...]
    answer: int


@dataclasses.dataclass(frozen=True)
class ChoiceScore:
    """Outcome of multiple choice.

    Attributes:
        accuracy: share of questions whose right option has the largest mean log-likelihood.
        accuracy_by_sum: the same by summed log-likelihood, which favours short options.
        chance: expected share of guessing.
        standard_error: of ``accuracy``.
        questions: how many.
        correct: for each question, whether ``accuracy`` counts it.
    """

    accuracy: float
    accuracy_by_sum: float
    chance: float
    standard_error: float
    questions: int
    correct: tuple[bool, ...]


def multiple_choice(
    model: LanguageModel, questions: Sequence[Question], progress: Progress = silent
) -> ChoiceScore:
    """Answer questions by comparing the likelihood of their options.

    Args:
        model: what to measure.
        questions: at least one; options share their context, which is computed once.
        progress: told how many are done.

    Raises:
        InputError: there are no questions, or one does not fit the context.
    """
    if not questions:
        raise InputError("There are no questions.")
    by_mean, by_sum = [], []
    for number, question in enumerate(questions):
        progress("Answering", number, len(questions))
        values = option_log_probabilities(model, question.context, question.options)
        means = [float(np.mean(value)) for value in values]
        sums = [float(np.sum(value)) for value in values]
        by_mean.append(int(np.argmax(means)) == question.answer)
        by_sum.append(int(np.argmax(sums)) == question.answer)
    accuracy = float(np.mean(by_mean))
    return ChoiceScore(
        accuracy=accuracy,
        accuracy_by_sum=float(np.mean(by_sum)),
        chance=float(np.mean([1 / len(question.options) for question in questions])),
        standard_error=math.sqrt(accuracy * (1 - accuracy) / len(questions)),
        questions=len(questions),
        correct=tuple(by_mean),
    )


def option_log_probabilities(
    model: LanguageModel, context: str, options: Sequence[str]
) -> list[np.ndarray]:
    """Return the log-probability of each token of each option after a context."""
    front = list(model.encode(context))
    encoded = [model.tokenizer.encode(option, begin=False) for option in options]
    if any(not tokens for tokens in encoded):
        raise InputError("An option of a question is empty.")

    def request(tokens: Sequence[int]) -> Request:
        whole = (*front, *tokens)
        return Request(tokens=whole, max_tokens=0, top=0, echo=True, echo_start=len(front))

    # The first option leaves the context's pages behind for the others.
    answers = model.complete([request(encoded[0])])
    answers += model.complete([request(tokens) for tokens in encoded[1:]])
    return [
        np.asarray([log.log_probability for log in answer.logs], np.float64) for answer in answers
    ]
