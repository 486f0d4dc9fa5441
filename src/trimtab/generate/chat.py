"""Turn messages into a prompt with the model's own Jinja template, in a sandbox."""

from __future__ import annotations

import datetime
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from trimtab.errors import InputError, UnsupportedError, require_extra
from trimtab.generate.tokenizer import Tokenizer

Message = Mapping[str, Any]


def render(
    template: str | None,
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str:
    """Return the text that a chat template makes of messages.

    Args:
        template: Jinja source, or None when the model has none.
        messages: each with ``role`` and ``content``.
        tokenizer: supplies ``bos_token`` and ``eos_token``.
        add_generation_prompt: end with the opening of the assistant's turn.
        tools: function descriptions for templates that know them.
        variables: passed to the template.

    Raises:
        UnsupportedError: the model has no template.
        InputError: the template rejects the messages, or fails.
    """
    if not template:
        raise UnsupportedError(
            "This model has no chat template (base models have none). Use plain text completion, "
            "or pass a template."
        )
    jinja2 = require_extra("jinja2", "models", "Chatting")

    def token_text(token: int | None) -> str:
        return "" if token is None else tokenizer.text_of(token)

    end = tokenizer.ends[0] if tokenizer.ends else None
    try:
        return _compiled(template).render(
            messages=[dict(message) for message in messages],
            tools=None if tools is None else [dict(tool) for tool in tools],
            documents=None,
            add_generation_prompt=add_generation_prompt,
            bos_token=token_text(tokenizer.begin),
            eos_token=token_text(end),
            **variables,
        )
    except jinja2.TemplateError as error:
        raise InputError(f"The chat template refused the messages: {error}") from error
    except (TypeError, ValueError, KeyError, ArithmeticError, RecursionError) as error:
        raise InputError(f"The chat template failed on the messages: {error}") from error


@lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    jinja2 = require_extra("jinja2", "models", "Chatting")
    sandbox = require_extra("jinja2.sandbox", "models", "Chatting")

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent, **options)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise InputError(f"The chat template is not valid Jinja: {error}") from error


def encode_chat(
    template: str | None,
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    **options: Any,
) -> list[int]:
    """Return the prompt's token ids; control tokens come from the template alone.

    A control token's spelling inside a message is encoded as the plain text it is. To that end the
    spellings are replaced by marks before rendering and put back, as text, between the pieces.

    Args:
        template: Jinja source.
        messages: each with ``role`` and ``content``.
        tokenizer: of the model.
        options: passed to :func:`render`.
    """
    spellings = sorted((tokenizer.text_of(token) for token in tokenizer.control), key=len)
    spellings = [text for text in reversed(spellings) if text]
    nonce = secrets.token_hex(8)
    mark = re.compile(f"\ue000{nonce}:(\\d+)\ue001")
    pattern = re.compile("|".join(re.escape(text) for text in spellings)) if spellings else None

    def hide(text: str) -> str:
        if pattern is None:
            return text
        return pattern.sub(lambda found: f"\ue000{nonce}:{spellings.index(found[0])}\ue001", text)

    hidden = [_map_strings(message, hide) for message in messages]
    if options.get("tools"):
        options["tools"] = [_map_strings(tool, hide) for tool in options["tools"]]
    pieces = mark.split(render(template, hidden, tokenizer, **options))
    tokens: list[int] = []
    for number, piece in enumerate(pieces):
        if number % 2:
            tokens += tokenizer.encode(spellings[int(piece)], begin=False, special=False)
        elif piece:
            tokens += tokenizer.encode(piece, begin=False, special=True)
    return tokens


def _map_strings(value: Any, change: Any, key: str = "") -> Any:
    """Apply a function to every string of nested data, except roles."""
    if isinstance(value, str):
        return value if key == "role" else change(value)
    if isinstance(value, Mapping):
        return {name: _map_strings(item, change, str(name)) for name, item in value.items()}
    if isinstance(value, Sequence):
        return [_map_strings(item, change, key) for item in value]
    return value


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """Return messages with text contents, or say which entry is wrong.

    Content given as a list of ``{"type": "text", "text": ...}`` parts is joined.

    Raises:
        InputError: not a list of messages, or a part that is not text.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError("messages must be a list with at least one message.")
    checked = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f"messages[{number}] must be an object with a role.")
        content = message.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            content = "".join(_part_text(part, number) for part in content)
        if content is None:
            content = ""
        if not isinstance(content, str):
            raise InputError(f"messages[{number}].content must be text.")
        checked.append({**message, "content": content})
    return checked


def _part_text(part: Any, number: int) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part["text"], str):
        return part["text"]
    raise InputError(f"messages[{number}].content holds a part that is not text.")
