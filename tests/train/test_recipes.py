"""Configurations, data sets and the command, as a new user meets them."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import FileFormatError, InputError, UnknownNameError
from trimtab.train.config import Config, load_config, overridden, to_toml
from trimtab.train.datasets import load_bytes, load_images, read_idx
from trimtab.train.optimizers import OPTIMIZERS, optimizer_named
from trimtab.train.recipes import RECIPES, find_recipe
from trimtab.train.schedules import SHAPES, schedule_named

EXAMPLES = Path(__file__).parents[2] / "examples" / "train"
FASHION = Path("/usr/share/datasets/fashion-mnist")


def idx(array: np.ndarray, code: int) -> bytes:
    header = bytes([0, 0, code, array.ndim])
    return header + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@given(
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    kind=st.sampled_from([(0x08, ">u1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4")]),
    zipped=st.booleans(),
)
def test_idx_files_read_back(tmp_path_factory, shape: list[int], kind: tuple, zipped: bool) -> None:
    code, dtype = kind
    array = np.arange(int(np.prod(shape))).astype(dtype).reshape(shape)
    raw = idx(array, code)
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    assert np.array_equal(read_idx(path), array)


@given(data=st.binary(max_size=40))
def test_other_bytes_are_refused_not_crashed_on(tmp_path_factory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(data)
    # A header that happens to fit is fine; anything else must be this one kind of error.
    with contextlib.suppress(FileFormatError):
        read_idx(path)


@pytest.mark.skipif(not FASHION.is_dir(), reason="the package dataset-fashion-mnist is absent")
def test_fashion_mnist_is_read_whole() -> None:
    data = load_images("fashion-mnist", validation=5000)
    assert data.train.images.shape == (55_000, 28, 28, 1)
    assert data.test.labels.shape == (10_000,)
    assert np.bincount(data.test.labels).tolist() == [1000] * 10
    assert 0 <= data.train.images.min() < data.train.images.max() <= 1


def test_an_explicit_request_for_missing_data_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="Install the Debian package dataset-fashion-mnist"):
        load_images("fashion-mnist", directory=tmp_path)
    assert load_images("auto", directory=tmp_path).name == "digits"


def test_text_defaults_to_the_standard_library(tmp_path: Path) -> None:
    assert load_bytes([], limit=1000).shape == (1000,)
    (tmp_path / "a.txt").write_bytes(b"hello")
    assert bytes(load_bytes([str(tmp_path / "*.txt")])) == b"hello"
    with pytest.raises(InputError, match="No text matches"):
        load_bytes([str(tmp_path / "*.none")])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda p: p.stem)
def test_example_configurations_load_and_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    (tmp_path / "copy.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "copy.toml") == config
    assert find_recipe(config.recipe).load()


@given(
    value=st.one_of(
        st.integers(-(2**40), 2**40),
        st.booleans(),
        st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_overrides_take_toml_values(value: object) -> None:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    assert overridden({}, f"a.b={text}") == {"a": {"b": value}}
    assert overridden({}, "name=vr-adam") == {"name": "vr-adam"}


def test_mistakes_in_a_configuration_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('recipe = "vision"\n[optimizer]\nlearning_rat = 1\n')
    with pytest.raises(UnknownNameError, match=r"Did you mean 'optimizer\.learning_rate'"):
        load_config(path)
    path.write_text('recipe = "vision"\nsteps = "many"\n')
    with pytest.raises(InputError, match="steps must be of type int, got 'many'"):
        load_config(path)
    path.write_text("= broken")
    with pytest.raises(FileFormatError, match="is not TOML"):
        load_config(path)
    with pytest.raises(InputError, match="--set needs key=value"):
        overridden({}, "nothing")


@pytest.mark.parametrize("name", [*OPTIMIZERS, *(f"vr-{name}" for name in OPTIMIZERS)])
def test_every_named_optimizer_builds(name: str) -> None:
    assert optimizer_named(name, 0.1).init({"w": np.ones((3, 2), np.float32)}) is not None


def test_optimizer_options_are_checked() -> None:
    with pytest.raises(InputError, match="has no option 'momentun'"):
        optimizer_named("sgd", 0.1, momentun=0.9)
    with pytest.raises(InputError, match="needs the optimizer 'vr-sgd'"):
        optimizer_named("sgd", 0.1, vr={"gamma": 0.2})


@pytest.mark.parametrize("shape", SHAPES)
def test_schedules_warm_up_to_the_peak_and_fall(shape: str) -> None:
    schedule = schedule_named(shape, 0.5, 100, warmup=0.1)
    values = [float(schedule(step)) for step in range(101)]
    assert values[0] == 0.0
    assert max(values) == pytest.approx(0.5)
    assert values.index(max(values)) == 10
    assert values[-1] <= 0.5


def test_the_command_trains_resumes_and_reports(tmp_path: Path) -> None:
    from trimtab.cli import group

    out = tmp_path / "run"
    arguments = ["train", str(EXAMPLES / "vision.toml"), "--json", "--quiet", "-o", str(out)]
    for override in (
        "data.dataset=digits", "model.name=perceptron", "steps=6", "run.evaluate_every=3",
        "run.log_every=2", "training.batch_size=64", "optimizer.name=vr-adam",
        "training.telemetry=true", "run.tensorboard=true",
    ):  # fmt: skip
        arguments += ["--set", override]
    first = CliRunner().invoke(group, arguments)
    assert first.exit_code == 0, first.output
    report = json.loads(first.stdout)
    assert report["step"] == 6
    assert report["notes"]["data"] == "digits"
    assert 0 <= report["metrics"]["test/accuracy"] <= 1
    again = CliRunner().invoke(group, arguments)
    assert isinstance(again.exception, InputError)
    assert "Continue it with --resume" in str(again.exception)
    longer = CliRunner().invoke(group, [*arguments, "--resume", "--set", "steps=8"])
    assert longer.exit_code == 0, longer.output
    assert json.loads(longer.stdout)["step"] == 8
    assert load_config(out / "config.toml").steps == 8


def test_the_text_recipe_learns_bytes(tmp_path: Path) -> None:
    from trimtab.train.recipes.supervised import Context
    from trimtab.train.recipes.text import run

    (tmp_path / "a.txt").write_text("abcdefgh" * 2000)
    config = Config(
        "text", steps=30, output=str(tmp_path / "run"),
        data={"files": [str(tmp_path / "*.txt")], "length": 32},
        model={"width": 32, "depth": 1, "heads": 2},
    )  # fmt: skip
    config.optimizer.__dict__["learning_rate"] = 0.01
    summary = run(Context(config))
    assert summary.metrics["validation/bits_per_byte"] < 6


def test_unknown_recipes_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'vision'"):
        find_recipe("vison")
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES)
