"""One thread steps the batch; requests and events cross to it and back through queues."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Sequence

from trimtab.errors import TrimtabError
from trimtab.generate.batch import Event, Request, Running
from trimtab.generate.language_model import LanguageModel

_LOG = logging.getLogger(__name__)


class QueueFullError(TrimtabError):
    """Too many requests wait already."""


class Answer:
    """A running request seen from the event loop.

    Attributes:
        running: the sequence.
        events: what happened, in order; ends with an event that has ``finish``.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.running: Running | None = None
        self._loop = loop

    def emit(self, event: Event) -> None:
        """Hand an event to the loop, from the worker's thread."""
        # The loop may close between a check and the call, when the server shuts down.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)


class Worker:
    """Steps a model's batch while there is work and sleeps otherwise.

    Args:
        model: what to run.
        queue_limit: how many requests may wait for a slot.
    """

    def __init__(self, model: LanguageModel, queue_limit: int) -> None:
        self.model = model
        self.queue_limit = queue_limit
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="trimtab-batch", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Cancel everything and end the thread."""
        self.model.batch.cancel_all()
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout=30)

    def submit(self, requests: Sequence[Request]) -> list[Answer]:
        """Queue requests that belong together; call it on the event loop's thread.

        Raises:
            QueueFullError: they do not all fit the queue.
            InputError: one of them can never run.
        """
        batch = self.model.batch
        for request in requests:
            batch.check(request)
        with self._wake:
            free = self.model.engine.slots - batch.running
            if batch.waiting + len(requests) > self.queue_limit + max(free, 0):
                raise QueueFullError(
                    f"{batch.waiting} requests wait already; the queue holds {self.queue_limit}. "
                    "Try again later."
                )
            answers = [Answer(asyncio.get_running_loop()) for _ in requests]
            started: list[Running] = []
            try:
                for request, answer in zip(requests, answers, strict=True):
                    answer.running = batch.submit(request, answer.emit)
                    started.append(answer.running)
            except BaseException:
                for running in started:
                    running.cancel()
                raise
            finally:
                self._wake.notify()
        return answers

    def cancel(self, answers: Sequence[Answer]) -> None:
        """Give up requests; their slots are free before the next step."""
        for answer in answers:
            if answer.running is not None and answer.running.finish is None:
                answer.running.cancel()
        with self._wake:
            self._wake.notify()

    def _run(self) -> None:
        batch = self.model.batch
        while True:
            with self._wake:
                while batch.idle and not self._stopping:
                    self._wake.wait()
                if self._stopping:
                    batch.drop_cancelled()
                    return
            try:
                batch.step()
            except Exception as error:
                _LOG.exception("A step failed; every running request is ended")
                batch.fail_running(error)
