"""Options that the verbs of language models share, named as llama.cpp names them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from trimtab.generate.language_model import LanguageModel
    from trimtab.generate.sampling import SamplingOptions
    from trimtab.progress import Progress

Verb = Callable[..., Any]


def engine_options(verb: Verb) -> Verb:
    """Give a verb ``-c``, ``-t``, ``--engine``, ``--weights`` and ``--cache-type``, as one dict."""

    @click.option("-c", "--ctx", type=click.IntRange(1), help="Context in tokens.")
    @click.option("-t", "--threads", type=click.IntRange(1), help="Threads of the native engine.")
    @click.option(
        "--engine",
        type=click.Choice(["auto", "native", "jax"]),
        default="auto",
        help="CPU kernels, JAX, or whichever serves the model.",
    )
    @click.option(
        "--weights",
        type=click.Choice(["auto", "packed", "float32", "bfloat16"]),
        default="auto",
        help="How the JAX engine holds weights.",
    )
    @click.option(
        "--cache-type",
        type=click.Choice(["bfloat16", "float32"]),
        default="bfloat16",
        help="Element type of keys and values.",
    )
    @functools.wraps(verb)
    def wrapped(
        *args: Any, ctx: int | None, threads: int | None, engine: str, weights: str,
        cache_type: str, **kwargs: Any,
    ) -> Any:  # fmt: skip
        chosen = {
            "context": ctx, "threads": threads, "engine": engine, "weights": weights,
            "cache_dtype": cache_type,
        }  # fmt: skip
        return verb(*args, engine_settings=chosen, **kwargs)

    return wrapped


def sampling_options(verb: Verb) -> Verb:
    """Give a verb ``--temp``, ``--top-k`` and the other sampling settings, as one dict."""

    @click.option("--temp", type=click.FloatRange(0), help="Temperature; 0 is greedy.")
    @click.option("--top-k", type=click.IntRange(0), help="Keep the k most likely tokens.")
    @click.option("--top-p", type=click.FloatRange(0, 1), help="Keep this much probability.")
    @click.option("--min-p", type=click.FloatRange(0, 1), help="Keep tokens this near the best.")
    @click.option("--repeat-penalty", type=click.FloatRange(0.01), help="Above 1: repeat less.")
    @click.option("-s", "--seed", type=int, help="Same seed, same text.")
    @functools.wraps(verb)
    def wrapped(
        *args: Any, temp: float | None, top_k: int | None, top_p: float | None,
        min_p: float | None, repeat_penalty: float | None, seed: int | None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        chosen = {
            "temperature": temp, "top_k": top_k, "top_p": top_p, "min_p": min_p,
            "repetition_penalty": repeat_penalty, "seed": seed,
        }  # fmt: skip
        return verb(*args, sampling=chosen, **kwargs)

    return wrapped


def load_model(
    model: str, engine_settings: dict[str, Any], progress: Progress, **more: Any
) -> LanguageModel:
    """Load what the user named."""
    from trimtab.generate.language_model import load

    return load(model, progress=progress, **engine_settings, **more)


def chosen_options(model: LanguageModel, sampling: dict[str, Any]) -> SamplingOptions:
    """Return the model's sampling settings with the user's in their place."""
    return model.default_options(**sampling)
