"""Running experiments, each in a process of its own, so that none can take others down with it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from trimtab.errors import DeviceError, MissingExtraError, TrimtabError
from trimtab.progress import Progress, silent
from trimtab.reproduce import find, load
from trimtab.reproduce.experiment import Experiment
from trimtab.reproduce.outcome import SystemOutcome, describe, pack, unpack


def run_isolated(
    name: str,
    *,
    progress: Progress = silent,
    seed: int = 0,
    full: bool = False,
    command: Sequence[str] | None = None,
) -> SystemOutcome:
    """Run a system's experiment in a new process and wait for it.

    A fresh process frees the memory and the threads of the last system, and a crash in native code
    or a lack of memory stays that system's own failure.

    Args:
        name: the system.
        progress: told what the experiment is doing.
        seed: the first random seed.
        full: the full size.
        command: the program to start; by default this module in this Python.

    Raises:
        UnknownNameError: no system is called so.
    """
    if not find(name).available:
        return SystemOutcome(name, "unavailable", error="Not part of this version yet.")
    command = command or (sys.executable, "-m", "trimtab.reproduce.runner")
    arguments = [*command, name, str(seed), "full" if full else "quick"]
    start = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
        ) as process,
    ):
        try:
            assert process.stdout is not None
            final = _listen(process.stdout, progress)
        except BaseException:
            process.kill()
            raise
        code = process.wait()
        seconds = time.perf_counter() - start
        if final is None:
            log.seek(0)
            return _died(name, code, seconds, log.read())
    result = unpack(final)
    return SystemOutcome(
        system=name,
        status=final["status"],
        seconds=seconds,
        rows=result.rows,
        figures=result.figures,
        about=final["about"],
        error=final["error"],
        details=final["details"],
    )


def run_here(
    experiment: Experiment, *, progress: Progress = silent, seed: int = 0, full: bool = False
) -> SystemOutcome:
    """Run an experiment in this process and turn what it raises into an outcome.

    Args:
        experiment: what to run.
        progress: told what the experiment is doing.
        seed: the first random seed.
        full: the full size.
    """
    about = describe(experiment)
    start = time.perf_counter()
    try:
        result = experiment.run(progress, seed, full)
    except (MissingExtraError, DeviceError) as error:
        return SystemOutcome(experiment.system, "unavailable", about=about, error=str(error))
    except Exception as error:
        return SystemOutcome(
            experiment.system,
            "failed",
            seconds=time.perf_counter() - start,
            about=about,
            error=_one_line(error),
            details=traceback.format_exc(),
        )
    return SystemOutcome(
        system=experiment.system,
        status="ok",
        seconds=time.perf_counter() - start,
        rows=result.rows,
        figures=result.figures,
        about=about,
    )


def _listen(lines: Iterable[str], progress: Progress) -> dict[str, Any] | None:
    """Pass progress on until the line with the result; None if the process ends without one."""
    for line in lines:
        message = json.loads(line)
        if "progress" in message:
            progress(*message["progress"])
        else:
            return message["outcome"]
    return None


def _died(name: str, code: int, seconds: float, log: str) -> SystemOutcome:
    why = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    memory = " (often a lack of memory)" if code == -9 else ""
    return SystemOutcome(
        system=name,
        status="failed",
        seconds=seconds,
        error=f"The experiment's process ended {why}{memory} before it reported.",
        details=log[-8000:],
    )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if len(text) > 300:
        text = text[:299] + "…"
    return text if isinstance(error, TrimtabError) else f"{type(error).__name__}: {text}"


def _serve(name: str, seed: int, full: bool, stream: TextIO) -> None:
    """Run one experiment in this process and write JSON lines for the one that waits."""

    def send(message: dict[str, Any]) -> None:
        stream.write(json.dumps(message, allow_nan=False) + "\n")
        stream.flush()

    # A loop may report thousands of times a second; the reader shows ten.
    last_at, last_message = 0.0, ""

    def progress(message: str, done: float = 0.0, total: float = 0.0) -> None:
        nonlocal last_at, last_message
        now = time.monotonic()
        if message == last_message and now - last_at < 0.1:
            return
        last_at, last_message = now, message
        numbers = [float(x) if math.isfinite(x) else 0.0 for x in (done, total)]
        send({"progress": [message, *numbers]})

    progress("importing")
    try:
        experiment = load(name)
    except MissingExtraError as error:
        outcome = SystemOutcome(name, "unavailable", error=str(error))
    except Exception as error:
        details = traceback.format_exc()
        outcome = SystemOutcome(name, "failed", error=_one_line(error), details=details)
    else:
        outcome = run_here(experiment, progress=progress, seed=seed, full=full)
    send(
        {
            "outcome": {
                "status": outcome.status,
                "about": dict(outcome.about),
                "error": outcome.error,
                "details": outcome.details,
                **pack(outcome),
            }
        }
    )


def _main() -> None:
    name, seed, size = sys.argv[1:]
    # Results own the real standard output; what an experiment prints joins the log.
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _serve(name, int(seed), size == "full", stream)


if __name__ == "__main__":
    _main()
