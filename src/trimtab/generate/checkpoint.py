"""What any weight reader hands over: configuration, tensors, vocabulary, defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.models.decoder.config import DecoderConfig
from trimtab.models.decoder.weights import Tensor


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Everything a tokenizer is built from.

    Attributes:
        kind: ``"bpe"`` (byte-level), ``"sentencepiece"`` (BPE from scores) or ``"json"``.
        pre_tokenizer: name of the splitting rule, for ``"bpe"``.
        tokens: text of each token.
        scores: SentencePiece scores, or ().
        kinds: GGUF token types (1 normal, 3 control, 4 user-defined, 6 byte), or ().
        merges: BPE merges as ``"left right"``, or ().
        json: a whole ``tokenizer.json``, for ``"json"``.
        begin: id put first, or None.
        ends: ids that end a text.
        unknown: id of unknown pieces, or None.
        padding: id for padding, or None.
        add_begin: put ``begin`` before plain text.
        add_end: put the first of ``ends`` after plain text.
        add_space_prefix: SentencePiece: a space is put before the text.
    """

    kind: str
    pre_tokenizer: str = ""
    tokens: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    kinds: tuple[int, ...] = ()
    merges: tuple[str, ...] = ()
    json: str = ""
    begin: int | None = None
    ends: tuple[int, ...] = ()
    unknown: int | None = None
    padding: int | None = None
    add_begin: bool = False
    add_end: bool = False
    add_space_prefix: bool = False


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model as it lies on disk.

    Attributes:
        path: the file or folder.
        name: the model's own name.
        config: sizes and switches.
        tensors: parameter name -> stored tensor.
        vocabulary: for the tokenizer.
        chat_template: Jinja source, or None for base models.
        defaults: sampling settings of ``generation_config.json``; empty for GGUF.
        metadata: the file's own keys, for ``trimtab show`` and export.
    """

    path: Path
    name: str
    config: DecoderConfig
    tensors: Mapping[str, Tensor]
    vocabulary: Vocabulary
    chat_template: str | None = None
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def formats(self) -> dict[str, int]:
        """Return how many tensors are stored in each format."""
        counts: dict[str, int] = {}
        for tensor in self.tensors.values():
            counts[tensor.kind] = counts.get(tensor.kind, 0) + 1
        return counts
