"""``trimtab simulate``: hardware that you do not have."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from trimtab.cli.output import Output, examples, output_options
from trimtab.errors import InputError, unknown_name


@click.group(subcommand_metavar="KIND [ARGS]...")
def command() -> None:
    """Simulate a program on hardware that you do not have."""


# Functions to try the command with: name to (default shapes, function of jax.numpy arrays).
def attention(query: Any, key: Any, value: Any) -> Any:
    import jax

    scores = query @ key.T / query.shape[-1] ** 0.5
    return jax.nn.softmax(scores, axis=-1) @ value


def layer_norm(x: Any) -> Any:
    import jax

    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-6)


def rms_linear(x: Any, weight: Any) -> Any:
    import jax

    return (x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)) @ weight


_EXAMPLES: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "attention": (attention, ("128,64", "128,64", "128,64")),
    "layer-norm": (layer_norm, ("128,256",)),
    "rms-linear": (rms_linear, ("128,256", "256,64")),
}


@command.command(
    "stream",
    epilog=examples(
        "trimtab simulate stream attention --rewrite --html report.html",
        "trimtab simulate stream jax.nn:softmax --shape 256,512",
        "trimtab simulate stream model.py:layer --shape 64,128 --shape 128:bfloat16",
    ),
)
@click.argument("function", metavar="FUNCTION")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="DIMS[:DTYPE]",
    help="Shape of each argument in turn, such as 128,64:bfloat16 (float32 by default).",
)
@click.option("--rewrite", is_flag=True, help="Search for rewrites that shorten FIFOs.")
@click.option("--second-pass", is_flag=True, help="Let the search read arguments twice.")
@click.option(
    "--depth",
    default="sized",
    show_default=True,
    metavar="N|sized|unlimited",
    help="Depth of all FIFOs; by default the smallest of full throughput.",
)
@click.option("--fork", type=click.Choice(["atomic", "sequential"]), default="atomic")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page.")
@click.option(
    "--trace",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the timeline as trace-event JSON (Perfetto).",
)
@click.option(
    "--vcd", type=click.Path(dir_okay=False, path_type=Path), help="Write the timeline as VCD."
)
@click.option(
    "--dot", type=click.Path(dir_okay=False, path_type=Path), help="Write the graph as DOT."
)
@output_options
def stream(
    output: Output,
    function: str,
    shapes: tuple[str, ...],
    rewrite: bool,
    second_pass: bool,
    depth: str,
    fork: str,
    html: Path | None,
    trace: Path | None,
    vcd: Path | None,
    dot: Path | None,
) -> None:
    """Run FUNCTION on streaming dataflow hardware, cycle by cycle.

    FUNCTION is module:name, file.py:name, or one of attention, layer-norm and rms-linear. The
    report shows throughput, the smallest FIFOs that keep it, where units wait, and what sets the
    pace; a deadlock is explained with the smallest fix, and the exit code is then 1.
    """
    from trimtab.simulate.stream.reporting import report

    call, default_shapes = _load(function)
    arguments = [_argument(shape) for shape in shapes or default_shapes]
    with output.progress() as progress:
        progress(f"simulating {function}")
        result = report(
            call,
            *arguments,
            rewrite=rewrite,
            second_pass=second_pass,
            depth=_depth(depth),
            fork=fork,  # type: ignore[arg-type]
        )
    _write(result, html, trace, vcd, dot)
    if output.json:
        output.document(result.to_json())
    else:
        click.echo(result.text())
    if result.deadlock is not None:
        raise click.exceptions.Exit(1)


def _write(
    result: Any, html: Path | None, trace: Path | None, vcd: Path | None, dot: Path | None
) -> None:
    from trimtab.files import atomic_file
    from trimtab.simulate.stream.display import timeline

    if html is not None:
        with atomic_file(html) as temporary:
            temporary.write_text(result.html())
    if dot is not None:
        with atomic_file(dot) as temporary:
            temporary.write_text(timeline.dot_graph(result.network))
    if trace is not None:
        timeline.write_trace(result.run, trace)
    if vcd is not None:
        timeline.write_vcd(result.run, vcd)


def _depth(text: str) -> int | str | None:
    if text == "unlimited":
        return None
    if text == "sized":
        return text
    if not text.isdigit() or int(text) < 1:
        raise click.BadParameter(f"{text!r} is no depth; give a number, sized or unlimited.")
    return int(text)


def _argument(text: str) -> Any:
    import jax
    import numpy as np

    dims, _, dtype = text.partition(":")
    try:
        shape = tuple(int(size) for size in dims.split(",") if size)
        return jax.ShapeDtypeStruct(shape, jax.numpy.dtype(dtype or "float32"))
    except (TypeError, ValueError) as error:
        known = ", ".join(sorted(np.dtype(t).name for t in ("float32", "float16", "int32", "bool")))
        raise click.BadParameter(
            f"{text!r} is no shape; write 128,64 or 128,64:bfloat16 (also {known})."
        ) from error


def _load(text: str) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """Find a function by module:name, file.py:name or example name."""
    if text in _EXAMPLES:
        return _EXAMPLES[text]
    place, separator, name = text.rpartition(":")
    if not separator:
        raise unknown_name("example", text, _EXAMPLES)
    module = _module_from_file(Path(place)) if place.endswith(".py") else _module(place)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(f"{place} has no {name!r}; give the name of a function in it.")
        found = getattr(found, part)
    return found, ()


def _module(name: str) -> Any:
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"Module {name!r} cannot be imported: {error}.") from error
    finally:
        sys.path.remove("")


def _module_from_file(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"There is no file {str(path)!r}; write file.py:function.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
