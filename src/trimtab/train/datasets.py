"""Real data sets that are already on the machine: idx files, scikit-learn's digits, text files."""

from __future__ import annotations

import glob
import gzip
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trimtab.errors import FileFormatError, InputError, require_extra, unknown_name

# Third byte of an idx file's magic number -> element type, big-endian as the format demands.
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

# Where the Debian package dataset-fashion-mnist puts it.
_FASHION_DIRECTORY = Path("/usr/share/datasets/fashion-mnist")

VISION_DATASETS = ("auto", "fashion-mnist", "digits", "idx")


class ImageSplit(NamedTuple):
    """Images and labels.

    Attributes:
        images: float32 in [0, 1], shape ``(examples, rows, columns, channels)``.
        labels: int32 class numbers.
    """

    images: np.ndarray
    labels: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name, as batches hold them."""
        return {"image": self.images, "label": self.labels}


class ImageDataset(NamedTuple):
    """A data set cut in three.

    Attributes:
        name: what it really is, which for ``"auto"`` depends on the machine.
        train: to learn from.
        validation: to choose settings by.
        test: to report.
        classes: number of labels.
    """

    name: str
    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    classes: int


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an idx file, gzipped or plain, as MNIST and its relatives are published.

    Args:
        path: the file.

    Raises:
        FileFormatError: it is no idx file, or is cut short or too long.
    """
    raw = Path(path).read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise FileFormatError(f"{path}: its gzip stream is damaged ({error}).") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX_TYPES:
        raise FileFormatError(
            f"{path} is not an idx file: it begins with {raw[:4].hex() or 'nothing'}, "
            "not with 0000, a type and a number of axes."
        )
    axes = raw[3]
    start = 4 + 4 * axes
    if len(raw) < start:
        raise FileFormatError(f"{path} ends inside its header of {axes} axes.")
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes))
    kind = np.dtype(_IDX_TYPES[raw[2]])
    expected = math.prod(shape) * kind.itemsize
    if len(raw) - start != expected:
        raise FileFormatError(
            f"{path} should hold {expected} bytes of shape {shape}, but has {len(raw) - start}."
        )
    values = np.frombuffer(raw, kind, offset=start).reshape(shape)
    return values.astype(kind.newbyteorder("="))


def load_images(
    name: str = "auto",
    *,
    directory: str | os.PathLike[str] | None = None,
    validation: int | None = None,
    seed: int = 0,
) -> ImageDataset:
    """Load an image data set that is on this machine; nothing is downloaded.

    Args:
        name: ``"fashion-mnist"``, ``"digits"`` (8 by 8, in scikit-learn), ``"idx"`` (four files
            named as MNIST's in ``directory``), or ``"auto"``: Fashion-MNIST where it is installed,
            else digits.
        directory: where the idx files are; for Fashion-MNIST that of Debian's package by default.
        validation: how many training examples to set apart; a twelfth by default.
        seed: chooses them.

    Raises:
        FileFormatError: files are missing or damaged.
        UnknownNameError: no such data set.
    """
    if name not in VISION_DATASETS:
        raise unknown_name("image data set", name, VISION_DATASETS)
    folder = Path(directory) if directory is not None else _FASHION_DIRECTORY
    if name == "auto":
        name = "fashion-mnist" if _find_idx(folder, "train-images") else "digits"
    if name == "digits":
        return _digits(validation, seed)
    if name == "idx" and directory is None:
        raise InputError("The data set 'idx' needs directory=, the folder with its four files.")
    return _idx_dataset(name, folder, validation, seed)


def _find_idx(folder: Path, stem: str) -> Path | None:
    found = sorted(folder.glob(f"{stem}*idx*")) if folder.is_dir() else []
    return found[0] if found else None


def _idx_dataset(name: str, folder: Path, validation: int | None, seed: int) -> ImageDataset:
    parts = []
    for stem in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
        path = _find_idx(folder, stem)
        if path is None:
            raise FileFormatError(
                f"{folder} has no file {stem}-idx*-ubyte (.gz). "
                + (
                    "Install the Debian package dataset-fashion-mnist, pass directory=, or use the "
                    "data set 'digits'."
                    if name == "fashion-mnist"
                    else "Put the four files there under the names MNIST uses."
                )
            )
        parts.append(read_idx(path))
    images, labels, test_images, test_labels = parts
    for pictures, marks in ((images, labels), (test_images, test_labels)):
        if pictures.ndim != 3 or marks.shape != pictures.shape[:1]:
            raise FileFormatError(
                f"{folder}: images of shape {pictures.shape} do not go with labels of shape "
                f"{marks.shape}."
            )
    train, held = _split(_scaled(images, 255.0), labels, validation, seed)
    test = ImageSplit(_scaled(test_images, 255.0), test_labels.astype(np.int32))
    return ImageDataset(name, train, held, test, int(labels.max()) + 1)


def _digits(validation: int | None, seed: int) -> ImageDataset:
    datasets = require_extra("sklearn.datasets", "data", "The data set 'digits'")
    bunch = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.images))
    images, labels = _scaled(bunch.images[order], 16.0), bunch.target[order]
    train, held = _split(images[360:], labels[360:], validation, seed)
    test = ImageSplit(images[:360], labels[:360].astype(np.int32))
    return ImageDataset("digits", train, held, test, 10)


def _scaled(images: np.ndarray, largest: float) -> np.ndarray:
    return (images.astype(np.float32) / np.float32(largest))[..., None]


def _split(
    images: np.ndarray, labels: np.ndarray, validation: int | None, seed: int
) -> tuple[ImageSplit, ImageSplit]:
    count = len(images) // 12 if validation is None else validation
    if not 0 < count < len(images):
        raise InputError(f"validation must lie between 1 and {len(images) - 1}, got {count}.")
    order = np.random.default_rng(seed).permutation(len(images))
    labels = labels.astype(np.int32)
    held, kept = order[:count], order[count:]
    return ImageSplit(images[kept], labels[kept]), ImageSplit(images[held], labels[held])


def load_bytes(patterns: Sequence[str], *, limit: int | None = None) -> np.ndarray:
    """Concatenate files as bytes, in the order of their names.

    Args:
        patterns: glob patterns (``**`` descends); none takes the Python standard library's own
            source files, which are on every machine.
        limit: stop after this many bytes.

    Raises:
        InputError: no file matches.
    """
    chosen = list(patterns) or [str(Path(os.__file__).parent / "*.py")]
    paths = sorted({path for pattern in chosen for path in glob.glob(pattern, recursive=True)})
    pieces, size = [], 0
    for path in paths:
        if limit is not None and size >= limit:
            break
        if os.path.isfile(path):
            pieces.append(np.frombuffer(Path(path).read_bytes(), np.uint8))
            size += len(pieces[-1])
    if not size:
        raise InputError(f"No text matches {', '.join(chosen)}. Check the pattern in data.files.")
    return np.concatenate(pieces)[:limit]
