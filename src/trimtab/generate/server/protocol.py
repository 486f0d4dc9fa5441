"""Bodies of the OpenAI interface: read with checks that name the field."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.errors import InputError, TrimtabError
from trimtab.generate.batch import Request
from trimtab.generate.chat import check_messages, encode_chat
from trimtab.generate.grammar import json_object_grammar, json_schema_grammar, lark_grammar
from trimtab.generate.language_model import LanguageModel
from trimtab.generate.sampling import SamplingOptions
from trimtab.generate.server import tools as tool_calls

MOST_CHOICES = 16
MOST_STOPS = 4
MOST_ALTERNATIVES = 20
DEFAULT_COMPLETION_TOKENS = 16

_COMMON = {
    "model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stop", "seed",
    "logit_bias", "presence_penalty", "frequency_penalty", "logprobs", "stream", "stream_options",
    "top_k", "min_p", "typical_p", "repetition_penalty", "ignore_eos", "grammar", "user",
}  # fmt: skip
CHAT_FIELDS = _COMMON | {
    "messages", "top_logprobs", "response_format", "tools", "tool_choice", "chat_template_kwargs",
}  # fmt: skip
COMPLETION_FIELDS = _COMMON | {"prompt", "echo", "best_of", "suffix"}


class FieldError(TrimtabError, ValueError):
    """A field of a request is wrong.

    Args:
        field: its name.
        message: what is wrong with it.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclasses.dataclass(frozen=True)
class Call:
    """A checked request body.

    Attributes:
        requests: one for each prompt and choice.
        stream: answer with events.
        usage_in_stream: end the stream with token counts.
        echo: completions: repeat the prompt's text.
        top: alternatives per token, or None.
        tools: names that the answer may call, or () for none.
        ignored: fields that had no effect.
    """

    requests: tuple[Request, ...]
    stream: bool = False
    usage_in_stream: bool = False
    echo: bool = False
    top: int | None = None
    tools: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all distinct prompts."""
        return sum(len(one.tokens) for one in self.requests if one.choice == 0)


def completion_call(body: Mapping[str, Any], model: LanguageModel) -> Call:
    """Check the body of ``/v1/completions``."""
    prompts = _prompts(body.get("prompt"), model)
    choices = _integer(body, "n", 1, 1, MOST_CHOICES)
    if _integer(body, "best_of", choices, 1, MOST_CHOICES) != choices:
        raise FieldError("best_of", "best_of other than n is not offered.")
    if body.get("suffix"):
        raise FieldError("suffix", "suffix (infilling) is not offered.")
    top = body.get("logprobs")
    if top is not None and top is not False:
        top = _integer({"logprobs": int(top)}, "logprobs", 0, 0, MOST_ALTERNATIVES)
    else:
        top = None
    echo = _boolean(body, "echo")
    limit = _integer(body, "max_tokens", DEFAULT_COMPLETION_TOKENS, 0, 2**31)
    common = _common(body, model)
    requests = tuple(
        Request(
            tokens=prompt,
            max_tokens=limit,
            top=top,
            echo=echo and top is not None,
            choice=choice,
            **common,
        )
        for prompt in prompts
        for choice in range(choices)
    )
    return Call(requests, echo=echo, top=top, **_streaming(body, COMPLETION_FIELDS))


def chat_call(body: Mapping[str, Any], model: LanguageModel) -> Call:
    """Check the body of ``/v1/chat/completions``."""
    messages = check_messages(body.get("messages"))
    offered = tool_calls.check_tools(body.get("tools"))
    wanted = tool_calls.wanted_tools(body.get("tool_choice"), offered)
    variables = _mapping(body, "chat_template_kwargs")
    template = model.checkpoint.chat_template
    if wanted:
        messages = tool_calls.describe(messages, offered, template)
        variables = {**variables, "tools": offered}
    tokens = tuple(encode_chat(template, messages, model.tokenizer, **variables))
    common = _common(body, model)
    grammar = _response_grammar(body)
    if tool_calls.is_forced(body.get("tool_choice")):
        grammar = tool_calls.call_grammar(offered, wanted)
    if grammar is not None:
        common["grammar"] = grammar
    top = None
    if _boolean(body, "logprobs"):
        top = _integer(body, "top_logprobs", 0, 0, MOST_ALTERNATIVES)
    elif body.get("top_logprobs"):
        raise FieldError("top_logprobs", "top_logprobs needs logprobs to be true.")
    room = max(1, model.engine.capacity - len(tokens))
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    limit = room if limit is None else _integer({"max_tokens": limit}, "max_tokens", 1, 1, 2**31)
    requests = tuple(
        Request(tokens=tokens, max_tokens=limit, top=top, choice=choice, **common)
        for choice in range(_integer(body, "n", 1, 1, MOST_CHOICES))
    )
    return Call(requests, top=top, tools=wanted, **_streaming(body, CHAT_FIELDS))


def embedding_inputs(body: Mapping[str, Any], model: LanguageModel) -> list[Request]:
    """Check the body of ``/v1/embeddings``."""
    if body.get("encoding_format", "float") not in ("float", "base64"):
        raise FieldError("encoding_format", "encoding_format must be float or base64.")
    prompts = _prompts(body.get("input"), model, field="input")
    return [Request(tokens=prompt, max_tokens=0, embed=True) for prompt in prompts]


def _common(body: Mapping[str, Any], model: LanguageModel) -> dict[str, Any]:
    options = _sampling(body, model)
    grammar = body.get("grammar")
    if grammar is not None and not isinstance(grammar, str):
        raise FieldError("grammar", "grammar must be a Lark or GBNF text.")
    return {
        "options": options,
        "stops": _stops(body.get("stop")),
        "ignore_end": _boolean(body, "ignore_eos"),
        "grammar": None if grammar is None else lark_grammar(grammar),
    }


def _sampling(body: Mapping[str, Any], model: LanguageModel) -> SamplingOptions:
    ranges = {
        "temperature": (0.0, 2.0),
        "top_p": (0.0, 1.0),
        "min_p": (0.0, 1.0),
        "typical_p": (0.0, 1.0),
        "presence_penalty": (-2.0, 2.0),
        "frequency_penalty": (-2.0, 2.0),
        "repetition_penalty": (0.01, 10.0),
    }
    given: dict[str, Any] = {
        name: _number(body, name, low, high)
        for name, (low, high) in ranges.items()
        if body.get(name) is not None
    }
    if body.get("top_k") is not None:
        given["top_k"] = max(0, _integer(body, "top_k", 0, -1, 2**31))
    if body.get("seed") is not None:
        given["seed"] = _integer(body, "seed", 0, -(2**63), 2**63 - 1)
    bias = _mapping(body, "logit_bias")
    try:
        given["logit_bias"] = {int(token): float(value) for token, value in bias.items()}
    except (TypeError, ValueError) as error:
        raise FieldError("logit_bias", "logit_bias maps token ids to numbers.") from error
    if any(not -100 <= value <= 100 for value in given["logit_bias"].values()):
        raise FieldError("logit_bias", "logit_bias values lie between -100 and 100.")
    return model.default_options(**given)


def _response_grammar(body: Mapping[str, Any]) -> str | None:
    wanted = body.get("response_format")
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return json_object_grammar()
    if kind == "json_schema":
        inner = wanted.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if not isinstance(schema, Mapping):
            raise FieldError("response_format", "json_schema needs an object named schema.")
        return json_schema_grammar(schema)
    raise FieldError(
        "response_format", "response_format.type must be text, json_object or json_schema."
    )


def _prompts(given: Any, model: LanguageModel, field: str = "prompt") -> list[tuple[int, ...]]:
    if isinstance(given, str):
        return [model.encode(given)]
    if isinstance(given, Sequence) and given:
        if all(_is_integer(item) for item in given):
            return [tuple(given)]
        if all(isinstance(item, str) for item in given):
            return [model.encode(item) for item in given]
        if all(isinstance(item, list) and all(map(_is_integer, item)) for item in given):
            return [tuple(item) for item in given]
    raise FieldError(field, f"{field} must be a text, token ids, or a non-empty list of either.")


def _stops(given: Any) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else given or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise FieldError("stop", "stop must be a text or a list of texts.")
    if len(stops) > MOST_STOPS:
        raise FieldError("stop", f"stop holds {len(stops)} texts; at most {MOST_STOPS} are taken.")
    return tuple(stop for stop in stops if stop)


def _streaming(body: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    options = _mapping(body, "stream_options")
    return {
        "stream": _boolean(body, "stream"),
        "usage_in_stream": _boolean(options, "include_usage"),
        "ignored": tuple(sorted(str(name) for name in set(body) - known)),
    }


def _mapping(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise FieldError(name, f"{name} must be an object.")
    return value


def _boolean(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise FieldError(name, f"{name} must be true or false.")
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(body: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if not _is_integer(value) or not low <= value <= high:
        raise FieldError(name, f"{name} must be a whole number from {low} to {high}.")
    return value


def _number(body: Mapping[str, Any], name: str, low: float, high: float) -> float:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise FieldError(name, f"{name} must be a number from {low:g} to {high:g}.")
    return float(value)


def text_field(body: Mapping[str, Any], name: str) -> str:
    """Return a field that must be text.

    Raises:
        InputError: it is missing or something else.
    """
    value = body.get(name)
    if not isinstance(value, str):
        raise InputError(f"{name} must be a text.")
    return value
