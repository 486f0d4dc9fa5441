"""What ``import trimtab`` may load."""

import json
import subprocess
import sys

import pytest

import trimtab

HEAVY = {"jax", "torch", "numpy", "ray", "matplotlib", "transformers", "flax", "rich", "click"}


def loaded_by(statement):
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy_and_few_modules():
    bare = loaded_by("pass")
    loaded = loaded_by("import trimtab") - bare
    assert not loaded & HEAVY
    assert {name for name in loaded if name.startswith("trimtab")} == {"trimtab"}
    assert len(loaded) <= 30


@pytest.mark.parametrize(
    "module", ["trimtab.cli", "trimtab.errors", "trimtab.reproduce", "trimtab.hardware"]
)
def test_a_light_module_loads_neither_jax_nor_torch(module):
    assert not loaded_by(f"import {module}") & {"jax", "torch", "ray", "matplotlib", "transformers"}


ROOMS = "kernels graph models envs reduce place simulate train generate selfplay reproduce".split()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_loads_no_optional_package(room):
    optional = {
        "torch",
        "ray",
        "matplotlib",
        "transformers",
        "flax",
        "iree",
        "amaranth",
        "gymnasium",
        "starlette",
        "gguf",
        "tokenizers",
        "tensorboardX",
    }
    assert not loaded_by(f"import trimtab.{room}") & optional


def test_every_public_name_can_be_had():
    for name in trimtab.__all__:
        assert getattr(trimtab, name) is not None
    assert set(trimtab.__all__) <= set(dir(trimtab))
    assert len(trimtab.__all__) <= 30


def test_a_missing_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'trimtab' has no attribute 'captrue'"):
        _ = trimtab.captrue  # pyright: ignore
