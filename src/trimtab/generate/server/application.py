"""Routes of the server, on Starlette."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import ipaddress
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from trimtab.errors import InputError, MissingExtraError, TrimtabError, require_extra
from trimtab.generate.batch import ContextLengthError, Event
from trimtab.generate.chat import check_messages, render
from trimtab.generate.language_model import LanguageModel
from trimtab.generate.server.answers import (
    Envelope,
    chat_logprobs,
    completion_logprobs,
    error_body,
    event_line,
    usage,
)
from trimtab.generate.server.measures import Measures
from trimtab.generate.server.protocol import (
    Call,
    FieldError,
    chat_call,
    completion_call,
    embedding_inputs,
    text_field,
)
from trimtab.generate.server.tools import read_calls
from trimtab.generate.server.worker import Answer, QueueFullError, Worker


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """How the server behaves.

    Attributes:
        host: address to listen on; others than loopback need ``api_key``.
        port: TCP port.
        api_key: clients must send it as a bearer token; None asks for none.
        queue: how many requests may wait for a slot before 429 is answered.
        body_bytes: largest request body.
        model_name: what ``/v1/models`` reports; None takes the file's name.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    queue: int = 64
    body_bytes: int = 4 << 20
    model_name: str | None = None

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.api_key:
            raise InputError(
                f"Listening on {self.host} lets other machines in. Pass an API key, or listen on "
                "127.0.0.1."
            )
        if self.queue < 0 or self.body_bytes < 1:
            raise InputError("The queue must not be negative, and bodies need at least a byte.")


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class BodyError(TrimtabError):
    """A body is too large or not a JSON object."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Service:
    """Handlers over one model."""

    def __init__(self, model: LanguageModel, settings: ServerSettings) -> None:
        self.model = model
        self.settings = settings
        self.worker = Worker(model, settings.queue)
        self.measures = Measures()
        self.name = settings.model_name or model.checkpoint.path.stem
        self.created = int(time.time())

    # Simple routes.

    async def health(self, request: Any) -> Any:
        return _json({"status": "ok"})

    async def models(self, request: Any) -> Any:
        return _json({"object": "list", "data": [self._card()]})

    async def one_model(self, request: Any) -> Any:
        wanted = request.path_params["name"]
        if wanted != self.name:
            message = f"There is no model {wanted!r}; this server runs {self.name!r}."
            return _json(error_body(message, "not_found_error", "model", "model_not_found"), 404)
        return _json(self._card())

    async def metrics(self, request: Any) -> Any:
        responses = require_extra("starlette.responses", "serve", "The server")
        text = self.measures.exposition(self.model)
        return responses.PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def tokenize(self, request: Any) -> Any:
        body = await self._body(request)
        tokens = self.model.tokenizer.encode(
            text_field(body, "content"),
            begin=bool(body.get("add_special", False)),
            special=bool(body.get("parse_special", False)),
        )
        return _json({"tokens": tokens})

    async def detokenize(self, request: Any) -> Any:
        tokens = (await self._body(request)).get("tokens")
        if not isinstance(tokens, list) or any(type(token) is not int for token in tokens):
            raise FieldError("tokens", "tokens must be a list of whole numbers.")
        return _json({"content": self.model.tokenizer.decode(tokens, special=True)})

    async def apply_template(self, request: Any) -> Any:
        body = await self._body(request)
        messages = check_messages(body.get("messages"))
        template = self.model.checkpoint.chat_template
        return _json({"prompt": render(template, messages, self.model.tokenizer)})

    async def embeddings(self, request: Any) -> Any:
        body = await self._body(request)
        requests = await asyncio.to_thread(embedding_inputs, body, self.model)
        answers = self.worker.submit(requests)
        data = []
        async with self._watched(request, answers):
            for index, answer in enumerate(answers):
                vector = (await self._last_event(answer)).embedding
                assert vector is not None
                form: Any = vector.tolist()
                if body.get("encoding_format") == "base64":
                    form = base64.b64encode(vector.astype("<f4").tobytes()).decode()
                data.append({"object": "embedding", "index": index, "embedding": form})
        count = sum(len(one.tokens) for one in requests)
        counts = {"prompt_tokens": count, "total_tokens": count}
        return _json({"object": "list", "data": data, "model": self.name, "usage": counts})

    # Generation.

    async def completions(self, request: Any) -> Any:
        body = await self._body(request)
        call = await asyncio.to_thread(completion_call, body, self.model)
        return await self._generate(request, call, chat=False)

    async def chat(self, request: Any) -> Any:
        body = await self._body(request)
        call = await asyncio.to_thread(chat_call, body, self.model)
        return await self._generate(request, call, chat=True)

    async def _generate(self, request: Any, call: Call, *, chat: bool) -> Any:
        answers = self.worker.submit(call.requests)
        envelope = Envelope(chat, self.name)
        headers = {"x-trimtab-ignored": ", ".join(call.ignored)} if call.ignored else {}
        if call.stream:
            responses = require_extra("starlette.responses", "serve", "The server")
            return responses.StreamingResponse(
                self._stream(call, answers, envelope),
                media_type="text/event-stream",
                headers={**headers, "cache-control": "no-store"},
            )
        choices = []
        async with self._watched(request, answers):
            for index, answer in enumerate(answers):
                events = [event async for event in self._events(answer)]
                choices.append(self._choice(call, index, answer, events, chat=chat))
        return _json(envelope.body(choices, self._usage(call, answers)), headers=headers)

    def _choice(
        self, call: Call, index: int, answer: Answer, events: list[Event], *, chat: bool
    ) -> dict[str, Any]:
        text = "".join(event.text for event in events)
        logs = [log for event in events for log in event.logs]
        finish = events[-1].finish
        tokenizer = self.model.tokenizer
        if not chat:
            if call.echo:
                text = tokenizer.decode(call.requests[index].tokens, special=True) + text
            report = None if call.top is None else completion_logprobs(logs, tokenizer)
            return {"index": index, "text": text, "logprobs": report, "finish_reason": finish}
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        calls = read_calls(text, call.tools) if call.tools else []
        if calls:
            message |= {"content": None, "tool_calls": calls}
            finish = "tool_calls"
        report = None if call.top is None else chat_logprobs(logs, tokenizer)
        return {"index": index, "message": message, "logprobs": report, "finish_reason": finish}

    async def _stream(
        self, call: Call, answers: list[Answer], envelope: Envelope
    ) -> AsyncIterator[bytes]:
        merged: asyncio.Queue[tuple[int, Event | None]] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._forward(index, answer, merged))
            for index, answer in enumerate(answers)
        ]
        parts = [_StreamedChoice(self, call, index, envelope) for index in range(len(answers))]
        try:
            for part in parts:
                for body in part.opening():
                    yield event_line(body)
            left = len(answers)
            while left:
                index, event = await merged.get()
                if event is None:
                    left -= 1
                    continue
                for body in parts[index].bodies(event):
                    yield event_line(body)
            if call.usage_in_stream:
                yield event_line(envelope.chunk([], usage=self._usage(call, answers)))
            yield event_line("[DONE]")
        except TrimtabError as error:
            yield event_line(error_body(str(error), "server_error"))
        finally:
            self._give_up(answers)
            for task in tasks:
                task.cancel()

    async def _forward(self, index: int, answer: Answer, merged: asyncio.Queue) -> None:
        async for event in self._events(answer, raising=False):
            await merged.put((index, event))
        await merged.put((index, None))

    async def _events(self, answer: Answer, *, raising: bool = True) -> AsyncIterator[Event]:
        """Yield an answer's events until its end, and measure it."""
        while True:
            event = await answer.events.get()
            running = answer.running
            if event.finish is not None and running is not None:
                timing = running.timing
                if timing.first_token:
                    self.measures.first_token.observe(timing.first_token - timing.submitted)
                self.measures.duration.observe(timing.finished - timing.submitted)
                if raising and running.error is not None:
                    raise running.error
            yield event
            if event.finish is not None:
                return

    async def _last_event(self, answer: Answer) -> Event:
        last = Event()
        async for event in self._events(answer):
            last = event
        return last

    @asynccontextmanager
    async def _watched(self, request: Any, answers: list[Answer]) -> AsyncIterator[None]:
        """Give the answers up when the client goes away or the block fails."""
        watcher = asyncio.create_task(self._give_up_on_disconnect(request, answers))
        try:
            yield
        finally:
            watcher.cancel()
            self._give_up(answers)

    async def _give_up_on_disconnect(self, request: Any, answers: list[Answer]) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._give_up(answers)

    def _give_up(self, answers: list[Answer]) -> None:
        open_answers = [
            answer
            for answer in answers
            if answer.running is not None and answer.running.finish is None
        ]
        if open_answers:
            self.measures.cancelled += len(open_answers)
            self.worker.cancel(open_answers)

    def _usage(self, call: Call, answers: list[Answer]) -> dict[str, Any]:
        running = [answer.running for answer in answers if answer.running is not None]
        generated = sum(len(one.tokens) - one.prompt_length for one in running)
        return usage(call.prompt_tokens, generated, sum(one.reused for one in running))

    async def _body(self, request: Any) -> dict[str, Any]:
        limit, chunks, size = self.settings.body_bytes, [], 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise BodyError(413, f"The body exceeds {limit} bytes.")
            chunks.append(chunk)
        try:
            body = json.loads(b"".join(chunks))
        except (ValueError, RecursionError) as error:
            raise BodyError(400, f"The body is not valid JSON: {error}.") from error
        if not isinstance(body, dict):
            raise BodyError(400, "The body must be a JSON object.")
        return body

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "local",
            "context_length": self.model.engine.capacity,
        }


class _StreamedChoice:
    """Turns one choice's events into chunks."""

    def __init__(self, service: Service, call: Call, index: int, envelope: Envelope) -> None:
        self._service, self._call, self._index = service, call, index
        self._envelope = envelope
        self._text = ""
        self._offset = 0

    def opening(self) -> list[dict[str, Any]]:
        if self._envelope.chat:
            return [self._chunk({"delta": {"role": "assistant", "content": ""}})]
        if self._call.echo:
            tokenizer = self._service.model.tokenizer
            text = tokenizer.decode(self._call.requests[self._index].tokens, special=True)
            return [self._chunk({"text": text})]
        return []

    def bodies(self, event: Event) -> list[dict[str, Any]]:
        if event.finish in ("error", "cancelled"):
            message = "The engine failed on this request; see the server's log."
            return [error_body(message, "server_error")]
        if not self._envelope.chat:
            return self._plain(event)
        if self._call.tools:
            return self._with_tools(event)
        return self._chat(event)

    def _plain(self, event: Event) -> list[dict[str, Any]]:
        report = None
        if self._call.top is not None and event.logs:
            tokenizer = self._service.model.tokenizer
            report = completion_logprobs(event.logs, tokenizer, self._offset)
            self._offset += sum(len(text) for text in report["tokens"])
        if not (event.text or report or event.finish):
            return []
        return [self._chunk({"text": event.text, "logprobs": report}, event.finish)]

    def _chat(self, event: Event) -> list[dict[str, Any]]:
        bodies = []
        if event.text or event.logs:
            report = None
            if self._call.top is not None:
                report = chat_logprobs(event.logs, self._service.model.tokenizer)
            bodies.append(self._chunk({"delta": {"content": event.text}, "logprobs": report}))
        if event.finish is not None:
            bodies.append(self._chunk({"delta": {}}, event.finish))
        return bodies

    def _with_tools(self, event: Event) -> list[dict[str, Any]]:
        # Whether it is a call shows only at the end, so the text is held until then.
        self._text += event.text
        if event.finish is None:
            return []
        calls = read_calls(self._text, self._call.tools)
        if not calls:
            text = self._chunk({"delta": {"content": self._text}})
            return [text, self._chunk({"delta": {}}, event.finish)]
        numbered = [{"index": number, **call} for number, call in enumerate(calls)]
        part = self._chunk({"delta": {"tool_calls": numbered}})
        return [part, self._chunk({"delta": {}}, "tool_calls")]

    def _chunk(self, choice: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        whole = {"index": self._index, "logprobs": None, **choice, "finish_reason": finish}
        return self._envelope.chunk([whole])


def build_application(model: LanguageModel, settings: ServerSettings | None = None) -> Any:
    """Return the ASGI application.

    Args:
        model: what to serve; its batch belongs to the server from now on.
        settings: how to behave.

    Raises:
        MissingExtraError: Starlette is not installed.
    """
    applications = require_extra("starlette.applications", "serve", "The server")
    routing = require_extra("starlette.routing", "serve", "The server")
    settings = settings or ServerSettings()
    service = Service(model, settings)

    @asynccontextmanager
    async def lifespan(application: Any) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await asyncio.to_thread(service.worker.stop)

    def route(path: str, handler: Callable[[Any], Awaitable[Any]], method: str = "POST") -> Any:
        return routing.Route(path, _guarded(service, path, handler), methods=[method])

    return applications.Starlette(
        routes=[
            route("/health", service.health, "GET"),
            route("/v1/models", service.models, "GET"),
            route("/v1/models/{name:path}", service.one_model, "GET"),
            route("/metrics", service.metrics, "GET"),
            route("/v1/chat/completions", service.chat),
            route("/v1/completions", service.completions),
            route("/v1/embeddings", service.embeddings),
            route("/tokenize", service.tokenize),
            route("/detokenize", service.detokenize),
            route("/apply-template", service.apply_template),
        ],
        lifespan=lifespan,
        exception_handlers={404: _not_found, 405: _not_found},
    )


def _guarded(
    service: Service, path: str, handler: Callable[[Any], Awaitable[Any]]
) -> Callable[[Any], Awaitable[Any]]:
    """Check host and key, turn our errors into bodies, count the answer."""

    async def answer(request: Any) -> Any:
        response = _refusal(service.settings, path, request)
        if response is None:
            try:
                response = await handler(request)
            except (TrimtabError, ValueError) as error:
                response = _error_response(error)
        service.measures.requests[path, response.status_code] += 1
        return response

    return answer


def _refusal(settings: ServerSettings, path: str, request: Any) -> Any:
    if is_loopback(settings.host) and not is_loopback(request.url.hostname or ""):
        # A page in the user's browser may point its own name at 127.0.0.1.
        message = "This server answers requests to localhost only."
        return _json(error_body(message, "permission_error"), 403)
    if settings.api_key is None or path == "/health":
        return None
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if secrets.compare_digest(given.encode(), settings.api_key.encode()):
        return None
    message = "The API key is missing or wrong. Send it as 'Authorization: Bearer KEY'."
    body = error_body(message, "authentication_error", code="invalid_api_key")
    return _json(body, 401, {"www-authenticate": "Bearer"})


def _error_response(error: Exception) -> Any:
    message = str(error)
    if isinstance(error, QueueFullError):
        body = error_body(message, "rate_limit_error", code="queue_full")
        return _json(body, 429, {"retry-after": "1"})
    if isinstance(error, ContextLengthError):
        body = error_body(message, "invalid_request_error", "messages", "context_length_exceeded")
        return _json(body, 413)
    if isinstance(error, BodyError):
        return _json(error_body(message, "invalid_request_error"), error.status)
    if isinstance(error, MissingExtraError):
        return _json(error_body(message, "server_error"), 501)
    param = error.field if isinstance(error, FieldError) else None
    return _json(error_body(message, "invalid_request_error", param), 400)


async def _not_found(request: Any, error: Any) -> Any:
    message = f"There is no {request.method} {request.url.path} here."
    return _json(error_body(message, "not_found_error"), error.status_code)


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Any:
    responses = require_extra("starlette.responses", "serve", "The server")
    return responses.JSONResponse(_finite(body), status_code=status, headers=headers)


def _finite(value: Any) -> Any:
    """Replace infinities, which JSON cannot say, by a very small log-probability."""
    if isinstance(value, float):
        return value if np.isfinite(value) else -9999.0
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value


def serve(model: LanguageModel, settings: ServerSettings) -> None:
    """Listen until interrupted.

    Args:
        model: what to serve.
        settings: address, key and limits.

    Raises:
        MissingExtraError: uvicorn is not installed.
    """
    uvicorn = require_extra("uvicorn", "serve", "The server")
    uvicorn.run(
        build_application(model, settings),
        host=settings.host,
        port=settings.port,
        log_level="warning",
        timeout_graceful_shutdown=5,
    )
