# %% [markdown]
# # Train a Fourier encoder on generated long-range tasks
#
# ListOps and Pathfinder are generated, so this needs no download. Every result is printed beside
# the accuracy of an answer that needs no learning.
#
#     python examples/fnet_long_range.py listops --mixer hybrid --steps 5000
#     python examples/fnet_long_range.py pathfinder32 --mixer fourier --steps 2000

# %%
from __future__ import annotations

import argparse

import jax
import numpy as np
import optax

from trimtab.models import Classifier, Encoder, EncoderConfig, hybrid, trainable
from trimtab.train import training_batches, training_step
from trimtab.train.language import accuracy, classification_loss
from trimtab.train.tasks import (
    PATHFINDER,
    TOKENS,
    generate_listops,
    generate_pathfinder,
    root_operator_accuracy,
)


# %%
def listops(train: int, test: int) -> tuple[dict, dict, int, int, float]:
    """Expressions of 100 to 500 tokens: arrays, vocabulary, classes and the trivial accuracy."""
    parts = [
        generate_listops(count, shortest=100, longest=500, seed=seed)
        for seed, count in enumerate((train, test))
    ]
    trivial = root_operator_accuracy(*parts)
    arrays = [
        {"ids": p["ids"], "segments": np.zeros_like(p["ids"]), "labels": p["labels"]} for p in parts
    ]
    return arrays[0], arrays[1], len(TOKENS), 10, trivial


def pathfinder(task: str, train: int, test: int) -> tuple[dict, dict, int, int, float]:
    """Images as sequences of pixels, 16 shades and a leading token that is pooled."""
    arrays = []
    for seed, count in enumerate((train, test)):
        drawn = generate_pathfinder(count, task, seed=seed)
        pixels = 1 + (drawn["images"].reshape(count, -1) >> 4).astype(np.int32)
        ids = np.concatenate([np.zeros((count, 1), np.int32), pixels], axis=1)
        arrays.append({"ids": ids, "segments": np.zeros_like(ids), "labels": drawn["labels"]})
    return arrays[0], arrays[1], 17, 2, 0.5


# %%
def main() -> None:
    """Train one encoder and print its held-out accuracy as it learns."""
    parser = argparse.ArgumentParser(description="Train an encoder on a generated task.")
    parser.add_argument("task", choices=["listops", *PATHFINDER])
    parser.add_argument("--mixer", default="hybrid", choices=["fourier", "hybrid", "attention"])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--train", type=int, default=20_000, help="training examples")
    parser.add_argument("--test", type=int, default=1_000, help="held-out examples")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    if options.task == "listops":
        data = listops(options.train, options.test)
    else:
        data = pathfinder(options.task, options.train, options.test)
    train, test, words, classes, trivial = data
    config = EncoderConfig(
        vocabulary=words,
        width=128,
        feed_forward=512,
        depth=2,
        heads=4,
        max_tokens=train["ids"].shape[1],
        segments=1,
        dropout=0.0,
        mixers=hybrid(2, 1) if options.mixer == "hybrid" else options.mixer,
    )
    encoder_key, head_key, run_key = jax.random.split(jax.random.key(options.seed), 3)
    model = Classifier(Encoder(config, key=encoder_key), classes, key=head_key)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, options.steps // 10, options.steps)
    step = training_step(
        classification_loss, optax.adamw(schedule, weight_decay=0.01), trainable=trainable(model)
    )
    state = step.initial_state(model, run_key)
    batches = training_batches(train, options.batch, seed=options.seed)
    print(f"{options.task}, {options.mixer}: without learning {100 * trivial:.1f} %")
    for number in range(1, options.steps + 1):
        state, metrics = step(state, next(batches))
        if number % max(1, options.steps // 10) == 0:
            score = accuracy(state.model, test, batch_size=64)
            print(f"step {number}: loss {float(metrics['loss']):.3f}, held out {100 * score:.1f} %")


if __name__ == "__main__":
    main()
