"""Function calling: describe tools to the model, constrain its answer, read calls from it."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.errors import InputError
from trimtab.generate.grammar import json_schema_grammar

_TAGGED = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


def check_tools(given: Any) -> list[dict[str, Any]]:
    """Return tool descriptions, or say which one is wrong."""
    if given is None:
        return []
    if not isinstance(given, list):
        raise InputError("tools must be a list.")
    for number, tool in enumerate(given):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InputError(f"tools[{number}] needs a function with a name.")
    return [dict(tool) for tool in given]


def wanted_tools(choice: Any, offered: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the names that the answer may call."""
    names = tuple(tool["function"]["name"] for tool in offered)
    if choice in (None, "auto"):
        return names
    if choice == "none":
        return ()
    if choice == "required":
        if not names:
            raise InputError("tool_choice is required, but no tools are given.")
        return names
    function = choice.get("function") if isinstance(choice, Mapping) else None
    if not isinstance(function, Mapping) or function.get("name") not in names:
        raise InputError("tool_choice must be none, auto, required, or name one of the tools.")
    return (function["name"],)


def is_forced(choice: Any) -> bool:
    """Whether the answer must be a call."""
    return choice == "required" or isinstance(choice, Mapping)


def call_grammar(offered: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Return the grammar of one call as JSON: ``{"name": ..., "arguments": {...}}``."""
    calls = []
    for tool in offered:
        function = tool["function"]
        if function["name"] in names:
            arguments = function.get("parameters") or {"type": "object"}
            properties = {"name": {"const": function["name"]}, "arguments": arguments}
            calls.append(
                {
                    "type": "object",
                    "properties": properties,
                    "required": ["name", "arguments"],
                    "additionalProperties": False,
                }
            )
    return json_schema_grammar(calls[0] if len(calls) == 1 else {"anyOf": calls})


def describe(
    messages: Sequence[Mapping[str, Any]],
    offered: Sequence[Mapping[str, Any]],
    template: str | None,
) -> list[dict[str, Any]]:
    """Put tool descriptions into a system message when the template has no place for them."""
    plain = [dict(message) for message in messages]
    if template and "tools" in template:
        return plain
    listing = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in offered)
    text = (
        "You may call one of these functions by answering only with JSON of the form "
        f'{{"name": ..., "arguments": {{...}}}}:\n{listing}'
    )
    if plain and plain[0]["role"] == "system":
        plain[0]["content"] = f"{plain[0]['content']}\n\n{text}"
        return plain
    return [{"role": "system", "content": text}, *plain]


def read_calls(text: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the calls in an answer in the interface's form, or [] if it is plain text.

    Known forms: the whole answer is one JSON call, or calls stand between ``<tool_call>`` tags.
    """
    found = _TAGGED.findall(text) or [text.strip()]
    calls = []
    for source in found:
        try:
            call = json.loads(source)
        except ValueError:
            return []
        if not isinstance(call, dict) or call.get("name") not in names:
            return []
        arguments = call.get("arguments", call.get("parameters", {}))
        calls.append(
            {
                "id": f"call_{secrets.token_hex(12)}",
                "type": "function",
                "function": {
                    "name": call["name"],
                    "arguments": json.dumps(arguments, ensure_ascii=False),
                },
            }
        )
    return calls
