"""The scheduler: batching changes nothing, prefixes are reused, everything ends."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny_language_models import build_tiny
from trimtab.errors import InputError
from trimtab.generate.batch import ContextLengthError, Request
from trimtab.generate.grammar import json_schema_grammar, lark_grammar, regex_grammar
from trimtab.generate.sampling import GREEDY, SamplingOptions

PROMPTS = ["a", "hello there", "x" * 70, "The quick brown fox " * 5]


def requests(**settings) -> list[Request]:
    return [
        Request(
            tokens=tuple(prompt.encode()),
            options=SamplingOptions(seed=index, top_k=20),
            ignore_end=True,
            **{"max_tokens": 12, **settings},
        )
        for index, prompt in enumerate(PROMPTS * 2)
    ]


def test_answers_do_not_depend_on_what_runs_beside_them(tiny):
    together = tiny.complete(requests())
    alone = [tiny.complete([request])[0] for request in requests()]
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
    assert all(len(answer.tokens) == 12 and answer.finish == "length" for answer in together)


def test_greedy_generation_follows_the_plain_forward_pass(tiny):
    prompt = list(b"once upon a time")
    answer = tiny.generate(prompt, options=GREEDY, max_tokens=10, ignore_end=True)
    forward = jax.jit(lambda model, tokens: model(tokens))
    tokens = list(prompt)
    for _ in range(10):
        # One padded shape: the causal mask keeps the padding out.
        padded = jnp.asarray([tokens + [0] * (32 - len(tokens))])
        logits = np.array(forward(tiny.engine.model, padded)[0, len(tokens) - 1])
        logits[list(tiny.tokenizer.ends)] = -np.inf
        tokens.append(int(logits.argmax()))
    assert list(answer.tokens) == tokens[len(prompt) :]


def test_a_repeated_beginning_is_reused_without_changing_the_answer():
    model = build_tiny(slots=2)
    prompt = "y" * 150
    first = model.generate(prompt, options=GREEDY, max_tokens=8, ignore_end=True)
    second = model.generate(prompt, options=GREEDY, max_tokens=8, ignore_end=True)
    other = model.generate(prompt[:100] + "z", options=GREEDY, max_tokens=8)
    assert (first.reused_tokens, second.reused_tokens, other.reused_tokens) == (0, 128, 64)
    assert first.tokens == second.tokens


def test_prefix_reuse_survives_rings_of_windowed_layers():
    model = build_tiny(capacity=256, layer_windows=(16, 0))
    prompt = "abcdefgh" * 20
    first = model.generate(prompt, options=GREEDY, max_tokens=8, ignore_end=True)
    second = model.generate(prompt, options=GREEDY, max_tokens=8, ignore_end=True)
    assert second.reused_tokens == 128
    assert first.tokens == second.tokens


def test_the_prefix_cache_keeps_to_its_budget():
    from trimtab.generate.batch import Batch

    model = build_tiny()
    page = model.engine.cache_bytes * 64 // model.engine.capacity
    model.batch = Batch(model.engine, model.tokenizer, prefix_bytes=2 * page)
    for letter in "abc":
        model.generate(letter * 150, options=GREEDY, max_tokens=1)
    assert len(model.batch.prefix) == 2


def test_scores_are_log_probabilities_of_the_forward_pass(tiny):
    tokens = list(np.random.default_rng(0).integers(0, 256, 200))
    forward = jax.jit(lambda model, tokens: model(tokens))
    logits = np.asarray(forward(tiny.engine.model, jnp.asarray([tokens])))[0]
    rows = np.asarray(jax.nn.log_softmax(logits))
    wanted = rows[np.arange(199), tokens[1:]]
    got = tiny.score([int(token) for token in tokens])
    assert np.isnan(got[0])
    assert np.abs(got[1:] - wanted).max() <= 1e-4


def test_scoring_from_a_later_token_gives_the_same_numbers(tiny):
    tokens = tuple(int(t) for t in np.random.default_rng(1).integers(0, 256, 180))
    whole = tiny.complete([Request(tokens, max_tokens=0, top=0, echo=True)])[0].logs
    late = Request(tokens, max_tokens=0, top=0, echo=True, echo_start=150)
    for _ in range(2):
        part = tiny.complete([late])[0]
        assert [log.token for log in part.logs] == list(tokens[150:])
        for one, other in zip(part.logs, whole[150:], strict=True):
            assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)
    assert part.reused_tokens == 128


def test_log_probabilities_of_generated_tokens_match_their_scores(tiny):
    answer = tiny.generate("some text", options=SamplingOptions(seed=1), max_tokens=6, top=3,
                           ignore_end=True)  # fmt: skip
    scores = tiny.score([*b"some text", *answer.tokens])[-6:]
    for log, score in zip(answer.logs, scores, strict=True):
        assert log.log_probability == pytest.approx(float(score), abs=1e-4)
        assert len(log.top) == 3


def test_embeddings_are_mean_hidden_states(tiny):
    tokens = jnp.asarray([list(b"embed me")])
    model = tiny.engine.model
    from trimtab.models.decoder import KVCache

    cache = KVCache.empty(model.config, 1, 16, "float32")
    hidden, _ = jax.jit(lambda m, *rest: m.extend(*rest))(
        model, tokens, jnp.zeros(1, int), jnp.asarray([8]), cache
    )
    assert np.allclose(tiny.embed("embed me"), hidden[0].mean(0), atol=1e-5)


def test_a_stop_string_ends_generation_and_is_not_shown(tiny):
    free = tiny.generate("go", options=GREEDY, max_tokens=12, ignore_end=True)
    raw = tiny.tokenizer.decode(free.tokens)
    stop = raw[4:6]
    held = tiny.generate("go", options=GREEDY, max_tokens=12, ignore_end=True, stops=[stop])
    assert held.finish == "stop"
    assert held.text == raw[: raw.find(stop)]


def test_json_schemas_are_obeyed_at_any_temperature(tiny):
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
        "required": ["ok", "kind"],
        "additionalProperties": False,
    }
    for seed in range(3):
        answer = tiny.generate(
            "q", options=SamplingOptions(seed=seed), max_tokens=100,
            grammar=json_schema_grammar(schema),
        )  # fmt: skip
        value = json.loads(answer.text)
        assert set(value) == {"ok", "kind"}
        assert answer.finish == "stop"


def test_other_grammars_are_obeyed(tiny):
    options = SamplingOptions(seed=0)
    answer = tiny.generate("q", options=options, grammar=regex_grammar("(yes|no){2}"))
    assert answer.text in {"yesyes", "yesno", "noyes", "nono"}
    answer = tiny.generate("q", options=options, grammar=lark_grammar('start: "x" "y"'))
    assert answer.text == "xy"
    answer = tiny.generate("q", options=options, grammar=lark_grammar('root ::= "u" "v"'))
    assert answer.text == "uv"


def test_a_bad_grammar_is_refused_before_it_runs(tiny):
    with pytest.raises(InputError, match="grammar"):
        tiny.generate("q", grammar=lark_grammar("start: undefined_rule"))
    assert tiny.batch.idle


def test_requests_that_cannot_run_are_refused(tiny):
    for bad in ((), (9999,), (-1,)):
        with pytest.raises(InputError):
            tiny.generate(bad)
    with pytest.raises(ContextLengthError, match=r"400 tokens.*256"):
        tiny.generate("x" * 400)
    with pytest.raises(InputError, match="logit_bias"):
        tiny.generate("x", options=SamplingOptions(logit_bias={5000: 1.0}))
    assert tiny.batch.idle


def test_generation_ends_at_the_end_of_the_context(tiny):
    answer = tiny.generate("x" * 250, options=GREEDY, max_tokens=50, ignore_end=True)
    assert answer.finish == "length"
    assert answer.prompt_tokens + len(answer.tokens) == 256


def test_closing_a_stream_frees_its_slot(tiny):
    stream = tiny.stream("x", options=GREEDY, max_tokens=100, ignore_end=True)
    next(stream)
    assert tiny.batch.running == 1
    stream.close()
    assert tiny.batch.idle


def test_more_requests_than_slots_all_finish(tiny):
    answers = tiny.complete([Request((65, index), max_tokens=3) for index in range(20)])
    assert len(answers) == 20
    assert tiny.batch.idle


def test_an_answer_is_the_same_whatever_slot_it_runs_in(tiny):
    request = Request(tuple(b"slot"), max_tokens=5, options=GREEDY, ignore_end=True)
    answers = tiny.complete([request] * 4)
    assert len({answer.tokens for answer in answers}) == 1
