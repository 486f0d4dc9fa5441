"""Tokenizers, made and run by the `tokenizers` library."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import FileFormatError, InputError, require_extra
from trimtab.files import atomic_file

SPECIAL_TOKENS = ("<pad>", "[CLS]", "[SEP]", "[MASK]", "<unk>")
"""The special tokens of a new vocabulary, which are its first words."""

# Names under which published tokenizers keep the same roles.
_ALIASES = {
    "<pad>": ("<pad>", "[PAD]"),
    "[CLS]": ("[CLS]", "<s>"),
    "[SEP]": ("[SEP]", "</s>"),
    "[MASK]": ("[MASK]", "<mask>"),
    "<unk>": ("<unk>", "[UNK]"),
}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer and the indices of its special tokens.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        padding: index of the padding token.
        start: index of the token that opens an input and is pooled.
        separator: index of the token that closes a part.
        mask: index of the token that hides a word.
        unknown: index of the token for what has no other.
    """

    tokenizer: Any
    padding: int
    start: int
    separator: int
    mask: int
    unknown: int

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    @property
    def special(self) -> tuple[int, ...]:
        """Indices that are no ordinary words."""
        return (self.padding, self.start, self.separator, self.mask, self.unknown)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token indices of each text, without special tokens."""
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [entry.ids for entry in encoded]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``tokenizer.json`` that `transformers` reads too."""
        with atomic_file(path) as temporary:
            self.tokenizer.save(str(temporary))


def train_vocabulary(
    texts: Iterable[str],
    size: int,
    *,
    kind: str = "unigram",
) -> Vocabulary:
    """Learn a tokenizer from text; lower-cased and in Unicode's compatibility form.

    Args:
        texts: what to learn from.
        size: number of words, the special ones included.
        kind: ``"unigram"`` as in FNet's SentencePiece model, ``"wordpiece"`` as in BERT's, or
            whole ``"words"`` by frequency.

    Raises:
        InputError: the size leaves no room for words, or the kind is unknown.
        MissingExtraError: `tokenizers` is not installed.
    """
    if size <= len(SPECIAL_TOKENS):
        raise InputError(
            f"A vocabulary of {size} has no room beside {len(SPECIAL_TOKENS)} special tokens."
        )
    library = require_extra("tokenizers", "models", "Training a tokenizer")
    special = list(SPECIAL_TOKENS)
    before = library.pre_tokenizers
    if kind == "unigram":
        tokenizer = library.Tokenizer(library.models.Unigram())
        tokenizer.pre_tokenizer = before.Metaspace()
        tokenizer.decoder = library.decoders.Metaspace()
        trainer = library.trainers.UnigramTrainer(
            vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    elif kind == "wordpiece":
        tokenizer = library.Tokenizer(library.models.WordPiece(unk_token="<unk>"))
        tokenizer.pre_tokenizer = before.BertPreTokenizer()
        tokenizer.decoder = library.decoders.WordPiece()
        trainer = library.trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=special, show_progress=False
        )
    elif kind == "words":
        tokenizer = library.Tokenizer(library.models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = before.BertPreTokenizer()
        trainer = library.trainers.WordLevelTrainer(
            vocab_size=size, special_tokens=special, show_progress=False
        )
    else:
        raise InputError(f"Unknown kind of tokenizer {kind!r}; pass unigram, wordpiece or words.")
    tokenizer.normalizer = library.normalizers.Sequence(
        [library.normalizers.NFKC(), library.normalizers.Lowercase()]
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _vocabulary(tokenizer, "the new tokenizer")


def load_vocabulary(path: str | os.PathLike[str]) -> Vocabulary:
    """Read a ``tokenizer.json``, or the folder that holds one.

    Raises:
        FileFormatError: the file is missing or damaged, or has no mask token.
        MissingExtraError: `tokenizers` is not installed.
    """
    library = require_extra("tokenizers", "models", "Reading a tokenizer")
    file = Path(path)
    file = file / "tokenizer.json" if file.is_dir() else file
    if not file.is_file():
        raise FileFormatError(f"{file} does not exist.")
    try:
        tokenizer = library.Tokenizer.from_file(str(file))
    except Exception as error:  # The library raises bare exceptions.
        raise FileFormatError(f"{file} is not a tokenizer: {error}.") from error
    return _vocabulary(tokenizer, str(file))


def _vocabulary(tokenizer: Any, where: str) -> Vocabulary:
    found = []
    for role, names in _ALIASES.items():
        indices = [tokenizer.token_to_id(name) for name in names]
        known = [index for index in indices if index is not None]
        if not known:
            raise FileFormatError(
                f"{where} has no token for {role} (looked for {', '.join(names)})."
            )
        found.append(known[0])
    return Vocabulary(tokenizer, *found)
