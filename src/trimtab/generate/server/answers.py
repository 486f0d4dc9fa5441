"""Bodies that the server sends: completions, chat messages, chunks, errors."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from trimtab.generate.batch import TokenLog
from trimtab.generate.tokenizer import Tokenizer


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict:
    """Return an error in the interface's form."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def event_line(body: dict[str, Any] | str) -> bytes:
    """Return one server-sent event."""
    data = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    return f"data: {data}\n\n".encode()


class Envelope:
    """The fields that all parts of one answer share.

    Args:
        chat: chat or plain completion.
        model: name to report.
    """

    def __init__(self, chat: bool, model: str) -> None:
        self.chat = chat
        prefix = "chatcmpl" if chat else "cmpl"
        self._fixed = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def body(self, choices: Sequence[dict[str, Any]], usage: dict | None = None) -> dict[str, Any]:
        """Return a whole answer."""
        kind = "chat.completion" if self.chat else "text_completion"
        return {"object": kind, **self._fixed, "choices": list(choices), "usage": usage}

    def chunk(self, choices: Sequence[dict[str, Any]], **extra: Any) -> dict[str, Any]:
        """Return a part of a streamed answer."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {"object": kind, **self._fixed, "choices": list(choices), **extra}


def usage(prompt_tokens: int, completion_tokens: int, reused: int) -> dict[str, Any]:
    """Return token counts."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": reused},
    }


def chat_logprobs(logs: Sequence[TokenLog], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return log-probabilities in the chat form."""

    def entry(token: int, value: float | None) -> dict[str, Any]:
        raw = tokenizer.bytes_of[token]
        text = raw.decode("utf-8", errors="replace")
        return {"token": text, "logprob": value, "bytes": list(raw)}

    return {
        "content": [
            {
                **entry(log.token, log.log_probability),
                "top_logprobs": [entry(token, value) for token, value in log.top],
            }
            for log in logs
        ],
        "refusal": None,
    }


def completion_logprobs(
    logs: Sequence[TokenLog], tokenizer: Tokenizer, offset: int = 0
) -> dict[str, Any]:
    """Return log-probabilities in the completion form.

    Args:
        logs: of consecutive tokens.
        tokenizer: of the model.
        offset: characters of text before the first of them.
    """
    texts = [tokenizer.text_of(log.token) for log in logs]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [log.log_probability for log in logs],
        "top_logprobs": [
            None
            if log.log_probability is None
            else {tokenizer.text_of(token): value for token, value in log.top}
            for log in logs
        ],
        "text_offset": offsets,
    }
