"""``trimtab serve``: an OpenAI-compatible server on this machine."""

from __future__ import annotations

from typing import Any

import click

from trimtab.cli.language_model import engine_options, load_model
from trimtab.cli.output import Output, examples, output_options


@click.command(
    epilog=examples("trimtab serve", "trimtab serve model.gguf --port 9000 --parallel 8")
)
@click.argument("model", default="smollm2")
@click.option("--host", default="127.0.0.1", help="Address; others than loopback need a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, help="TCP port.")
@click.option("--api-key", help="Clients must send it as a bearer token.")
@click.option("-np", "--parallel", type=click.IntRange(1), default=4, help="Requests run at once.")
@click.option("--queue", type=click.IntRange(0), default=64, help="Requests that may wait.")
@click.option("--body-limit", type=click.IntRange(1), default=4 << 20, help="Bytes of a body.")
@click.option("--alias", help="The model's name in answers.")
@engine_options
@output_options
def command(
    output: Output,
    model: str,
    host: str,
    port: int,
    api_key: str | None,
    parallel: int,
    queue: int,
    body_limit: int,
    alias: str | None,
    engine_settings: dict[str, Any],
) -> None:
    """Serve MODEL (default: smollm2) at /v1/chat/completions, /v1/completions and others."""
    from trimtab.errors import require_extra
    from trimtab.generate.server import ServerSettings, serve

    for module in ("starlette", "uvicorn"):
        require_extra(module, "serve", "The server")
    settings = ServerSettings(
        host=host, port=port, api_key=api_key, queue=queue, body_bytes=body_limit, model_name=alias
    )
    with output.progress() as progress:
        language_model = load_model(model, engine_settings, progress, slots=parallel)
    where = f"http://{host}:{port}/v1"
    if output.json:
        output.document({"url": where, "model": alias or language_model.checkpoint.path.stem})
    elif not output.quiet:
        click.echo(f"Serving {language_model.checkpoint.name} at {where}", err=True)
    serve(language_model, settings)
