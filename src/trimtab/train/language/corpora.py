"""Real text that ships in packages, so that nothing has to be downloaded.

WordNet's glosses and dictionaries in dictd's format come with Debian packages; docstrings are on
every machine that can run this at all.
"""

from __future__ import annotations

import ast
import gzip
import importlib.util
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.errors import FileFormatError, InputError

WORDNET = Path("/usr/share/wordnet")
DICTIONARIES = Path("/usr/share/dictd")
_WORDNET_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
_BASE64 = {
    letter: value
    for value, letter in enumerate(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    )
}


@dataclass(frozen=True)
class LabelledText:
    """Texts with one class each.

    Args:
        name: what they are, for reports.
        texts: the texts.
        labels: the class index of each text.
        classes: the name of each class.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def majority(self) -> float:
        """The share of the largest class: what a constant answer scores."""
        return max(self.labels.count(label) for label in range(len(self.classes))) / len(self)


def wordnet_glosses(folder: str | os.PathLike[str] | None = None) -> LabelledText:
    """Read WordNet's glosses, each labelled with its lexicographer class ("noun.animal", ...).

    WordNet 3.0 has 117,659 of them in 45 classes, the largest 12.3 %. A gloss's quoted examples are
    left out.

    Args:
        folder: holds WordNet's ``data.noun`` and its siblings; Debian's ``/usr/share/wordnet`` if
            None.

    Raises:
        FileFormatError: WordNet is not there, or a line is not WordNet's.
    """
    folder = WORDNET if folder is None else Path(folder)
    missing = [name for name in _WORDNET_FILES if not (folder / name).is_file()]
    if missing:
        raise FileFormatError(
            f"WordNet was not found: {folder / missing[0]} is missing. Install Debian's package "
            "wordnet-base, or pass the folder that holds WordNet's data files."
        )
    texts, labels = [], []
    for name in _WORDNET_FILES:
        for gloss, label in _wordnet_lines(folder / name):
            texts.append(gloss)
            labels.append(label)
    return LabelledText("WordNet glosses", tuple(texts), tuple(labels), _LEXICOGRAPHER_CLASSES)


def _wordnet_lines(path: Path) -> Iterator[tuple[str, int]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith(" "):  # The licence.
            continue
        fields, bar, gloss = line.partition("|")
        words = fields.split()
        if not bar or len(words) < 4 or not words[1].isdigit():
            raise FileFormatError(f"{path}, line {number}, is not a WordNet record.")
        label = int(words[1])
        if label >= len(_LEXICOGRAPHER_CLASSES):
            raise FileFormatError(f"{path}, line {number}, names the unknown class {label}.")
        yield gloss.split('; "')[0].strip(), label


_LEXICOGRAPHER_CLASSES = tuple(
    "adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute "
    "noun.body noun.cognition noun.communication noun.event noun.feeling noun.food noun.group "
    "noun.location noun.motive noun.object noun.person noun.phenomenon noun.plant noun.possession "
    "noun.process noun.quantity noun.relation noun.shape noun.state noun.substance noun.time "
    "verb.body verb.change verb.cognition verb.communication verb.competition verb.consumption "
    "verb.contact verb.creation verb.emotion verb.motion verb.perception verb.possession "
    "verb.social verb.stative verb.weather adj.ppl".split()
)


def dictionary_entries(
    name: str, folder: str | os.PathLike[str] | None = None
) -> list[tuple[str, str]]:
    """Read a dictionary in dictd's format, such as ``"gcide"`` or ``"foldoc"``.

    Args:
        name: of the files ``NAME.index`` and ``NAME.dict.dz`` (or ``NAME.dict``).
        folder: where they are; Debian's ``/usr/share/dictd`` if None.

    Returns:
        (headword, definition) in the file's order, white space folded.

    Raises:
        FileFormatError: a file is missing or damaged.
    """
    folder = DICTIONARIES if folder is None else Path(folder)
    index = folder / f"{name}.index"
    packed, plain = folder / f"{name}.dict.dz", folder / f"{name}.dict"
    if not index.is_file() or not (packed.is_file() or plain.is_file()):
        raise FileFormatError(
            f"The dictionary {name!r} was not found in {folder}. Install Debian's package "
            f"dict-{name}, or pass the folder that holds {name}.index."
        )
    try:
        content = gzip.decompress(packed.read_bytes()) if packed.is_file() else plain.read_bytes()
        entries = []
        for line in index.read_text(encoding="utf-8").splitlines():
            word, start, length = line.split("\t")[:3]
            if word.startswith("00"):  # The dictionary's own description.
                continue
            begin = _from_base64(start)
            text = content[begin : begin + _from_base64(length)].decode("utf-8", "replace")
            entries.append((word, " ".join(text.split())))
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise FileFormatError(f"The dictionary {index} is damaged: {error}.") from error
    return entries


def _from_base64(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * 64 + _BASE64[digit]
    return value


def package_docstrings(
    packages: Sequence[str] = ("numpy", "jax", "optax", "equinox", "rich", "click"),
    *,
    standard_library: bool = True,
    shortest: int = 40,
) -> LabelledText:
    """Read the docstrings in installed packages' sources, each labelled with its package.

    The sources are parsed, never run. Docstrings that occur twice are kept once.

    Args:
        packages: import names; those not installed are an error.
        standard_library: whether Python's own modules are one more class.
        shortest: docstrings of fewer characters are left out.

    Raises:
        InputError: a package is not installed.
    """
    roots: list[tuple[str, Path]] = []
    if standard_library:
        roots.append(("python", Path(sysconfig.get_paths()["stdlib"])))
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                f"The package {package!r} is not installed, so its text cannot be read."
            )
        roots.append((package, Path(next(iter(spec.submodule_search_locations)))))
    texts, labels, seen = [], [], set()
    for label, (_, root) in enumerate(roots):
        for text in _docstrings(root):
            if len(text) >= shortest and text not in seen:
                seen.add(text)
                texts.append(text)
                labels.append(label)
    names = tuple(name for name, _ in roots)
    return LabelledText("docstrings", tuple(texts), tuple(labels), names)


def _docstrings(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*.py")):
        inner = path.relative_to(root).parts
        if any(part in ("site-packages", "test", "tests", "idlelib") for part in inner):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError, OSError):  # Templates and other encodings.
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node)
                if text:
                    yield text


def text_documents(folder: str | os.PathLike[str], *, suffix: str = ".txt") -> list[list[str]]:
    """Read a folder of plain text: each file a document, each paragraph a line of it.

    Raises:
        FileFormatError: no such file, or one that is not UTF-8.
    """
    paths = sorted(Path(folder).rglob(f"*{suffix}"))
    if not paths:
        raise FileFormatError(f"{folder} holds no file that ends in {suffix}.")
    documents = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise FileFormatError(f"{path} is not UTF-8 text (byte {error.start}).") from error
        paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
        documents.append([part for part in paragraphs if part])
    return documents
