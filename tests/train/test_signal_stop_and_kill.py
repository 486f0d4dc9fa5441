"""A run that is killed or told to stop continues as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trimtab.train import read_metrics

# A run with everything that has state: data order, dropout keys, momentum, averages, early stop.
SCRIPT = """
import sys, time
import equinox as eqx, jax, jax.numpy as jnp, numpy as np, optax
from trimtab import train
from trimtab.train.optimizers import vr

directory, steps, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
rng = np.random.default_rng(0)
x = rng.normal(size=(96, 8)).astype("f")
arrays = {"x": x, "y": (x @ rng.normal(size=8)).astype("f")}

def loss(model, batch, key):
    kept = jax.random.bernoulli(key, 0.9, batch["x"].shape)
    return jnp.square(jax.vmap(model)(batch["x"] * kept)[:, 0] - batch["y"])

step = train.training_step(
    loss, vr(optax.adam(0.02), decay=0.9), groups=4, ema_decay=0.99, donate=True
)

def slow(state, batch):
    time.sleep(pause)
    return step(state, batch)

state = step.initial_state(eqx.nn.MLP(8, 1, 16, 1, key=jax.random.key(0)), jax.random.key(1))
print("ready", flush=True)
with train.Checkpoints(directory + "/checkpoints", keep_last=2) as checkpoints:
    result = train.fit(
        slow, state, train.training_batches(arrays, 16, seed=3), steps=steps,
        checkpoints=checkpoints, checkpoint_every=5, resume=True, log_every=1,
        sinks=[train.JsonLines(directory + "/metrics.jsonl")],
    )
weights = [leaf for leaf in jax.tree.leaves(eqx.filter(result.state, eqx.is_inexact_array))]
print(result.stopped, float(sum(jnp.sum(leaf) for leaf in weights)), flush=True)
"""


def start(directory: Path, steps: int, pause: float) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[2] / ".jax_cache")
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(directory), str(steps), str(pause)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finished(process: subprocess.Popen) -> str:
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return out.split("ready\n", 1)[1].strip()


def losses(directory: Path) -> list[tuple[int, float]]:
    records = read_metrics(directory / "metrics.jsonl")
    return [(record["step"], record["train/loss"]) for record in records]


def killed_runs_end_like_the_whole(
    tmp_path: Path, kills: int, steps: int, pause: float, seed: int = 0
) -> None:
    whole = finished(start(tmp_path / "whole", steps, 0.0))
    chance = random.Random(seed)
    done = 0
    broken = tmp_path / "broken"
    while done < kills:
        process = start(broken, steps, pause)
        assert process.stdout is not None
        process.stdout.readline()
        # Often enough past the first checkpoint that the run gets on, and sometimes inside one.
        time.sleep(chance.uniform(0.1, 0.9))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            done += 1
        process.communicate(timeout=60)
        if process.returncode == 0:
            break
    survived = finished(start(broken, steps, 0.0))
    assert survived == whole
    assert losses(broken) == losses(tmp_path / "whole")
    assert done == kills


def test_two_kills_leave_the_loss_curve_unchanged_to_the_last_bit(tmp_path: Path) -> None:
    killed_runs_end_like_the_whole(tmp_path, kills=2, steps=60, pause=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_fifty_kills_in_five_runs_leave_every_loss_unchanged(tmp_path: Path, seed: int) -> None:
    killed_runs_end_like_the_whole(tmp_path, kills=10, steps=400, pause=0.02, seed=seed)


def test_sigterm_saves_and_ends_cleanly_and_the_rest_follows(tmp_path: Path) -> None:
    whole = finished(start(tmp_path / "whole", 60, 0.0))
    process = start(tmp_path / "stopped", 60, 0.05)
    assert process.stdout is not None
    process.stdout.readline()
    deadline = time.monotonic() + 60
    while not (tmp_path / "stopped" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert out.startswith("signal")
    written = len(losses(tmp_path / "stopped"))
    assert 0 < written < 60
    # Nothing was computed twice: the checkpoint is that of the last step.
    steps = sorted(
        int(path.name) for path in (tmp_path / "stopped" / "checkpoints").iterdir() if path.is_dir()
    )
    assert steps[-1] == written
    resumed = finished(start(tmp_path / "stopped", 60, 0.0))
    assert resumed == whole
    assert json.dumps(losses(tmp_path / "stopped")) == json.dumps(losses(tmp_path / "whole"))
