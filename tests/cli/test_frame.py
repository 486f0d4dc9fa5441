"""The frame of the command: verbs, help, exit codes, streams, colour."""

import os
import subprocess
import sys

import click
import pytest

from trimtab import cli
from trimtab.cli import VERBS, main
from trimtab.errors import InputError

VERB_NAMES = [verb.name for verb in VERBS]


def command(*arguments, **environment):
    """Run the command in a new process."""
    return subprocess.run(
        [sys.executable, "-c", "from trimtab.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def leaves():
    """Every command that does something: verbs, and the members of verbs that are groups."""
    found = {}
    for name in VERB_NAMES:
        verb = cli.group.get_command(click.Context(cli.group), name)
        if isinstance(verb, click.Group):
            found |= {f"{name} {member}": command for member, command in verb.commands.items()}
        else:
            found[name] = verb
    return found


LEAVES = leaves()


@pytest.mark.parametrize("name", LEAVES)
def test_every_verb_has_help_that_fits_a_screen_and_ends_with_an_example(trimtab_command, name):
    shown = trimtab_command(*name.split(), "--help")
    lines = shown.stdout.rstrip().splitlines()
    assert shown.code == 0
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 90
    assert lines[-1].strip().startswith("trimtab ")


# These hold a conversation or stay up; what they say has formats of its own.
ENDLESS = {"chat", "serve"}


@pytest.mark.parametrize("name", [name for name in LEAVES if name not in ENDLESS])
def test_every_verb_writes_json_on_request(name):
    options = {option for parameter in LEAVES[name].params for option in parameter.opts}
    assert {"--json", "--quiet"} <= options


def test_the_help_of_the_group_lists_every_verb_and_ends_with_an_example(trimtab_command):
    shown = trimtab_command("--help")
    assert shown.code == 0
    for verb in VERBS:
        assert f"  {verb.name} " in shown.stdout
        assert verb.summary.split()[0] in shown.stdout
    assert shown.stdout.rstrip().splitlines()[-1].strip().startswith("trimtab ")


def test_listing_the_verbs_imports_none_of_them():
    code = (
        "import sys; from trimtab.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted(m for m in sys.modules if m.startswith('trimtab')), file=sys.stderr)\n"
        "print('jax' in sys.modules, 'rich' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, heavy = done.stderr.splitlines()
    assert modules == "['trimtab', 'trimtab.cli', 'trimtab.errors']"
    assert heavy == "False False"


def test_the_version_is_printed(trimtab_command):
    shown = trimtab_command("--version")
    assert (shown.code, shown.stdout) == (0, "trimtab 0.1.0\n")


def test_an_unknown_verb_is_misuse_and_suggests_the_nearest(trimtab_command):
    shown = trimtab_command("reprodce")
    assert shown.code == 2
    assert "No such verb 'reprodce'. Did you mean 'reproduce'?" in shown.stderr
    assert shown.stdout == ""


def test_an_unknown_option_is_misuse(trimtab_command):
    assert trimtab_command("doctor", "--nonsense").code == 2


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (InputError("A is 3; give 4."), 1, "trimtab: A is 3; give 4.\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(trimtab_command, monkeypatch, raised, code, line):
    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(cli.group, "invoke", fail)
    shown = trimtab_command("doctor")
    assert (shown.code, shown.stdout) == (code, "")
    assert shown.stderr.lstrip("\n") == line


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(cli.group, "invoke", fail)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_a_reader_that_leaves_early_causes_no_complaint():
    code = "from trimtab.cli import main; main(['completion', 'bash'])"
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(0.3)\n" + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    complaint = process.stderr.read()
    process.wait()
    assert complaint == b""


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_pipe_gets_no_colour(variables):
    shown = command("reproduce", "--list", **variables)
    assert shown.returncode == 0
    assert "\x1b" not in shown.stdout + shown.stderr


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({"TERM": "xterm-256color"}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_a_terminal_gets_colour_unless_it_is_unwelcome(fake_systems, variables, coloured):
    pty = pytest.importorskip("pty")
    environment = {**os.environ, "TERM": "xterm-256color", **variables}
    environment.pop("NO_COLOR" if coloured else "", None)
    master, slave = pty.openpty()
    code = "from trimtab.cli import main; main(['reproduce', '--list'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=slave, env=environment)
    os.close(slave)
    text = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:
            break
        if not chunk:
            break
        text += chunk
    assert process.wait() == 0
    assert (b"\x1b[3" in text) == coloured


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_names_the_command(trimtab_command, shell):
    shown = trimtab_command("completion", shell)
    assert shown.code == 0
    assert "_TRIMTAB_COMPLETE" in shown.stdout


def test_completion_takes_the_users_shell_and_refuses_an_unknown_one(trimtab_command, monkeypatch):
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert trimtab_command("completion", "--json").json["shell"] == "fish"
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    shown = trimtab_command("completion")
    assert shown.code == 2
    assert "Name the shell: bash, zsh, fish." in shown.stderr


def test_the_shell_completes_verbs_and_systems():
    def complete(words, position):
        done = command(
            _TRIMTAB_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(position)
        )
        return {line.split(",")[1] for line in done.stdout.splitlines()}

    assert complete("trimtab rep", 1) == {"reproduce"}
    assert complete("trimtab reproduce fn", 2) == {"fnet"}
