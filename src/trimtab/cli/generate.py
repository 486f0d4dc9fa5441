"""``trimtab generate``: continue a text."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import click

from trimtab.cli.language_model import (
    chosen_options,
    engine_options,
    load_model,
    sampling_options,
)
from trimtab.cli.output import Output, examples, output_options
from trimtab.errors import InputError

if TYPE_CHECKING:
    from trimtab.generate.language_model import Completion, LanguageModel


@click.command(
    epilog=examples(
        'trimtab generate "Once upon a time" -n 64',
        'trimtab generate model.gguf -p "Name three colours." --chat --temp 0',
        'trimtab generate "A person:" --json-schema \'{"type": "object"}\'',
    )
)
@click.argument("words", nargs=-1, metavar="[MODEL] [PROMPT]")
@click.option("-m", "--model", help="GGUF file, Hugging Face folder, or packaged model.")
@click.option("-p", "--prompt", help="The text to continue; '-' reads standard input.")
@click.option("-n", "--predict", type=click.IntRange(0), default=128, help="Most tokens to add.")
@click.option("--chat", is_flag=True, help="Send the prompt through the chat template.")
@click.option("--stop", multiple=True, help="End at this text; may be given several times.")
@click.option("--json-schema", help="Answer with JSON of this schema (a file or JSON text).")
@click.option("--grammar", help="Answer in this Lark or GBNF grammar (a file or its text).")
@click.option("--ignore-eos", is_flag=True, help="Go on after the model's end token.")
@click.option("--stats", is_flag=True, help="Report speed on standard error.")
@sampling_options
@engine_options
@output_options
def command(
    output: Output,
    words: tuple[str, ...],
    model: str | None,
    prompt: str | None,
    predict: int,
    chat: bool,
    stop: tuple[str, ...],
    json_schema: str | None,
    grammar: str | None,
    ignore_eos: bool,
    stats: bool,
    sampling: dict[str, Any],
    engine_settings: dict[str, Any],
) -> None:
    """Continue PROMPT with a language model; text appears as it is made."""
    name, text = _model_and_prompt(words, model, prompt)
    with output.progress() as progress:
        language_model = load_model(name, engine_settings, progress)
    settings = {
        "options": chosen_options(language_model, sampling),
        "max_tokens": predict,
        "stops": stop,
        "grammar": _grammar(json_schema, grammar),
        "ignore_end": ignore_eos,
    }
    start = [{"role": "user", "content": text}] if chat else text
    if output.json:
        output.document(_report(language_model, language_model.generate(start, **settings)))
        return
    if not chat:
        click.echo(text, nl=False)
    _print_stream(language_model, start, settings, stats)


def _print_stream(model: LanguageModel, prompt: Any, settings: dict[str, Any], stats: bool) -> None:
    import time

    began, first, count = time.monotonic(), 0.0, 0
    for event in model.stream(prompt, **settings):
        count += event.token is not None
        first = first or time.monotonic()
        click.echo(event.text, nl=False)
        sys.stdout.flush()
    click.echo()
    if stats:
        waited, rest = first - began, max(time.monotonic() - first, 1e-9)
        click.echo(
            f"{model.engine.name}: first token after {waited:.3f} s, then "
            f"{max(count - 1, 0) / rest:.1f} tokens/s",
            err=True,
        )


def _report(model: LanguageModel, answer: Completion) -> dict[str, Any]:
    values = dataclasses.asdict(answer)
    return {
        "model": model.checkpoint.name,
        "engine": model.engine.name,
        "text": answer.text,
        "finish_reason": answer.finish,
        "prompt_tokens": answer.prompt_tokens,
        "generated_tokens": len(answer.tokens),
        "first_token_seconds": values["first_token_seconds"],
        "prefill_tokens_per_second": answer.prompt_rate,
        "decode_tokens_per_second": answer.decode_rate,
    }


def _model_and_prompt(
    words: tuple[str, ...], model: str | None, prompt: str | None
) -> tuple[str, str]:
    from trimtab.generate.locate import DEFAULT_MODEL

    left = list(words)
    if model is None and left and (len(left) > 1 or prompt is not None):
        model = left.pop(0)
    if prompt is None and left:
        prompt = left.pop(0)
    if left:
        raise click.UsageError("Give at most a model and a prompt; quote prompts with spaces.")
    if prompt == "-":
        prompt = sys.stdin.read()
    if not prompt:
        raise click.UsageError("Give a prompt, or '-' to read it from standard input.")
    return model or DEFAULT_MODEL, prompt


def _grammar(json_schema: str | None, grammar: str | None) -> str | None:
    from trimtab.generate.grammar import json_schema_grammar, lark_grammar

    if json_schema is not None and grammar is not None:
        raise click.UsageError("Give either --json-schema or --grammar.")
    if json_schema is not None:
        return json_schema_grammar(_text_or_file(json_schema))
    return None if grammar is None else lark_grammar(_text_or_file(grammar))


def _text_or_file(given: str) -> str:
    from pathlib import Path

    if given.lstrip().startswith(("{", "root", "start", "%")) or "\n" in given:
        return given
    path = Path(given)
    if not path.exists():
        raise InputError(f"There is no file {path}, and it is not a schema or grammar either.")
    return path.read_text("utf-8")
