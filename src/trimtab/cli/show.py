"""``trimtab show``: what a language model is made of."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from trimtab.cli.output import Output, examples, output_options


@click.command(epilog=examples("trimtab show smollm2", "trimtab show folder --json"))
@click.argument("model", required=False)
@output_options
def command(output: Output, model: str | None) -> None:
    """Describe MODEL, or list the models that are at hand."""
    if model is None:
        _list(output)
        return
    from trimtab.generate.language_model import open_checkpoint

    checkpoint = open_checkpoint(model)
    config = checkpoint.config
    facts: dict[str, Any] = {
        "name": checkpoint.name,
        "path": str(checkpoint.path),
        "architecture": config.architecture,
        "parameters": config.parameters,
        "bytes": checkpoint.nbytes,
        "formats": checkpoint.formats(),
        "tokenizer": checkpoint.vocabulary.kind,
        "chat": checkpoint.chat_template is not None,
        "config": dataclasses.asdict(config),
    }
    if output.json:
        output.document(facts)
        return
    from rich.table import Table

    table = Table(show_header=False, box=None)
    facts.update({f"  {name}": value for name, value in facts.pop("config").items()})
    for name, value in facts.items():
        table.add_row(name, _shown(value))
    output.print(table)


def _list(output: Output) -> None:
    from trimtab.generate.locate import available

    rows = available()
    if output.json:
        models = [
            {"name": name, "path": path and str(path), "description": text}
            for name, path, text in rows
        ]
        output.document({"models": models})
        return
    from rich.table import Table

    table = Table("model", "where", "what", box=None)
    for name, path, text in rows:
        table.add_row(name, str(path) if path else f"trimtab pull {name}", text)
    output.print(table)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)) and len(set(value)) == 1:
        return f"{value[0]} (all {len(value)})"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return str(value)
