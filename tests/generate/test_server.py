"""The server, asked by the official client over a socket."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import openai
import pytest
import uvicorn

from tiny_language_models import build_tiny
from trimtab.errors import InputError
from trimtab.generate.sampling import GREEDY, SamplingOptions
from trimtab.generate.server import ServerSettings, build_application


class Running:
    """A server on a free port, in a thread."""

    def __init__(self, model, **settings) -> None:
        self.model = model
        self.settings = ServerSettings(model_name="tiny", **settings)
        application = build_application(model, self.settings)
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        config = uvicorn.Config(application, log_level="error", timeout_graceful_shutdown=2)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **settings) -> openai.OpenAI:
        settings = {"api_key": "none", "max_retries": 0, **settings}
        return openai.OpenAI(base_url=f"{self.url}/v1", **settings)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)

    def settle(self) -> None:
        """Wait until nothing runs."""
        for _ in range(1000):
            if self.model.batch.idle:
                return
            time.sleep(0.01)
        raise AssertionError("The batch never became idle.")


@pytest.fixture(scope="module")
def served():
    running = Running(build_tiny(slots=4, capacity=512))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(served):
    return served.client()


def post(served, path: str, body: bytes, **headers) -> tuple[int, dict]:
    request = urllib.request.Request(served.url + path, data=body, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


MESSAGES = [{"role": "user", "content": "Hi"}]


def test_models_are_listed_and_found(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.models.retrieve("other")


def test_a_completion_equals_the_library_call(served, client):
    answer = client.completions.create(
        model="tiny", prompt="abc", max_tokens=8, temperature=0, extra_body={"ignore_eos": True}
    )
    served.settle()
    wanted = build_tiny().generate("abc", options=GREEDY, max_tokens=8, ignore_end=True)
    assert answer.choices[0].text == wanted.text
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 8)


def test_a_chat_answer_and_its_stream_agree(client):
    settings = dict(model="tiny", messages=MESSAGES, max_tokens=12, seed=4, temperature=0.8)
    whole = client.chat.completions.create(**settings)
    chunks = list(
        client.chat.completions.create(
            **settings, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert text == whole.choices[0].message.content
    finishes = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert finishes[-1] == whole.choices[0].finish_reason
    assert set(finishes[:-1]) == {None}
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_completion_stream_equals_the_whole(client):
    settings = dict(model="tiny", prompt="abc", max_tokens=10, seed=2)
    whole = client.completions.create(**settings)
    parts = list(client.completions.create(**settings, stream=True))
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text


def test_several_prompts_and_choices_come_in_order(client):
    answer = client.completions.create(model="tiny", prompt=["a", "b"], n=3, max_tokens=4, seed=1)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert len({choice.text for choice in answer.choices}) > 1
    again = client.completions.create(model="tiny", prompt=["a", "b"], n=3, max_tokens=4, seed=1)
    assert [c.text for c in again.choices] == [c.text for c in answer.choices]


def test_token_ids_are_a_prompt_too(client):
    settings = dict(model="tiny", max_tokens=4, temperature=0)
    by_text = client.completions.create(prompt="abc", **settings)
    by_ids = client.completions.create(prompt=[97, 98, 99], **settings)
    assert by_text.choices[0].text == by_ids.choices[0].text


def test_echo_with_log_probabilities_gives_the_scores_of_the_library(client):
    text = "some longer text to score"
    answer = client.completions.create(
        model="tiny", prompt=text, max_tokens=1, echo=True, logprobs=2, temperature=0
    ).choices[0]
    scores = build_tiny(slots=4).score(text)
    report = answer.logprobs
    assert answer.text.startswith(text)
    assert report.tokens[: len(text)] == list(text)
    assert report.token_logprobs[0] is None
    assert np.allclose(report.token_logprobs[1 : len(text)], scores[1:], atol=1e-5)
    assert report.text_offset[: len(text)] == list(range(len(text)))
    assert len(report.tokens) == len(text) + 1
    only = client.completions.create(model="tiny", prompt=text, max_tokens=0, echo=True, logprobs=0)
    assert only.choices[0].text == text


def test_chat_log_probabilities_sum_to_one_at_most(client):
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=3, logprobs=True, top_logprobs=5
    )
    entries = answer.choices[0].logprobs.content
    assert 1 <= len(entries) <= 3
    for entry in entries:
        values = [top.logprob for top in entry.top_logprobs]
        assert len(values) == 5
        assert values == sorted(values, reverse=True)
        assert np.exp(values).sum() <= 1.0001


def test_stop_strings_and_biases_are_honoured(client):
    forced = client.completions.create(
        model="tiny", prompt="a", max_tokens=6, logit_bias={"122": 100}, temperature=0
    )
    assert forced.choices[0].text == "zzzzzz"
    stopped = client.completions.create(
        model="tiny", prompt="a", max_tokens=6, logit_bias={"122": 100}, stop=["zzz"]
    )
    assert stopped.choices[0].text == ""
    assert stopped.choices[0].finish_reason == "stop"


def test_json_schemas_constrain_the_answer(client):
    schema = {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"],
              "additionalProperties": False}  # fmt: skip
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
    )  # fmt: skip
    assert json.loads(answer.choices[0].message.content)["x"] in (1, 2)


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "set_lamp",
            "description": "Switch a lamp.",
            "parameters": {
                "type": "object",
                "properties": {"on": {"type": "boolean"}},
                "required": ["on"],
                "additionalProperties": False,
            },
        },
    }
]


@pytest.mark.parametrize("stream", [False, True])
def test_a_required_tool_is_called_with_valid_arguments(client, stream):
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice="required", max_tokens=90,
        stream=stream,
    )  # fmt: skip
    if stream:
        chunks = [chunk.choices[0] for chunk in answer if chunk.choices]
        calls = [call for c in chunks for call in c.delta.tool_calls or ()]
        finish = chunks[-1].finish_reason
    else:
        calls, finish = answer.choices[0].message.tool_calls, answer.choices[0].finish_reason
    assert finish == "tool_calls"
    assert calls[0].function.name == "set_lamp"
    assert json.loads(calls[0].function.arguments)["on"] in (True, False)


def test_embeddings_equal_the_library_call(client):
    answer = client.embeddings.create(model="tiny", input=["one", "two"])
    assert len(answer.data) == 2
    assert np.allclose(answer.data[0].embedding, build_tiny().embed("one"), atol=1e-5)


def test_tokens_go_there_and_back(served):
    status, body = post(served, "/tokenize", b'{"content": "hi<|end|>", "parse_special": true}')
    assert (status, body["tokens"]) == (200, [*served.model.tokenizer.encode("hi"), 256])
    status, body = post(served, "/detokenize", json.dumps(body).encode())
    assert body["content"] == "hi<|end|>"
    status, body = post(served, "/apply-template", json.dumps({"messages": MESSAGES}).encode())
    assert body["prompt"] == "<|user|>Hi<|end|><|assistant|>"


BAD_BODIES = {
    "not json": (b"{", 400),
    "not an object": (b"[1]", 400),
    "deep": (b"[" * 100_000, 400),
    "no prompt": (b"{}", 400),
    "empty prompt": (b'{"prompt": ""}', 400),
    "bad temperature": (b'{"prompt": "a", "temperature": "hot"}', 400),
    "nan": (b'{"prompt": "a", "temperature": NaN}', 400),
    "boolean count": (b'{"prompt": "a", "max_tokens": true}', 400),
    "five stops": (b'{"prompt": "a", "stop": ["a","b","c","d","e"]}', 400),
    "bad bias": (b'{"prompt": "a", "logit_bias": {"x": 1}}', 400),
    "bias outside": (b'{"prompt": "a", "logit_bias": {"99999": 1}}', 400),
    "bad ids": (b'{"prompt": [1, 99999]}', 400),
    "surrogate": (b'{"prompt": "\\ud800"}', 400),
    "too many choices": (b'{"prompt": "a", "n": 1000}', 400),
    "oversize prompt": (json.dumps({"prompt": "x" * 1000}).encode(), 413),
    "oversize body": (b'{"prompt": "' + b"x" * (5 << 20) + b'"}', 413),
    "bad grammar": (b'{"prompt": "a", "grammar": "start: ("}', 400),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_requests_get_an_error_of_the_interface(served, name):
    body, wanted = BAD_BODIES[name]
    status, answer = post(served, "/v1/completions", body)
    assert status == wanted
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert len(answer["error"]["message"]) < 500


def test_the_length_error_tells_both_lengths(client):
    with pytest.raises(openai.APIStatusError, match=r"1000 tokens.*512") as caught:
        client.completions.create(model="tiny", prompt="x" * 1000)
    assert caught.value.status_code == 413
    assert caught.value.code == "context_length_exceeded"


def test_unknown_paths_and_fields_are_told(served, client):
    status, answer = post(served, "/v1/nothing", b"{}")
    assert status == 404
    assert "/v1/nothing" in answer["error"]["message"]
    raw = client.completions.with_raw_response.create(
        model="tiny", prompt="a", max_tokens=1, extra_body={"colour": "red"}
    )
    assert raw.headers["x-trimtab-ignored"] == "colour"


def test_metrics_count_what_happened(served, client):
    client.completions.create(model="tiny", prompt="a", max_tokens=3)
    with urllib.request.urlopen(f"{served.url}/metrics") as response:
        text = response.read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["trimtab_generated_tokens_total"]) >= 3
    assert float(values['trimtab_requests_total{path="/v1/completions",status="200"}']) >= 1
    count = float(values["trimtab_request_seconds_count"])
    assert float(values['trimtab_request_seconds_bucket{le="+Inf"}']) == count


def test_a_name_that_points_at_loopback_is_refused(served):
    status, answer = post(served, "/tokenize", b'{"content": "a"}', Host="evil.example:80")
    assert status == 403
    assert "localhost" in answer["error"]["message"]


def test_other_hosts_need_a_key():
    with pytest.raises(InputError, match="API key"):
        ServerSettings(host="0.0.0.0")
    assert ServerSettings(host="0.0.0.0", api_key="k").api_key == "k"


@pytest.fixture(scope="module")
def narrow():
    """One slot, a queue of two, and a key."""
    running = Running(build_tiny(slots=1, capacity=2048), queue=2, api_key="secret")
    yield running
    running.stop()


def test_a_wrong_key_is_refused_and_health_stays_open(narrow):
    with pytest.raises(openai.AuthenticationError, match="API key"):
        narrow.client(api_key="wrong").models.list()
    with urllib.request.urlopen(f"{narrow.url}/health") as response:
        assert json.loads(response.read()) == {"status": "ok"}
    assert narrow.client(api_key="secret").models.list().data


def long_stream(running, **settings):
    return running.client(api_key="secret").completions.create(
        model="tiny", prompt="x", max_tokens=1900, stream=True,
        extra_body={"ignore_eos": True}, **settings,
    )  # fmt: skip


def test_a_full_queue_answers_429_and_dropped_clients_free_it(narrow):
    narrow.settle()
    streams = [long_stream(narrow) for _ in range(3)]
    next(iter(streams[0]))
    with pytest.raises(openai.RateLimitError, match="wait already"):
        long_stream(narrow)
    for stream in streams:
        stream.close()
    narrow.settle()
    answer = narrow.client(api_key="secret").completions.create(
        model="tiny", prompt="a", max_tokens=2
    )
    assert answer.choices


def test_a_client_that_dies_without_closing_cancels_its_request(narrow):
    narrow.settle()
    for stream in (True, False):
        body = {"prompt": "x", "max_tokens": 1900, "ignore_eos": True, "stream": stream}
        raw = json.dumps(body).encode()
        connection = socket.create_connection(("127.0.0.1", narrow.port))
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n"
            f"Content-Length: {len(raw)}\r\n\r\n"
        )
        connection.sendall(head.encode() + raw)
        while narrow.model.batch.idle:
            time.sleep(0.005)
        made = narrow.model.batch.generated_tokens
        connection.close()
        narrow.settle()
        assert narrow.model.batch.generated_tokens - made < 1800


async def _many_clients(running, clients: int, rounds: int) -> int:
    """Ask distinct questions at once; every answer must be the one to its own question."""
    expected = {}
    reference = build_tiny(slots=1, capacity=256)
    prompts = [f"client {index} says " + "ab" * (index % 7) for index in range(clients)]
    for index, prompt in enumerate(prompts):
        options = SamplingOptions(seed=index, top_k=5)
        expected[index] = reference.generate(
            prompt, options=options, max_tokens=6, ignore_end=True
        ).text
    client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0)

    async def ask(index: int, turn: int) -> bool:
        settings = dict(
            model="tiny", prompt=prompts[index], max_tokens=6, seed=index,
            extra_body={"ignore_eos": True, "top_k": 5},
        )  # fmt: skip
        if turn % 2:
            stream = await client.completions.create(**settings, stream=True)
            text = "".join([part.choices[0].text async for part in stream])
        else:
            text = (await client.completions.create(**settings)).choices[0].text
        return text == expected[index]

    async def one(index: int) -> list[bool]:
        return [await ask(index, turn) for turn in range(rounds)]

    outcomes = await asyncio.gather(*(one(index) for index in range(clients)))
    await client.close()
    assert all(all(outcome) for outcome in outcomes)
    return sum(map(len, outcomes))


def test_fifty_clients_at_once_get_their_own_answers(served):
    assert asyncio.run(_many_clients(served, clients=50, rounds=2)) == 100


@pytest.mark.slow
def test_fifty_clients_for_a_minute_get_their_own_answers(served):
    ended, count = time.monotonic() + 60, 0
    while time.monotonic() < ended:
        count += asyncio.run(_many_clients(served, clients=50, rounds=8))
    assert count >= 400
    served.settle()


@pytest.mark.slow
def test_a_thousand_requests_leave_no_memory_behind(served, client):
    import resource

    def ask(times: int) -> None:
        for index in range(times):
            client.completions.create(model="tiny", prompt=f"p{index % 9}", max_tokens=2)

    ask(200)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ask(1000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10
