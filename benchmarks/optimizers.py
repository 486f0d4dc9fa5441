"""Race optimizers at large batch sizes, each at its own tuned learning rate, with controls.

A small network on Fashion-MNIST (scikit-learn's digits where that is not installed). Every method
has the same steps and a nine-point learning-rate grid (factor square root of two, extended while
the best lies at an edge) tuned on a validation split with one seed; then fresh seeds are trained
at the chosen rate. "shuffled r" permutes the signal-to-noise factors inside each layer and
"constant r" replaces them by their mean: what these gain is not owed to the signal.

The sweep is long, so it keeps its runs in a file and continues from it:

    python benchmarks/optimizers.py --state optimizers-runs.json --minutes 3
    python benchmarks/optimizers.py --state optimizers-runs.json --json results.json

With --quick a few methods and one seed are tried, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from trimtab.files import atomic_file, cache_directory
from trimtab.hardware import provenance
from trimtab.reproduce import large_batch as learning

SEEDS = (1, 2, 3, 4, 5)
UNDER_TUNED = 0.25

# Task -> methods raced on it.
RACES = {
    "8k": tuple(learning.METHODS),
    "27k": (
        "Momentum",
        "VR-Momentum, paper clip",
        "Adam",
        "VR-Adam, paper clip",
        "VR-Adam, symmetric",
        "VR-Adam, symmetric, shuffled r",
        "LAMB",
        "VR-LAMB, paper clip",
        "Muon",
    ),
    "noise": (
        "Adam",
        "VR-Adam, paper clip",
        "VR-Adam, symmetric",
        "VR-Adam, symmetric, shuffled r",
    ),
}

# Compared pairwise at one rate that suits neither: a quarter of the base's best.
UNDER_TUNED_METHODS = {
    "Adam": ("VR-Adam, paper clip", "VR-Adam, symmetric", "VR-Adam, shuffled r",
             "VR-Adam, constant r", "VR-Adam, symmetric, shuffled r"),
    "Momentum": ("VR-Momentum, paper clip", "VR-Momentum, symmetric", "VR-Momentum, shuffled r",
                 "VR-Momentum, symmetric, shuffled r"),
}  # fmt: skip
WINDOWS = ("Momentum", "VR-Momentum, paper clip", "VR-Momentum, symmetric", "Adam",
           "VR-Adam, paper clip", "VR-Adam, symmetric")  # fmt: skip


class OutOfTime(Exception):
    """The time given by --minutes is over; the runs so far are kept."""


class TimedSweep(learning.Sweep):
    """A sweep that stops when the time is over and one that says what it trains."""

    def __init__(self, *args: object, deadline: float, console: Console) -> None:
        super().__init__(*args)
        self._deadline, self._console = deadline, console

    def outcome(self, method: str, rate: float, seed: int) -> learning.Outcome:
        """Train or recall a run."""
        if time.monotonic() > self._deadline:
            raise OutOfTime
        before = len(self.runs)
        outcome = super().outcome(method, rate, seed)
        if len(self.runs) > before:
            self._console.print(
                f"{self.task.name}: {method}, rate {rate:.4g}, seed {seed}: "
                f"validation {outcome.curve[-1]:.4f}"
            )
        return outcome


def row(sweep: learning.Sweep, method: str, rate: float, seeds: tuple[int, ...]) -> dict:
    """Return accuracies in percent and steps to the target over fresh seeds."""
    outcomes = [sweep.outcome(method, rate, seed) for seed in seeds]
    steps = [learning.steps_to_target(o, sweep.task.target) for o in outcomes]
    test, test_error = learning.mean_and_error(100 * o.test for o in outcomes)
    train, train_error = learning.mean_and_error(100 * o.train for o in outcomes)
    return {
        "method": method,
        "rate": rate,
        "seeds": list(seeds),
        "test": test,
        "test_error": test_error,
        "train": train,
        "train_error": train_error,
        "gap": train - test,
        "steps_to_target": steps,
        "per_seed_test": [100 * o.test for o in outcomes],
        "per_seed_train": [100 * o.train for o in outcomes],
        "signal": outcomes[0].signal,
    }


def paired(rows: dict[str, dict], method: str, base: str, split: str = "test") -> dict:
    """Return the mean difference to ``base`` over seeds, with its standard error."""
    ours, theirs = rows[method][f"per_seed_{split}"], rows[base][f"per_seed_{split}"]
    mean, error = learning.mean_and_error(a - b for a, b in zip(ours, theirs))
    return {"method": method, "base": base, "split": split, "difference": mean, "error": error}


def race(sweep: learning.Sweep, methods: tuple[str, ...], seeds: tuple[int, ...], points: int):
    """Tune and train every method of one task."""
    rows = {m: row(sweep, m, sweep.best_rate(m, (0,), points), seeds) for m in methods}
    bases = {m: m.removeprefix("VR-").partition(",")[0] for m in methods if m.startswith("VR-")}
    differences = [
        paired(rows, m, other, split)
        for m, base in bases.items()
        for other in (base, f"VR-{base}, shuffled r", f"VR-{base}, symmetric, shuffled r")
        if other in rows and other != m
        for split in ("test", "train")
    ]
    return {"target": sweep.task.target, "rows": list(rows.values()), "differences": differences}


def under_tuned(sweep: learning.Sweep, seeds: tuple[int, ...], points: int) -> dict:
    """Compare at a quarter of the base's best rate, the same for all."""
    result = {}
    for base, others in UNDER_TUNED_METHODS.items():
        rate = sweep.best_rate(base, (0,), points) * UNDER_TUNED
        rows = {m: row(sweep, m, rate, seeds) for m in (base, *others)}
        differences = [
            paired(rows, m, other, split)
            for m in others
            for other in (base, f"VR-{base}, shuffled r", f"VR-{base}, symmetric, shuffled r")
            if other != m
            for split in ("test", "train")
        ]
        result[base] = {"rate": rate, "rows": list(rows.values()), "differences": differences}
    return result


def table(title: str, result: dict) -> Table:
    """Lay a race out for the terminal."""
    shown = Table(title=title, title_justify="left")
    for name in ("method", "rate", "test %", "train %", "gap", f"steps to {result['target']:.0%}"):
        shown.add_column(name, justify="left" if name == "method" else "right")
    for entry in result["rows"]:
        steps = ", ".join("-" if s is None else str(s) for s in entry["steps_to_target"])
        error = "" if math.isnan(entry["test_error"]) else f" ± {entry['test_error']:.2f}"
        shown.add_row(
            entry["method"],
            f"{entry['rate']:.4g}",
            f"{entry['test']:.2f}{error}",
            f"{entry['train']:.2f}",
            f"{entry['gap']:.2f}",
            steps,
        )
    return shown


def main() -> None:
    """Run or continue the sweep and print its tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="PATH", help="write the tables there")
    parser.add_argument("--state", metavar="PATH", help="keep runs there and continue from it")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this long")
    parser.add_argument("--task", choices=(*RACES, "all"), default="all")
    parser.add_argument("--quick", action="store_true", help="few methods, one seed, three rates")
    options = parser.parse_args()
    # Continued runs would otherwise compile every method again.
    jax.config.update("jax_compilation_cache_dir", str(cache_directory("optimizers")))
    console = Console()
    deadline = time.monotonic() + options.minutes * 60
    dataset, _ = learning.load(learning.TASKS["8k"], "auto")
    seeds, points = (SEEDS[:1], 3) if options.quick else (SEEDS, 9)
    results: dict = {}
    try:
        for name in RACES if options.task == "all" else (options.task,):
            path = Path(f"{options.state}.{name}") if options.state else None
            sweep = TimedSweep(
                learning.TASKS[name], path, dataset, deadline=deadline, console=console
            )
            methods = RACES[name][:4] if options.quick else RACES[name]
            results[name] = race(sweep, methods, seeds, points)
            console.print(table(f"{name} on {dataset}", results[name]))
            if name == "8k" and not options.quick:
                results[name]["under_tuned"] = under_tuned(sweep, seeds, points)
                results[name]["windows"] = {m: sweep.window(m, (0,)) for m in WINDOWS}
            if options.quick:
                break
    except OutOfTime:
        console.print("Out of time; run the same command again to continue.")
        # A task that was not finished is left out rather than shown in part.
        results = {n: r for n, r in results.items() if n != "8k" or "windows" in r}
    if options.json and results:
        document = {
            "benchmark": "optimizers",
            "command": "python benchmarks/optimizers.py"
            + ("" if options.task == "all" else f" --task {options.task}")
            + (" --quick" if options.quick else ""),
            "dataset": dataset,
            "machine": provenance(devices=True),
            "tasks": results,
        }
        with atomic_file(options.json) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
