"""Recipes that ``trimtab train`` runs. A new one is a module and a line in ``RECIPES``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trimtab.errors import unknown_name


@dataclass(frozen=True)
class Recipe:
    """A kind of training run.

    Args:
        name: what a configuration calls it.
        summary: one line for lists.
        module: exports ``run(context) -> Summary``; imported when the recipe is run, so it may lie
            in any room.
    """

    name: str
    summary: str
    module: str

    def load(self) -> Callable[..., Any]:
        """Import the recipe and return its ``run``."""
        return importlib.import_module(self.module).run


RECIPES: tuple[Recipe, ...] = (
    Recipe(
        "vision",
        "Classify images: Fashion-MNIST, digits or your own idx files.",
        "trimtab.train.recipes.vision",
    ),
    Recipe(
        "text", "Model text byte by byte with a small transformer.", "trimtab.train.recipes.text"
    ),
    Recipe(
        "rl",
        "Train an agent in an environment by PPO or A2C.",
        "trimtab.train.reinforcement.recipe",
    ),
)


def find_recipe(name: str) -> Recipe:
    """Return the recipe of that name.

    Raises:
        UnknownNameError: there is none.
    """
    for recipe in RECIPES:
        if recipe.name == name:
            return recipe
    raise unknown_name("recipe", name, (recipe.name for recipe in RECIPES))
