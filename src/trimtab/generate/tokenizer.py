"""Text to token ids and back, on the ``tokenizers`` library, from a GGUF vocabulary or a JSON file.

GGUF files name their splitting rule (``tokenizer.ggml.pre``). An unknown name is refused, because a
guess would give fluent but wrong tokens.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.errors import FileFormatError, InputError, UnsupportedError, require_extra

if TYPE_CHECKING:
    from trimtab.generate.checkpoint import Checkpoint, Vocabulary

_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6
_SPACE = "▁"

_LETTERS_NUMBERS_REST = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Rule -> names under which GGUF files know it.
_RULE_NAMES = {
    "gpt2": ("gpt2", "gpt-2", "olmo"),
    "digits": ("smollm", "starcoder", "refact", "command-r"),
    "llama3": ("llama-bpe", "llama3", "llama-v3"),
    "qwen2": ("qwen2", "deepseek-r1-qwen"),
}
PRE_TOKENIZERS = {name: rule for rule, names in _RULE_NAMES.items() for name in names}

# Texts that end a turn in known families; such a control token stops generation as well.
END_TEXTS = (
    "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "</s>",
    "<|eom_id|>", "<eos>",
)  # fmt: skip


class Tokenizer:
    """Encodes and decodes with one vocabulary.

    Attributes:
        vocabulary: what it was built from.
        size: number of ids.
        begin: id that starts a text, or None.
        ends: ids that stop generation.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        library = require_extra("tokenizers", "models", "Reading a tokenizer")
        self.vocabulary = vocabulary
        self._lock = threading.Lock()
        self._inner = _build(library, vocabulary)
        self.size: int = self._inner.get_vocab_size(with_added_tokens=True)
        if vocabulary.kind != "json":
            self.size = len(vocabulary.tokens)
        known = (self._inner.token_to_id(text) for text in END_TEXTS)
        extra = [token for token in known if token is not None and token in self.control]
        self.begin = vocabulary.begin
        self.ends: tuple[int, ...] = tuple(dict.fromkeys((*vocabulary.ends, *extra)))

    @cached_property
    def control(self) -> frozenset[int]:
        """Ids of tokens that steer the model and are not text."""
        if self.vocabulary.kind != "json":
            kinds = self.vocabulary.kinds
            return frozenset(index for index, kind in enumerate(kinds) if kind == _CONTROL)
        added = self._inner.get_added_tokens_decoder()
        return frozenset(index for index, token in added.items() if token.special)

    @property
    def bytes_of(self) -> list[bytes]:
        """Bytes that each id stands for, indexed by id."""
        return self._bytes_of

    @cached_property
    def _bytes_of(self) -> list[bytes]:
        byte_level = self._byte_level
        added = self._inner.get_added_tokens_decoder()
        table = _byte_table()
        result = []
        for index in range(self.size):
            if index in added:
                result.append(added[index].content.encode())
                continue
            text = self._inner.id_to_token(index) or ""
            result.append(_byte_level_bytes(text, table) if byte_level else _piece_bytes(text))
        return result

    @cached_property
    def _byte_level(self) -> bool:
        if self.vocabulary.kind != "json":
            return self.vocabulary.kind == "bpe"
        return '"ByteLevel"' in json.dumps(json.loads(self.vocabulary.json).get("decoder"))

    def encode(self, text: str, *, begin: bool = True, special: bool = False) -> list[int]:
        """Return the ids of a text.

        Args:
            text: any Unicode text.
            begin: add the tokens that the model expects around a plain text.
            special: read ``<|...|>`` spellings as control tokens; leave False for text that
                people or the network wrote.
        """
        if "\x00" in text and not self._byte_level:
            text = text.replace("\x00", "")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError("The text holds half of a surrogate pair; send valid UTF-8.")
        raw = self._encode(text, begin=begin, special=special)
        if self.vocabulary.kind == "json" or not begin:
            return raw
        vocabulary = self.vocabulary
        front = [vocabulary.begin] if vocabulary.add_begin and vocabulary.begin is not None else []
        back = list(vocabulary.ends[:1]) if vocabulary.add_end else []
        return [*front, *raw, *back]

    def _encode(self, text: str, *, begin: bool, special: bool) -> list[int]:
        with self._lock:
            self._inner.encode_special_tokens = not special
            own = begin and self.vocabulary.kind == "json"
            return self._inner.encode(text, add_special_tokens=own).ids

    def decode(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """Return the text of ids.

        Args:
            tokens: ids.
            special: spell out control tokens.
        """
        return self.decode_bytes(tokens, special=special).decode("utf-8", errors="replace")

    def decode_bytes(self, tokens: Iterable[int], *, special: bool = False) -> bytes:
        """Return the bytes of ids, which may end inside a character."""
        parts = []
        for token in tokens:
            if not 0 <= token < self.size:
                raise InputError(f"Token {token} is not in the vocabulary of {self.size}.")
            if special or token not in self.control:
                parts.append(self._bytes_of[token])
        return b"".join(parts)

    def text_of(self, token: int) -> str:
        """Return one token's text for reports, with replacement characters where needed."""
        return self._bytes_of[token].decode("utf-8", errors="replace")

    def identity(self, text: str) -> int | None:
        """Return the id of a token spelled exactly so, or None."""
        return self._inner.token_to_id(text)

    def json(self) -> str:
        """Return the tokenizer as a ``tokenizer.json``."""
        return self._inner.to_str()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``tokenizer.json``."""
        Path(path).write_text(self.json(), "utf-8")


def _build(library: Any, vocabulary: Vocabulary) -> Any:
    if vocabulary.kind == "json":
        try:
            built = library.Tokenizer.from_str(vocabulary.json)
        except Exception as error:
            raise FileFormatError(f"tokenizer.json is damaged: {error}.") from error
        built.no_padding()
        built.no_truncation()
        return built
    ids = {text: index for index, text in enumerate(vocabulary.tokens)}
    build = _build_bpe if vocabulary.kind == "bpe" else _build_sentencepiece
    built = build(library, vocabulary, ids)
    added = [
        library.AddedToken(text, special=kind == _CONTROL, normalized=False)
        for text, kind in zip(vocabulary.tokens, vocabulary.kinds)
        if kind in (_CONTROL, _USER_DEFINED) and text
    ]
    built.add_tokens(added)
    return built


def _build_bpe(library: Any, vocabulary: Vocabulary, ids: dict[str, int]) -> Any:
    rule = PRE_TOKENIZERS.get(vocabulary.pre_tokenizer)
    if rule is None:
        raise UnsupportedError(
            f"The file's tokenizer splits text by rule {vocabulary.pre_tokenizer!r}, which is not "
            f"known here (known: {', '.join(sorted(PRE_TOKENIZERS))}). A Hugging Face folder with "
            "a tokenizer.json of the same model will work."
        )
    merges = [tuple(merge.split(" ", 1)) for merge in vocabulary.merges]
    try:
        model = library.models.BPE(vocab=ids, merges=merges, ignore_merges=rule == "llama3")
    except Exception as error:
        raise FileFormatError(f"The file's BPE merges do not fit its tokens: {error}.") from error
    built = library.Tokenizer(model)
    built.pre_tokenizer = _splitter(library, rule)
    built.decoder = library.decoders.ByteLevel()
    return built


def _splitter(library: Any, rule: str) -> Any:
    parts = library.pre_tokenizers
    if rule == "gpt2":
        return parts.ByteLevel(add_prefix_space=False, use_regex=True)
    if rule == "digits":
        return parts.Sequence(
            [parts.Digits(individual_digits=True), parts.ByteLevel(add_prefix_space=False)]
        )
    numbers = {"llama3": r"\p{N}{1,3}", "qwen2": r"\p{N}"}[rule]
    pattern = library.Regex(_LETTERS_NUMBERS_REST.format(numbers=numbers))
    return parts.Sequence(
        [
            parts.Split(pattern, behavior="isolated"),
            parts.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _build_sentencepiece(library: Any, vocabulary: Vocabulary, ids: dict[str, int]) -> Any:
    if len(vocabulary.scores) != len(vocabulary.tokens):
        raise FileFormatError("The file's SentencePiece vocabulary lacks a score for each token.")
    unknown = None if vocabulary.unknown is None else vocabulary.tokens[vocabulary.unknown]
    model = library.models.BPE(
        vocab=ids,
        merges=merges_from_scores(vocabulary, ids),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    built = library.Tokenizer(model)
    steps = [library.normalizers.Replace(" ", _SPACE)]
    if vocabulary.add_space_prefix:
        steps.insert(0, library.normalizers.Prepend(_SPACE))
    built.normalizer = library.normalizers.Sequence(steps)
    decoders = library.decoders
    chain = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.add_space_prefix:
        chain.append(decoders.Strip(" ", 1, 0))
    built.decoder = decoders.Sequence(chain)
    return built


def merges_from_scores(vocabulary: Vocabulary, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Recover BPE merges from SentencePiece scores: better scores merge first.

    SentencePiece joins the adjacent pair whose union has the best score, so each way of splitting a
    token into two tokens is a merge whose rank is the token's score.
    """
    found: list[tuple[float, int, int, str, str]] = []
    for text, score, kind in zip(vocabulary.tokens, vocabulary.scores, vocabulary.kinds):
        if kind in (_CONTROL, _BYTE, _USER_DEFINED) or len(text) < 2:
            continue
        for cut in range(1, len(text)):
            left, right = ids.get(text[:cut]), ids.get(text[cut:])
            if left is not None and right is not None:
                found.append((-score, left, right, text[:cut], text[cut:]))
    found.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in found]


def _byte_table() -> dict[str, int]:
    """Return GPT-2's reversible map from printable characters to bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    hidden = (byte for byte in range(256) if byte not in set(printable))
    table.update({chr(256 + number): byte for number, byte in enumerate(hidden)})
    return table


def _byte_level_bytes(text: str, table: dict[str, int]) -> bytes:
    try:
        return bytes([table[character] for character in text])
    except KeyError:
        return text.encode()


def _piece_bytes(text: str) -> bytes:
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        try:
            return bytes([int(text[3:5], 16)])
        except ValueError:
            pass
    return text.replace(_SPACE, " ").encode()


def gguf_tokenizer_fields(model: Checkpoint) -> dict[str, Any]:
    """Return the ``tokenizer.*`` metadata of a GGUF file.

    Raises:
        UnsupportedError: the tokenizer has no GGUF form that keeps its meaning.
    """
    vocabulary = model.vocabulary
    if vocabulary.kind == "json":
        vocabulary = _byte_level_vocabulary(vocabulary, model.config.vocabulary)
    prefix = "tokenizer.ggml"
    fields: dict[str, Any] = {
        f"{prefix}.model": "gpt2" if vocabulary.kind == "bpe" else "llama",
        f"{prefix}.tokens": list(vocabulary.tokens),
        f"{prefix}.token_type": np.asarray(vocabulary.kinds, np.int32),
        f"{prefix}.add_bos_token": vocabulary.add_begin,
        f"{prefix}.add_eos_token": vocabulary.add_end,
        f"{prefix}.add_space_prefix": vocabulary.add_space_prefix,
    }
    if vocabulary.kind == "bpe":
        fields[f"{prefix}.pre"] = vocabulary.pre_tokenizer
        fields[f"{prefix}.merges"] = list(vocabulary.merges)
    else:
        fields[f"{prefix}.scores"] = np.asarray(vocabulary.scores, np.float32)
    named = {
        "bos": vocabulary.begin,
        "eos": vocabulary.ends[0] if vocabulary.ends else None,
        "unknown": vocabulary.unknown,
        "padding": vocabulary.padding,
    }
    fields |= {
        f"{prefix}.{key}_token_id": value for key, value in named.items() if value is not None
    }
    if model.chat_template:
        fields["tokenizer.chat_template"] = model.chat_template
    return fields


def _byte_level_vocabulary(vocabulary: Vocabulary, size: int) -> Vocabulary:
    """Turn a byte-level BPE ``tokenizer.json`` into lists, padded to the embedding's rows."""
    import dataclasses

    library = require_extra("tokenizers", "models", "Reading a tokenizer")
    parsed = json.loads(vocabulary.json)
    rule = _matching_rule(library, parsed.get("pre_tokenizer"))
    if parsed.get("model", {}).get("type") != "BPE" or rule is None:
        raise UnsupportedError(
            "The tokenizer.json is not a byte-level BPE with a splitting rule that GGUF names; "
            "export the weights with the original GGUF file's tokenizer instead."
        )
    ids: dict[str, int] = parsed["model"]["vocab"]
    tokens = [f"[PAD{index}]" for index in range(max(size, len(ids)))]
    kinds = [5] * len(tokens)
    for text, index in ids.items():
        tokens[index], kinds[index] = text, 1
    for entry in parsed.get("added_tokens", ()):
        tokens[entry["id"]] = entry["content"]
        kinds[entry["id"]] = _CONTROL if entry["special"] else _USER_DEFINED
    merges = parsed["model"]["merges"]
    joined = tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in merges)
    begin = vocabulary.begin
    return dataclasses.replace(
        vocabulary,
        kind="bpe",
        pre_tokenizer=_RULE_NAMES[rule][0],
        tokens=tuple(tokens),
        kinds=tuple(kinds),
        merges=joined,
        add_begin=begin is not None and Tokenizer(vocabulary).encode("a")[0] == begin,
    )


def _matching_rule(library: Any, given: Any) -> str | None:
    """Find the rule whose splitter serialises to the same JSON."""
    probe: Callable[[str], Any] = lambda rule: _serialised(library, _splitter(library, rule))  # noqa: E731
    wanted = json.dumps(_without_defaults(given), sort_keys=True)
    for rule in _RULE_NAMES:
        if json.dumps(_without_defaults(probe(rule)), sort_keys=True) == wanted:
            return rule
    return None


def _serialised(library: Any, splitter: Any) -> Any:
    empty = library.Tokenizer(library.models.BPE())
    empty.pre_tokenizer = splitter
    return json.loads(empty.to_str())["pre_tokenizer"]


def _without_defaults(value: Any) -> Any:
    """Drop settings that do not change splitting, so that equal rules compare equal."""
    if isinstance(value, dict):
        return {
            key: _without_defaults(item) for key, item in value.items() if key != "trim_offsets"
        }
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_defaults(item) for item in value]
    return value
