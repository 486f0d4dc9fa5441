"""A language model ready to use: load it, generate, chat, score, embed."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import FileFormatError, InputError
from trimtab.generate.batch import Batch, Event, Request, Running, TokenLog
from trimtab.generate.chat import Message, check_messages, encode_chat
from trimtab.generate.checkpoint import Checkpoint
from trimtab.generate.engine import Engine, build_engine
from trimtab.generate.locate import DEFAULT_MODEL, find_model
from trimtab.generate.sampling import SamplingOptions
from trimtab.generate.tokenizer import Tokenizer
from trimtab.progress import Progress, silent

DEFAULT_CONTEXT = 4096


@dataclasses.dataclass(frozen=True)
class Completion:
    """One finished answer.

    Attributes:
        text: what was generated.
        tokens: its ids, the end token included.
        finish: ``stop`` or ``length``.
        logs: log-probabilities, when asked for; the prompt's first with ``echo``.
        prompt_tokens: length of the prompt.
        reused_tokens: how much of it came from the prefix cache.
        first_token_seconds: from submission to the first token.
        decode_seconds: from the first token to the last.
        embedding: of an embedding request, float32 ``[hidden]``.
    """

    text: str
    tokens: tuple[int, ...]
    finish: str
    logs: tuple[TokenLog, ...]
    prompt_tokens: int
    reused_tokens: int
    first_token_seconds: float
    decode_seconds: float
    embedding: np.ndarray | None = None

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens per second, reused ones left out."""
        return (self.prompt_tokens - self.reused_tokens) / max(self.first_token_seconds, 1e-9)

    @property
    def decode_rate(self) -> float:
        """Generated tokens per second after the first."""
        return max(len(self.tokens) - 1, 0) / max(self.decode_seconds, 1e-9)


class LanguageModel:
    """A checkpoint, its tokenizer and an engine that runs it.

    Attributes:
        checkpoint: the files' content.
        tokenizer: text to ids and back.
        engine: runs the model.
        batch: the scheduler over it.
    """

    def __init__(
        self, checkpoint: Checkpoint, engine: Engine, *, prefix_bytes: int = 256 << 20
    ) -> None:
        self.checkpoint = checkpoint
        self.tokenizer = Tokenizer(checkpoint.vocabulary)
        self.engine = engine
        self.batch = Batch(engine, self.tokenizer, prefix_bytes=prefix_bytes)
        if self.tokenizer.size > checkpoint.config.vocabulary:
            raise FileFormatError(
                f"{checkpoint.path}: the tokenizer has {self.tokenizer.size} tokens, the model "
                f"only {checkpoint.config.vocabulary}."
            )

    def encode(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        """Return the token ids of a plain prompt; ids pass through."""
        if isinstance(prompt, str):
            return tuple(self.tokenizer.encode(prompt))
        return tuple(int(token) for token in prompt)

    def encode_chat(self, messages: Sequence[Message], **options: Any) -> tuple[int, ...]:
        """Return the token ids of a conversation, through the model's chat template."""
        checked = check_messages(messages)
        return tuple(encode_chat(self.checkpoint.chat_template, checked, self.tokenizer, **options))

    def default_options(self, **changes: Any) -> SamplingOptions:
        """Return the model's own sampling settings with some changed."""
        known = {name: value for name, value in changes.items() if value is not None}
        return SamplingOptions(**{**self.checkpoint.defaults, **known})

    def generate(
        self,
        prompt: str | Sequence[int] | Sequence[Message],
        *,
        max_tokens: int = 128,
        options: SamplingOptions | None = None,
        stops: Sequence[str] = (),
        top: int | None = None,
        grammar: str | None = None,
        echo: bool = False,
        ignore_end: bool = False,
    ) -> Completion:
        """Continue a text, token ids or a conversation.

        Args:
            prompt: text, ids, or messages with ``role`` and ``content``.
            max_tokens: most tokens to generate.
            options: how to choose; None takes the model's settings.
            stops: texts that end generation.
            top: report log-probabilities with so many alternatives.
            grammar: constraint from :mod:`trimtab.generate.grammar`.
            echo: report log-probabilities of the prompt too.
            ignore_end: go on after the model's end token.

        Raises:
            InputError: the prompt is empty or too long for the context.
        """
        request = Request(
            tokens=self._prompt_tokens(prompt),
            max_tokens=max_tokens,
            options=options or self.default_options(),
            stops=tuple(stops),
            top=top,
            grammar=grammar,
            echo=echo,
            ignore_end=ignore_end,
        )
        return self.complete([request])[0]

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Run several requests together and return their answers in order."""
        events: list[list[Event]] = [[] for _ in requests]
        running = [
            self.batch.submit(request, collected.append)
            for request, collected in zip(requests, events, strict=True)
        ]
        try:
            while any(one.finish is None for one in running):
                self.batch.step()
        finally:
            self._abandon(running)
        for one in running:
            if one.error is not None:
                raise one.error
        return [_completion(one, collected) for one, collected in zip(running, events)]

    def stream(
        self, prompt: str | Sequence[int] | Sequence[Message], **settings: Any
    ) -> Iterator[Event]:
        """Generate like :meth:`generate`, yielding events as they come.

        Closing the iterator cancels the request.
        """
        options = settings.pop("options", None) or self.default_options()
        stops = tuple(settings.pop("stops", ()))
        request = Request(
            tokens=self._prompt_tokens(prompt), options=options, stops=stops, **settings
        )
        pending: list[Event] = []
        running = self.batch.submit(request, pending.append)
        try:
            while running.finish is None or pending:
                if not pending:
                    self.batch.step()
                while pending:
                    yield pending.pop(0)
        finally:
            self._abandon([running])
        if running.error is not None:
            raise running.error

    def score(self, text: str | Sequence[int]) -> np.ndarray:
        """Return the float32 log-probability of each token given those before it.

        The first token has none: its entry is NaN.
        """
        tokens = self.encode(text)
        answer = self.complete([Request(tokens=tokens, max_tokens=0, top=0, echo=True)])[0]
        values = [log.log_probability for log in answer.logs]
        return np.asarray([np.nan if value is None else value for value in values], np.float32)

    def embed(self, text: str | Sequence[int]) -> np.ndarray:
        """Return the mean of the final hidden states, float32 ``[hidden]``.

        Raises:
            InputError: the text is empty or too long.
        """
        request = Request(tokens=self.encode(text), max_tokens=0, embed=True)
        embedding = self.complete([request])[0].embedding
        assert embedding is not None
        return embedding

    def stats(self) -> dict[str, Any]:
        """Return counters and sizes for reports."""
        return {
            "model": self.checkpoint.name,
            "engine": self.engine.name,
            "parameters": self.checkpoint.config.parameters,
            "weight_bytes": self.checkpoint.nbytes,
            "cache_bytes": self.engine.cache_bytes,
            "slots": self.engine.slots,
            "context": self.engine.capacity,
            "steps": self.batch.steps,
            "prompt_tokens": self.batch.prompt_tokens,
            "generated_tokens": self.batch.generated_tokens,
            "prefix_pages": len(self.batch.prefix),
            "prefix_hits": self.batch.prefix.hits,
        }

    def _prompt_tokens(self, prompt: Any) -> tuple[int, ...]:
        if not isinstance(prompt, str) and len(prompt) and isinstance(prompt[0], Mapping):
            return self.encode_chat(prompt)
        return self.encode(prompt)

    def _abandon(self, running: Sequence[Running]) -> None:
        """Free the slots of unfinished sequences, after an interruption."""
        left = [one for one in running if one.finish is None]
        for one in left:
            one.cancel()
        if left:
            self.batch.drop_cancelled()


def _completion(running: Running, events: Sequence[Event]) -> Completion:
    timing = running.timing
    first = timing.first_token or timing.finished
    return Completion(
        text="".join(event.text for event in events),
        tokens=tuple(running.generated_tokens),
        finish=running.finish or "stop",
        logs=tuple(log for event in events for log in event.logs),
        prompt_tokens=running.prompt_length,
        reused_tokens=running.reused,
        first_token_seconds=first - timing.submitted,
        decode_seconds=timing.finished - first,
        embedding=events[-1].embedding,
    )


def open_checkpoint(
    model: str | os.PathLike[str] = DEFAULT_MODEL, progress: Progress = silent
) -> Checkpoint:
    """Open a GGUF file, a Hugging Face folder or a packaged model without building an engine.

    Args:
        model: a path or a packaged model's name.
        progress: told how far reading is.

    Raises:
        ModelNotFoundError: nothing is there.
        FileFormatError: the files are damaged.
        UnsupportedError: the model is of a kind that is not served.
    """
    path = find_model(model)
    if path.is_dir():
        from trimtab.generate.huggingface import read_huggingface

        single = sorted(path.glob("*.gguf"))
        if (path / "config.json").exists() or not single:
            return read_huggingface(path, progress)
        if len(single) > 1:
            names = ", ".join(file.name for file in single)
            raise InputError(f"{path} holds several GGUF files ({names}). Name one of them.")
        path = single[0]
    from trimtab.generate.gguf_model import read_gguf_model

    return read_gguf_model(Path(path), progress)


def load(
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    engine: str = "auto",
    context: int | None = None,
    slots: int = 1,
    cache_dtype: str = "bfloat16",
    weights: str = "auto",
    threads: int | None = None,
    prefix_bytes: int = 256 << 20,
    progress: Progress = silent,
) -> LanguageModel:
    """Load a language model.

    Args:
        model: a GGUF file, a Hugging Face folder, or a packaged model such as ``"smollm2"``.
        engine: ``auto``, ``native`` or ``jax``.
        context: longest sequence in tokens; None takes the model's, at most 4096.
        slots: sequences that can run at once.
        cache_dtype: element type of keys and values, ``bfloat16`` or ``float32``.
        weights: form of the JAX engine's weights: ``auto``, ``packed``, ``float32``, ``bfloat16``.
        threads: of the native engine; None means ``TRIMTAB_THREADS`` or all cores.
        prefix_bytes: memory for reusing prompt beginnings; 0 turns that off.
        progress: told how far loading is.

    Raises:
        ModelNotFoundError: nothing is there; the sentence says how to get it.
        FileFormatError: the files are damaged.
        UnsupportedError: the model is of a kind that is not served.
    """
    started = time.monotonic()
    checkpoint = open_checkpoint(model, progress)
    capacity = context or min(checkpoint.config.context, DEFAULT_CONTEXT)
    built = build_engine(
        checkpoint,
        engine=engine,
        slots=slots,
        capacity=capacity,
        cache_dtype=cache_dtype,
        weights=weights,
        threads=threads,
    )
    progress(f"Loaded in {time.monotonic() - started:.2f} s")
    return LanguageModel(checkpoint, built, prefix_bytes=prefix_bytes)
