"""``trimtab chat``: talk with a model in the terminal."""

from __future__ import annotations

import sys
from typing import Any

import click

from trimtab.cli.language_model import (
    chosen_options,
    engine_options,
    load_model,
    sampling_options,
)
from trimtab.cli.output import Output, examples, output_options


@click.command(epilog=examples("trimtab chat", "trimtab chat model.gguf --system 'Be brief.'"))
@click.argument("model", default="smollm2")
@click.option("--system", help="The system message.")
@click.option("-n", "--predict", type=click.IntRange(1), default=512, help="Most tokens a turn.")
@sampling_options
@engine_options
@output_options
def command(
    output: Output,
    model: str,
    system: str | None,
    predict: int,
    sampling: dict[str, Any],
    engine_settings: dict[str, Any],
) -> None:
    """Talk with MODEL (default: smollm2). An empty line or Ctrl-D ends the conversation.

    Lines come from standard input, so a script can be piped in; --json prints one object a turn.
    """
    with output.progress() as progress:
        language_model = load_model(model, engine_settings, progress)
    options = chosen_options(language_model, sampling)
    messages: list[dict[str, str]] = []
    if system:
        messages.append({"role": "system", "content": system})
    interactive = sys.stdin.isatty()
    while True:
        line = _next_line(interactive)
        if not line:
            return
        messages.append({"role": "user", "content": line})
        text = ""
        for event in language_model.stream(messages, options=options, max_tokens=predict):
            text += event.text
            if not output.json:
                click.echo(event.text, nl=False)
                sys.stdout.flush()
        messages.append({"role": "assistant", "content": text})
        if output.json:
            import json

            click.echo(json.dumps({"user": line, "assistant": text}, ensure_ascii=False))
        else:
            click.echo()


def _next_line(interactive: bool) -> str:
    if interactive:
        try:
            return input("> ").strip()
        except EOFError:
            return ""
    return sys.stdin.readline().strip()
