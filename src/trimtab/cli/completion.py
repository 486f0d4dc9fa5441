"""``trimtab completion``: the script that makes a shell complete verbs, options and names."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from trimtab.cli.output import Output, examples, output_options

_SHELLS = ("bash", "zsh", "fish")
_FILES = {
    "bash": "~/.local/share/bash-completion/completions/trimtab",
    "zsh": "a folder of $fpath, as _trimtab",
    "fish": "~/.config/fish/completions/trimtab.fish",
}


@click.command(
    epilog=examples("trimtab completion bash > ~/.local/share/bash-completion/completions/trimtab")
)
@click.argument("shell", type=click.Choice(_SHELLS), required=False)
@output_options
def command(output: Output, shell: str | None) -> None:
    """Print the script that makes SHELL complete verbs, options and system names.

    SHELL is bash, zsh or fish; by default the one named by $SHELL. Save the script where the
    shell looks for completions: bash in ~/.local/share/bash-completion/completions/trimtab, zsh
    as _trimtab in a folder of $fpath, fish in ~/.config/fish/completions/trimtab.fish.
    """
    shell = shell or Path(os.environ.get("SHELL", "")).name
    completion = get_completion_class(shell) if shell in _SHELLS else None
    if completion is None:
        raise click.UsageError(f"Name the shell: {', '.join(_SHELLS)}.")
    # Imported here: the group lists this verb.
    from trimtab.cli import group

    script = completion(group, {}, "trimtab", "_TRIMTAB_COMPLETE").source()
    if output.json:
        output.document({"shell": shell, "save_as": _FILES[shell], "script": script})
    else:
        click.echo(script)
