"""Image classification on data that is on the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from trimtab.errors import unknown_name
from trimtab.train.config import section
from trimtab.train.data import evaluation_batches, training_batches
from trimtab.train.datasets import load_images
from trimtab.train.recipes.supervised import Context, Summary, Task, run_task

MODELS = ("perceptron", "convolution")


@dataclass(frozen=True)
class VisionData:
    """``[data]`` of the vision recipe.

    Args:
        dataset: ``"auto"``, ``"fashion-mnist"``, ``"digits"`` or ``"idx"``.
        directory: folder of idx files; empty for the installed Fashion-MNIST.
        validation: training examples set apart; 0 for a twelfth.
    """

    dataset: str = "auto"
    directory: str = ""
    validation: int = 0


@dataclass(frozen=True)
class VisionModel:
    """``[model]`` of the vision recipe.

    Args:
        name: ``"perceptron"`` or ``"convolution"``.
        width: hidden units, or channels of the first convolution.
        depth: hidden layers of the perceptron.
    """

    name: str = "convolution"
    width: int = 16
    depth: int = 2


class Perceptron(eqx.Module):
    """A multilayer perceptron on flattened pixels."""

    layers: eqx.nn.MLP

    def __init__(self, pixels: int, classes: int, model: VisionModel, *, key: Array) -> None:
        self.layers = eqx.nn.MLP(pixels, classes, model.width, model.depth, key=key)

    def __call__(self, image: Float[Array, "rows columns channels"]) -> Float[Array, " classes"]:
        return self.layers(image.reshape(-1))


class Convolution(eqx.Module):
    """Two strided convolutions, an average over positions and a linear layer."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __init__(self, channels: int, classes: int, model: VisionModel, *, key: Array) -> None:
        first_key, second_key, head_key = jax.random.split(key, 3)
        width = model.width
        self.first = eqx.nn.Conv2d(channels, width, 3, 2, 1, key=first_key)
        self.second = eqx.nn.Conv2d(width, 2 * width, 3, 2, 1, key=second_key)
        self.head = eqx.nn.Linear(2 * width, classes, key=head_key)

    def __call__(self, image: Float[Array, "rows columns channels"]) -> Float[Array, " classes"]:
        features = jax.nn.relu(self.first(jnp.moveaxis(image, -1, 0)))
        features = jax.nn.relu(self.second(features))
        return self.head(features.mean((1, 2)))


def cross_entropy(model: Any, batch: dict[str, Array], key: Array | None = None) -> tuple:
    """Return each example's cross-entropy, and whether it is classified correctly."""
    logits = jax.vmap(model)(batch["image"]).astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return loss, {"accuracy": jnp.argmax(logits, axis=1) == batch["label"]}


def metrics(model: Any, batch: dict[str, Array]) -> dict[str, Array]:
    """Return each example's loss and correctness."""
    loss, others = cross_entropy(model, batch)
    return {"loss": loss, **others}


def run(context: Context) -> Summary:
    """Train a classifier; see :class:`VisionData` and :class:`VisionModel` for its tables."""
    config = context.config
    data = section(VisionData, config.data, "data.")
    settings = section(VisionModel, config.model, "model.")
    splits = load_images(
        data.dataset,
        directory=data.directory or None,
        validation=data.validation or None,
        seed=config.seed,
    )
    images = splits.train.images
    key = jax.random.key(config.seed)
    if settings.name == "perceptron":
        pixels = images[0].size
        model: Any = Perceptron(pixels, splits.classes, settings, key=key)
    elif settings.name == "convolution":
        model = Convolution(images.shape[-1], splits.classes, settings, key=key)
    else:
        raise unknown_name("vision model", settings.name, MODELS)
    size = min(config.training.batch_size, 1024)
    task = Task(
        model=model,
        loss=cross_entropy,
        batches=training_batches(
            splits.train.arrays(), config.training.batch_size, seed=config.seed
        ),
        metrics=metrics,
        validation=lambda: evaluation_batches(splits.validation.arrays(), size),
        test=lambda: evaluation_batches(splits.test.arrays(), size),
        notes={"data": splits.name, "training examples": len(images)},
    )
    return run_task(context, task)
