"""Reuse of the keys and values of prompts that begin alike, in pages of 64 tokens."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from trimtab.generate.engine import Engine

PAGE = 64


class PrefixCache:
    """Copies of cache pages, found by a hash of all tokens up to their end.

    A page's key chains its parent's key, so equal keys mean equal beginnings. Pages are copied into
    a slot before it is extended; they are never written to. The least recently used go first.

    Args:
        engine: whose pages these are.
        budget_bytes: how much memory copies may take.
    """

    def __init__(self, engine: Engine, budget_bytes: int) -> None:
        self._engine = engine
        self._pages: OrderedDict[bytes, Any] = OrderedDict()
        self._page_bytes = max(1, engine.cache_bytes * PAGE // (engine.slots * engine.capacity))
        self._limit = budget_bytes // self._page_bytes
        self.hits = 0
        self.lookups = 0

    def __len__(self) -> int:
        return len(self._pages)

    def restore(self, slot: int, tokens: Sequence[int]) -> int:
        """Fill a slot with the longest known beginning and return its length.

        At least one token is left over, because its logits are needed.
        """
        self.lookups += 1
        count = 0
        for number, key in enumerate(page_keys(tokens)):
            if key not in self._pages:
                break
            self._pages.move_to_end(key)
            start = number * PAGE
            self._engine.restore(slot, start, start + PAGE, self._pages[key])
            count = min(start + PAGE, len(tokens) - 1)
        self.hits += count > 0
        return count

    def store(self, slot: int, tokens: Sequence[int], start: int, stop: int) -> None:
        """Keep the pages that were completed by writing positions ``start`` to ``stop``.

        Call it right after they were written: rings of windowed layers forget old positions.
        """
        first, last = start // PAGE, stop // PAGE
        if self._limit < 1 or first == last:
            return
        for number, key in enumerate(page_keys(tokens[: last * PAGE])):
            if number < first or key in self._pages:
                continue
            copy = self._engine.export(slot, number * PAGE, (number + 1) * PAGE)
            self._pages[key] = copy
            if len(self._pages) > self._limit:
                self._pages.popitem(last=False)


def page_keys(tokens: Sequence[int]) -> list[bytes]:
    """Return the chained hash of each whole page of a token sequence."""
    keys, key = [], b""
    for start in range(0, len(tokens) - PAGE + 1, PAGE):
        page = np.asarray(tokens[start : start + PAGE], np.int32).tobytes()
        key = hashlib.blake2b(key + page, digest_size=16).digest()
        keys.append(key)
    return keys
