"""Continuous batching: every step runs one token of each decoding sequence and a prompt chunk."""

from __future__ import annotations

import dataclasses
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

import numpy as np

from trimtab.errors import InputError
from trimtab.generate.engine import CHUNK, Engine
from trimtab.generate.grammar import Constraint
from trimtab.generate.prefix import PrefixCache
from trimtab.generate.sampling import (
    SamplingOptions,
    adjust,
    biased,
    choose,
    log_softmax,
    top_log_probabilities,
    uniform,
)
from trimtab.generate.streaming import TextStream
from trimtab.generate.tokenizer import Tokenizer


class ContextLengthError(InputError):
    """A prompt is longer than the context."""


# Float32 logits of one call stay below 32 MB.
_LOGIT_BUDGET = 2**23


@dataclasses.dataclass(frozen=True)
class Request:
    """What to continue, and how.

    Attributes:
        tokens: the prompt.
        max_tokens: most tokens to generate; 0 only evaluates the prompt.
        options: how to choose tokens.
        stops: texts that end generation.
        top: how many alternatives to report for each token; None reports no log-probabilities.
        echo: report log-probabilities of the prompt too.
        echo_start: first prompt token to report; pages before it may come from the prefix cache.
        grammar: constraint source from :mod:`trimtab.generate.grammar`, or None.
        ignore_end: do not stop at the model's end tokens.
        choice: number of this answer among several to the same prompt; draws differ by it.
        embed: average the final hidden states of the prompt instead of generating.
    """

    tokens: tuple[int, ...]
    max_tokens: int = 128
    options: SamplingOptions = dataclasses.field(default_factory=SamplingOptions)
    stops: tuple[str, ...] = ()
    top: int | None = None
    echo: bool = False
    echo_start: int = 0
    grammar: str | None = None
    ignore_end: bool = False
    choice: int = 0
    embed: bool = False


@dataclasses.dataclass(frozen=True)
class TokenLog:
    """One token's log-probability, and the best alternatives with theirs."""

    token: int
    log_probability: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Event:
    """News of one sequence.

    Attributes:
        text: text that became certain.
        token: the token generated in this step, or None.
        logs: log-probabilities that came with it.
        finish: ``stop``, ``length``, ``cancelled`` or ``error`` at the end, else None.
        embedding: float32 ``[hidden]`` at the end of an embedding request.
    """

    text: str = ""
    token: int | None = None
    logs: tuple[TokenLog, ...] = ()
    finish: str | None = None
    embedding: np.ndarray | None = None


@dataclasses.dataclass
class Timing:
    """Seconds on the monotonic clock; 0 until reached."""

    submitted: float = 0.0
    admitted: float = 0.0
    first_token: float = 0.0
    finished: float = 0.0


class Running:
    """One sequence on its way through the batch.

    Attributes:
        request: what was asked.
        tokens: prompt and generated tokens.
        reused: prompt tokens whose keys and values were found in the prefix cache.
        finish: why it ended, or None.
        error: what went wrong, or None.
        timing: when things happened.
    """

    def __init__(
        self, request: Request, tokenizer: Tokenizer, emit: Callable[[Event], None]
    ) -> None:
        self.request = request
        self.tokens = list(request.tokens)
        self.done = 0
        self.slot = -1
        self.reused = 0
        self.generated: Counter[int] = Counter()
        self.finish: str | None = None
        self.error: Exception | None = None
        self.cancelled = False
        self.timing = Timing(submitted=time.monotonic())
        self.stream = TextStream(tokenizer, request.stops)
        self.constraint: Constraint | None = None
        seed = request.options.seed
        self.seed = secrets.randbits(63) if seed is None else seed
        self.row_before: np.ndarray | None = None
        self.hidden_sum: np.ndarray | None = None
        self.emit = emit

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.tokens)

    @property
    def generated_tokens(self) -> list[int]:
        """Tokens generated so far."""
        return self.tokens[self.prompt_length :]

    def cancel(self) -> None:
        """Ask that the sequence end before the next step."""
        self.cancelled = True


class Batch:
    """Runs any number of sequences on an engine's slots.

    ``submit`` and ``Running.cancel`` may be called from any thread; ``step`` from one.

    Args:
        engine: runs the model.
        tokenizer: of the model.
        prefix_bytes: memory for the prefix cache; 0 turns it off.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, *, prefix_bytes: int = 256 << 20
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.prefix = PrefixCache(engine, prefix_bytes)
        self._lock = threading.Lock()
        self._waiting: deque[Running] = deque()
        self._running: list[Running] = []
        self._free = list(range(engine.slots))[::-1]
        self.steps = 0
        self.prompt_tokens = 0
        self.generated_tokens = 0

    @property
    def waiting(self) -> int:
        """Sequences without a slot yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences in a slot."""
        return len(self._running)

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not self._waiting and not self._running

    def check(self, request: Request) -> None:
        """Raise if a request can never run here.

        Raises:
            InputError: the prompt is empty, holds unknown ids, or does not fit the context.
        """
        if not request.tokens:
            raise InputError("The prompt has no tokens. Send at least one character.")
        vocabulary = self.engine.config.vocabulary
        if min(request.tokens) < 0 or max(request.tokens) >= vocabulary:
            raise InputError(f"The prompt holds token ids outside 0 to {vocabulary - 1}.")
        for token in request.options.logit_bias:
            if not 0 <= token < vocabulary:
                raise InputError(f"logit_bias names token {token}; ids end at {vocabulary - 1}.")
        if request.max_tokens < 0:
            raise InputError(f"max_tokens must not be negative, not {request.max_tokens}.")
        room = self.engine.capacity - (1 if request.max_tokens else 0)
        if len(request.tokens) > room:
            raise ContextLengthError(
                f"The prompt has {len(request.tokens)} tokens, but the context holds "
                f"{self.engine.capacity}. Shorten it, or start with a larger context."
            )

    def submit(
        self, request: Request, emit: Callable[[Event], None] = lambda event: None
    ) -> Running:
        """Queue a request.

        Args:
            request: what to do.
            emit: called by ``step`` with each event; must not block.

        Raises:
            InputError: the request can never run here.
        """
        self.check(request)
        running = Running(request, self.tokenizer, emit)
        if request.grammar is not None:
            size = self.engine.config.vocabulary
            running.constraint = Constraint(self.tokenizer, request.grammar, size)
        with self._lock:
            self._waiting.append(running)
        return running

    def step(self) -> None:
        """Drop cancelled sequences, admit waiting ones, and run one batch."""
        self.drop_cancelled()
        self._admit()
        self._embed_chunk()
        plan = self._plan()
        if plan:
            self._run(plan)
        self._running = [running for running in self._running if running.finish is None]

    def _run(self, plan: Sequence[tuple[Running, int, int, int]]) -> None:
        tokens, slots, positions, outputs = _layout(plan)
        logits = self.engine.step(tokens, slots, positions, outputs)
        self.steps += 1
        row = 0
        for running, start, stop, wanted in plan:
            running.done = stop
            self.prefix.store(running.slot, running.tokens, start, stop)
            mine = logits[row : row + wanted]
            row += wanted
            try:
                self._advance(running, start, stop, mine)
            except Exception as error:
                running.error = error
                self._finish(running, "error")

    def _embed_chunk(self) -> None:
        """Run a chunk of the first embedding request, which needs hidden states, not logits."""
        waiting = [running for running in self._running if running.request.embed]
        if not waiting:
            return
        running = waiting[0]
        stop = min(running.done + CHUNK, running.prompt_length)
        tokens, slots, positions, _ = _layout([(running, running.done, stop, 0)])
        part = self.engine.hidden(tokens, slots, positions).sum(axis=0, dtype=np.float64)
        before = running.hidden_sum
        total = part if before is None else before + part
        running.hidden_sum = total
        running.done = stop
        self.steps += 1
        if stop == running.prompt_length:
            mean = (total / running.prompt_length).astype(np.float32)
            self._finish(running, "stop", Event(embedding=mean))

    def cancel_all(self) -> None:
        """Cancel everything that waits or runs."""
        with self._lock:
            for running in (*self._waiting, *self._running):
                running.cancel()

    def fail_running(self, error: Exception) -> None:
        """End every sequence in a slot with an error, after a step that failed as a whole."""
        for running in self._running:
            if running.finish is None:
                running.error = error
                self._finish(running, "error")
        self._running = []

    def drop_cancelled(self) -> None:
        """Free what cancelled sequences hold; ``step`` does it too."""
        with self._lock:
            gone = [running for running in self._waiting if running.cancelled]
            for running in gone:
                self._waiting.remove(running)
        for running in gone:
            self._finish(running, "cancelled")
        for running in self._running:
            if running.cancelled:
                self._finish(running, "cancelled")
        self._running = [running for running in self._running if running.finish is None]

    def _admit(self) -> None:
        while self._free:
            with self._lock:
                if not self._waiting:
                    return
                running = self._waiting.popleft()
            running.slot = self._free.pop()
            running.timing.admitted = time.monotonic()
            if not running.request.embed:
                running.reused = self.prefix.restore(running.slot, _reusable(running))
                running.done = running.reused
            self._running.append(running)

    def _plan(self) -> list[tuple[Running, int, int, int]]:
        """Choose (sequence, first position, end, logits wanted) for one call."""
        plan, room = [], CHUNK
        logit_room = max(1, _LOGIT_BUDGET // self.engine.config.vocabulary)
        generating = [running for running in self._running if not running.request.embed]
        ordered = sorted(generating, key=lambda running: len(running.tokens) - running.done > 1)
        for running in ordered:
            left = len(running.tokens) - running.done
            count = min(left, room)
            if running.request.echo and left > 1:
                count = min(count, logit_room)
            if count < 1:
                break
            end = running.done + count
            wanted = max(_echoed_rows(running, running.done, end), int(count == left))
            plan.append((running, running.done, end, wanted))
            room -= count
            logit_room = max(0, logit_room - wanted)
        return plan

    def _advance(self, running: Running, start: int, stop: int, logits: np.ndarray) -> None:
        request = running.request
        in_prompt = max(0, min(stop, running.prompt_length) - start)
        self.prompt_tokens += in_prompt
        if _echoed_rows(running, start, stop):
            self._echo(running, start, stop, logits)
        if stop < len(running.tokens):
            return
        if request.max_tokens == 0:
            self._finish(running, "length")
            return
        self._sample(running, logits[-1])

    def _echo(self, running: Running, start: int, stop: int, logits: np.ndarray) -> None:
        """Report the prompt tokens of a chunk; each is predicted by the row before it."""
        first, top = stop - len(logits), running.request.top or 0
        rows, logs = log_softmax(logits), []
        for position in range(max(start, running.request.echo_start), stop):
            token = running.tokens[position]
            row = position - 1 - first
            before = rows[row] if row >= 0 else running.row_before
            if before is None:
                logs.append(TokenLog(token, None))
                continue
            best = tuple(top_log_probabilities(before, top))
            logs.append(TokenLog(token, float(before[token]), best))
        running.row_before = rows[-1].copy()
        running.emit(Event(logs=tuple(logs)))

    def _sample(self, running: Running, logits: np.ndarray) -> None:
        request, constraint = running.request, running.constraint
        if not running.timing.first_token:
            running.timing.first_token = time.monotonic()
        allowed = None if constraint is None else constraint.allowed()
        open_ended = logits
        if request.ignore_end:
            open_ended = logits.copy()
            open_ended[list(self.tokenizer.ends)] = -np.inf
        final = adjust(open_ended, request.options, running.tokens, running.generated, allowed)
        place = len(running.tokens)
        token = choose(final, request.options, lambda: uniform(running.seed, request.choice, place))
        logs: tuple[TokenLog, ...] = ()
        if request.top is not None:
            row = log_softmax(biased(logits, request.options))
            best = tuple(top_log_probabilities(row, request.top))
            logs = (TokenLog(token, float(row[token]), best),)
        self.generated_tokens += 1
        running.tokens.append(token)
        running.generated[token] += 1
        if token in self.tokenizer.ends and not request.ignore_end:
            self._finish(running, "stop", Event(token=token, logs=logs))
            return
        text = running.stream.push(token)
        if constraint is not None:
            constraint.accept(token)
        event = Event(text=text, token=token, logs=logs)
        count = len(running.tokens) - running.prompt_length
        if running.stream.stopped or (constraint is not None and constraint.finished):
            self._finish(running, "stop", event)
        elif count >= request.max_tokens or len(running.tokens) >= self.engine.capacity:
            self._finish(running, "length", event)
        else:
            running.emit(event)

    def _finish(self, running: Running, reason: str, event: Event = Event()) -> None:
        running.finish = reason
        running.timing.finished = time.monotonic()
        if running.slot >= 0:
            self._free.append(running.slot)
            running.slot = -1
        rest = running.stream.finish()
        running.emit(dataclasses.replace(event, text=event.text + rest, finish=reason))


def _reusable(running: Running) -> list[int]:
    """Return the tokens whose keys may come from the prefix cache, and one more."""
    if running.request.echo:
        return running.tokens[: running.request.echo_start]
    return running.tokens


def _echoed_rows(running: Running, start: int, stop: int) -> int:
    """Return how many rows before ``stop`` predict or end the reported part of the prompt."""
    if not running.request.echo or start >= running.prompt_length:
        return 0
    return max(0, stop - max(start, running.request.echo_start - 1))


def _layout(
    plan: Sequence[tuple[Running, int, int, int]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the arrays of a ragged batch."""
    tokens: list[int] = []
    slots: list[int] = []
    positions: list[int] = []
    outputs: list[int] = []
    for running, start, stop, wanted in plan:
        end = len(tokens) + stop - start
        tokens += running.tokens[start:stop]
        slots += [running.slot] * (stop - start)
        positions += range(start, stop)
        outputs += range(end - wanted, end)
    return (
        np.asarray(tokens, np.int32),
        np.asarray(slots, np.int32),
        np.asarray(positions, np.int32),
        np.asarray(outputs, np.int32),
    )
