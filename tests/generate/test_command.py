"""The verbs of language models, run as a user would."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tiny_language_models import tiny_checkpoint
from trimtab.cli import VERBS, group
from trimtab.errors import TrimtabError
from trimtab.generate.gguf_model import write_gguf_model


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("command") / "tiny.gguf"
    write_gguf_model(path, tiny_checkpoint())
    return str(path)


def run(*arguments: str, **settings):
    return CliRunner().invoke(group, list(arguments), **settings)


def test_the_verbs_are_listed():
    names = {verb.name for verb in VERBS}
    assert {"generate", "chat", "serve", "evaluate", "show", "pull"} <= names


def test_generate_prints_the_text_or_a_document(tiny_file):
    plain = run("generate", tiny_file, "abc", "-n", "6", "--temp", "0", "--ignore-eos", "-q")
    assert plain.exit_code == 0, plain.output
    assert plain.stdout.startswith("abc")
    whole = run("generate", "-m", tiny_file, "-p", "abc", "-n", "6", "--temp", "0", "--json",
                "--ignore-eos", "-q")  # fmt: skip
    document = json.loads(whole.stdout)
    assert plain.stdout == f"abc{document['text']}\n"
    assert (document["generated_tokens"], document["finish_reason"]) == (6, "length")


def test_the_prompt_may_come_from_standard_input(tiny_file):
    done = run("generate", "-m", tiny_file, "-p", "-", "-n", "0", "-q", input="from a pipe")
    assert done.stdout == "from a pipe\n"


def test_generate_obeys_a_schema(tiny_file):
    schema = '{"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], '
    schema += '"additionalProperties": false}'
    done = run("generate", tiny_file, "x", "--json-schema", schema, "--json", "-q", "-s", "1")
    assert json.loads(json.loads(done.stdout)["text"]) == {"a": 1}


def test_misuse_is_told(tiny_file):
    assert run("generate").exit_code == 2
    assert run("generate", "a", "b", "c").exit_code == 2
    assert run("generate", tiny_file, "x", "--temp", "-1").exit_code == 2
    assert isinstance(run("show", "nonsense").exception, TrimtabError)
    assert isinstance(run("pull", "nonsense").exception, TrimtabError)
    assert isinstance(run("serve", tiny_file, "--host", "0.0.0.0").exception, TrimtabError)


def test_chat_answers_line_by_line(tiny_file):
    done = run("chat", tiny_file, "-n", "4", "--temp", "0", "--json", "-q", input="hi\nagain\n\n")
    turns = [json.loads(line) for line in done.stdout.splitlines()]
    assert [turn["user"] for turn in turns] == ["hi", "again"]


def test_show_describes_a_model(tiny_file):
    document = json.loads(run("show", tiny_file, "--json").stdout)
    assert document["architecture"] == "llama"
    assert document["config"]["layers"] == 2
    assert "q4_0" not in document["formats"]
    assert "layers" in run("show", tiny_file).stdout


def test_evaluate_reports_perplexity_of_a_file(tiny_file, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("some words to predict, over and over. " * 20)
    done = run("evaluate", tiny_file, str(text), "--window", "64", "--json", "-q")
    (result,) = json.loads(done.stdout)["results"]
    assert result["perplexity"] > 1
    assert len(result["windows"]) == -(-len(text.read_text()) // 64)
    assert isinstance(run("evaluate", tiny_file, "no-such-file", "-q").exception, TrimtabError)


def test_windows_that_overlap_predict_each_token_once(tiny_file):
    from trimtab.generate.evaluate import perplexity
    from trimtab.generate.language_model import load

    model = load(tiny_file)
    text = "abcdefghij" * 20
    found = perplexity(model, text, window=64, stride=32)
    assert found.tokens == len(text) - 1
    apart = perplexity(model, text, window=50)
    assert apart.tokens == len(text) - 4


def test_multiple_choice_prefers_the_likelier_option(tiny_file):
    from trimtab.generate.evaluate import Question, multiple_choice, option_log_probabilities
    from trimtab.generate.language_model import load

    model = load(tiny_file)
    context, options = "q" * 70, ("ab", "cd", "efg")
    values = option_log_probabilities(model, context, options)
    whole = model.score(context + options[2])[-3:]
    assert values[2] == pytest.approx(whole.tolist(), abs=2e-2)
    best = max(range(3), key=lambda index: values[index].mean())
    score = multiple_choice(model, [Question(context, options, best)])
    assert (score.accuracy, score.questions) == (1.0, 1)
    assert score.chance == pytest.approx(1 / 3)
