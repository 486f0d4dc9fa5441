"""How tests of the command run it: in this process, with both streams apart."""

import json

import pytest
from click.testing import CliRunner

from published import fake_systems as fake_systems
from trimtab.cli import main


class Finished:
    """What a run of the command left."""

    def __init__(self, code, stdout, stderr):
        self.code, self.stdout, self.stderr = code, stdout, stderr

    @property
    def json(self):
        return json.loads(self.stdout)


@pytest.fixture
def trimtab_command(capfd, monkeypatch):
    """Run ``trimtab ARGUMENTS`` and return exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Finished(stop.value.code, captured.out, captured.err)

    return run


@pytest.fixture
def runner():
    """Click's own runner, for help pages and completion."""
    return CliRunner()
