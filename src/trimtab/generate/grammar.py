"""Constrain generation to a JSON schema, regular expression or grammar, through llguidance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from trimtab.errors import InputError, require_extra
from trimtab.generate.tokenizer import Tokenizer

MAXIMUM_GRAMMAR_CHARACTERS = 200_000


class Constraint:
    """Follows one sequence and says which tokens may come next.

    Args:
        tokenizer: of the model.
        grammar: from :func:`json_schema_grammar`, :func:`regex_grammar` or :func:`lark_grammar`.
        size: number of logits, which may exceed the tokenizer's ids.

    Raises:
        InputError: the grammar is invalid or too large.
    """

    def __init__(self, tokenizer: Tokenizer, grammar: str, size: int) -> None:
        library = _library()
        self._size = size
        if len(grammar) > MAXIMUM_GRAMMAR_CHARACTERS:
            raise InputError(
                f"The grammar or schema has {len(grammar)} characters; at most "
                f"{MAXIMUM_GRAMMAR_CHARACTERS} are accepted."
            )
        self._matcher = library.LLMatcher(_wrapped(tokenizer), grammar, log_level=0)
        self._check("The grammar or schema is not usable")

    def allowed(self) -> np.ndarray:
        """Return bool ``[size]``: which tokens may come next."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check("The constraint failed")
        bits = np.unpackbits(packed, bitorder="little").astype(bool)[: self._size]
        if bits.size < self._size:
            bits = np.concatenate([bits, np.zeros(self._size - bits.size, bool)])
        return bits

    def accept(self, token: int) -> None:
        """Advance by a token that :meth:`allowed` permitted."""
        self._matcher.consume_token(token)
        self._check("The constraint failed")

    @property
    def finished(self) -> bool:
        """Whether the text is complete and cannot continue."""
        return self._matcher.is_stopped()

    def _check(self, what: str) -> None:
        if self._matcher.is_error():
            raise InputError(f"{what}: {self._matcher.get_error().strip().splitlines()[0]}")


def json_schema_grammar(schema: Mapping[str, Any] | str) -> str:
    """Return the grammar of JSON documents that satisfy a schema.

    Raises:
        InputError: the schema is not a JSON object or uses an unknown keyword value.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise InputError(f"The JSON schema is not valid JSON: {error}.") from error
    if not isinstance(schema, Mapping):
        raise InputError("A JSON schema must be an object.")
    compiled = _library().LLMatcher.grammar_from_json_schema(
        json.dumps(schema), overrides={"whitespace_flexible": False}
    )
    return compiled


def json_object_grammar() -> str:
    """Return the grammar of any JSON object."""
    return json_schema_grammar({"type": "object"})


def regex_grammar(pattern: str) -> str:
    """Return the grammar of texts that a regular expression matches as a whole."""
    return _library().LLMatcher.grammar_from_regex(pattern)


def lark_grammar(source: str) -> str:
    """Return the grammar of a Lark source, or of llama.cpp's GBNF (``root ::= ...``)."""
    library = _library()
    if "::=" in source:
        converter = require_extra("llguidance.gbnf_to_lark", "models", "Reading a GBNF grammar")
        try:
            source = converter.gbnf_to_lark(source)
        except Exception as error:
            raise InputError(f"The GBNF grammar is not valid: {error}.") from error
    return library.LLMatcher.grammar_from_lark(source)


def _library() -> Any:
    return require_extra("llguidance", "models", "Constraining output to a grammar or JSON schema")


@lru_cache(maxsize=4)
def _wrapped(tokenizer: Tokenizer) -> Any:
    library = _library()
    return library.LLTokenizer(library.TokenizerWrapper(_Adapter(tokenizer)))


class _Adapter:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.tokens = list(tokenizer.bytes_of)
        self.special_token_ids = sorted(tokenizer.control)
        self.eos_token_id = tokenizer.ends[0] if tokenizer.ends else 0
        self.bos_token_id = tokenizer.begin

    def __call__(self, text: bytes | str) -> list[int]:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        return self._tokenizer.encode(text, begin=False)
