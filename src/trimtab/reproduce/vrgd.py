"""Large-batch training by the gradient's signal-to-noise ratio (Jiang et al. 2023)."""

from __future__ import annotations

import math
from dataclasses import replace

from trimtab.progress import Progress
from trimtab.reproduce import large_batch as learning
from trimtab.reproduce.experiment import Experiment, Figure, Result, Row, compared
from trimtab.reproduce.linear_toy import STEPS, toy
from trimtab.reproduce.plot import Series, line_chart

# Rates that benchmarks/optimizers.py tuned on the validation split of Fashion-MNIST.
TUNED = {
    "8k": {
        "Momentum": 0.1,
        "VR-Momentum, paper clip": 0.1,
        "Adam": 0.02263,
        "VR-Adam, paper clip": 0.032,
        "VR-Adam, symmetric": 0.02263,
        "VR-Adam, symmetric, shuffled r": 0.02263,
        "LAMB": 0.04,
        "VR-LAMB, paper clip": 0.04,
        "Muon": 0.05,
    }
}
QUICK = ("Adam", "VR-Adam, paper clip", "VR-Adam, symmetric")
COMMAND = "trimtab reproduce vrgd"


def _toy_rows(progress: Progress, seed: int, seeds: int) -> tuple[list[Row], Figure]:
    rows = []
    outcomes = {}
    used = tuple(range(seed, seed + seeds))
    for clip in ("paper", "symmetric"):
        progress(f"toy regression, {clip} clip", len(outcomes), 2)
        runs = [toy(number, clip, groups=8) for number in used]
        outcomes[clip] = runs[0]
        worst = max(math.inf if run.steps is None else run.steps for run in runs)
        rows.append(
            compared(
                f"toy regression, {clip} clip: steps to tuned SGD's loss at step {STEPS}",
                "steps, worst seed",
                baseline=STEPS,
                ours=worst,
                better="lower",
                at_least=1.7 if clip == "symmetric" else None,
                paper="about 50 instead of 100",
                seeds=used,
                command=COMMAND,
                note="batch 2048, K=8, 150 learning rates for each method; all seeds: "
                + ", ".join(str(run.steps) for run in runs),
            )
        )
    numbers = list(range(1, STEPS + 1))
    figure = line_chart(
        "Toy regression at tuned learning rates",
        "step",
        "test loss",
        [
            Series("SGD", numbers, outcomes["paper"].plain_curve, dashed=True),
            Series("VR-SGD, paper clip [0.1, 1]", numbers, outcomes["paper"].curve),
            Series("VR-SGD, symmetric clip [0.1, 10]", numbers, outcomes["symmetric"].curve),
        ],
        log_y=True,
        alt="Test loss by step: the symmetric clip falls fastest, the paper's clip near SGD.",
    )
    return rows, figure


def _learning_rows(progress: Progress, seed: int, full: bool) -> list[Row]:
    task = learning.TASKS["8k"]
    name, _ = learning.load(task, "auto")
    if name != "fashion-mnist":
        # Digits has 1,300 training images: a smaller batch keeps the same number of groups.
        task = replace(task, batch=512)
    methods = tuple(TUNED["8k"]) if full else QUICK
    used = tuple(range(seed + 1, seed + 1 + (5 if full else 2)))
    sweep = learning.Sweep(task)
    results = {}
    for index, method in enumerate(methods):
        progress(f"{method} on {name}", index, len(methods))
        rate = sweep.best_rate(method) if full else TUNED["8k"][method]
        results[method] = [sweep.outcome(method, rate, number) for number in used]
    rows = []
    for method in methods:
        if not method.startswith("VR-"):
            continue
        base = method.removeprefix("VR-").partition(",")[0]
        ours, theirs = results[method], results[base]
        difference, error = learning.mean_and_error(
            100 * (a.test - b.test) for a, b in zip(ours, theirs)
        )
        train = [sum(o.train for o in outs) / len(outs) * 100 for outs in (theirs, ours)]
        test = [sum(o.test for o in outs) / len(outs) * 100 for outs in (theirs, ours)]
        note = (
            f"{name}, batch {task.batch}, {task.steps} steps; train accuracy {train[0]:.2f} -> "
            f"{train[1]:.2f} %; paired difference {difference:+.2f} +- {error:.2f} points; "
            + ("rates tuned in this run" if full else "rates tuned beforehand")
        )
        rows.append(
            Row(
                f"{method} against {base}, test accuracy",
                "%",
                paper="higher at every batch size (CIFAR-10, ImageNet)",
                baseline=test[0],
                ours=test[1],
                holds=bool(difference >= 2 * error) if len(used) >= 5 else None,
                seeds=used,
                command=COMMAND + (" --full" if full else ""),
                note=note,
            )
        )
    if "Muon" in results:
        for other in ("LAMB", "Adam"):
            mine, theirs = (
                sum(o.test for o in results[m]) / len(used) * 100 for m in ("Muon", other)
            )
            rows.append(
                Row(
                    f"for scale: Muon against {other}, test accuracy",
                    "%",
                    baseline=theirs,
                    ours=mine,
                    seeds=used,
                    command=COMMAND + " --full",
                )
            )
    return rows


def run(progress: Progress, seed: int, full: bool = False) -> Result:
    """Measure the toy regression and large-batch training of a small network."""
    rows, figure = _toy_rows(progress, seed, 10 if full else 5)
    return Result((*rows, *_learning_rows(progress, seed, full)), (figure,))


EXPERIMENT = Experiment(
    system="vrgd",
    title="Large-batch training by gradient signal-to-noise",
    source="Jiang, Liu, Ding, Guo, Lin: Accelerating Large Batch Training via Gradient Signal to "
    "Noise Ratio (GSNR), 2023, arXiv 2309.13681",
    claim="1 to 2 times faster large-batch training and a smaller generalisation gap for "
    "SGD, Momentum, Adam, LARS and LAMB (BERT, ImageNet, DLRM, on up to 768 GPUs)",
    baseline="the same optimizer without scaling, at a learning rate tuned on the same grid",
    quick="toy regression with 5 seeds; Fashion-MNIST at batch 8192 with 2 seeds at known rates",
    full="toy with 10 seeds; nine optimizers at batch 8192, rates tuned here, 5 seeds",
    run=run,
)
