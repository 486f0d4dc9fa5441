"""Turn tokens into text as they come: whole characters only, and never a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from trimtab.generate.tokenizer import Tokenizer


class TextStream:
    """Collects tokens and releases the text that can no longer change.

    Text is held back while its bytes end inside a character, or while its end could be the
    beginning of a stop string.

    Args:
        tokenizer: of the model.
        stops: texts that end generation; the first to appear is cut off with all after it.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False
        self.text = ""

    def push(self, token: int) -> str:
        """Add a token and return the text that became certain."""
        if self.stopped:
            return ""
        return self._release(self._decoder.decode(self._tokenizer.decode_bytes([token])))

    def finish(self) -> str:
        """Return what was held back, at the end of generation."""
        out = "" if self.stopped else self._release(self._decoder.decode(b"", final=True))
        tail, self._held = self._held, ""
        self.text += tail
        return out + tail

    def _release(self, new: str) -> str:
        self._held += new
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            out, self._held, self.stopped = self._held[: min(found)], "", True
        else:
            keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
            cut = len(self._held) - keep
            out, self._held = self._held[:cut], self._held[cut:]
        self.text += out
        return out


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that begins ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
