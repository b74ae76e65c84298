"""OpenAI's interface around a model: FastAPI's routes, and nothing that another module could do.

    request -> checked (requests.py) -> rows or a call -> worker.py -> answer or stream (answers.py)

A bad request gets OpenAI's error object and status 400; one that has to wait too long gets 503.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from common.mistakes import Mistake, cut, sentence, shown
from launcher.serving import answers
from launcher.serving.answers import Answer, ChatForm, Form
from launcher.serving.chat import rendered
from launcher.serving.filling import embed, fill, gaps_of
from launcher.serving.loaded import Loaded
from launcher.serving.requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    FillMaskRequest,
    Prompts,
    WritingRequest,
    as_list,
)
from launcher.serving.requests import Request as AnyRequest
from launcher.serving.sampling import Sampling
from launcher.serving.worker import Busy, Worker
from launcher.serving.writing import Row, score

MOST_BYTES = 4 * 2**20
"""Largest body of a request."""
DEFAULT_TOKENS, DEFAULT_CHAT_TOKENS = 16, 1024
"""Longest texts where nothing else is asked for; the first is OpenAI's."""
DEFAULT_CANDIDATES = 5


class OtherModel(Exception):
    """A model was asked for that is not served here."""


class Server:
    """What the routes share."""

    def __init__(self, worker: Worker, name: str, chat: bool):
        self.worker, self.name, self.chat = worker, name, chat
        self.created = int(time.time())

    @property
    def loaded(self) -> Loaded:
        """The model."""
        return self.worker.loaded

    def check(self, request: AnyRequest, *kinds: str) -> None:
        """Mistake when what is asked is not done here, or not by a model of this kind."""
        if request.model not in (None, self.name):
            raise OtherModel(f"model: {shown(request.model)} is not served here; {self.name!r} is")
        if self.loaded.kind not in kinds:
            what, paths = {
                "encoder": ("an encoder, which fills gaps", "/v1/fill-mask or /v1/embeddings"),
                "encdec": ("an encoder-decoder, which answers", "/v1/completions"),
                "decoder": ("a decoder, which goes on from a text", "/v1/completions"),
            }[self.loaded.kind]
            raise Mistake(f"model: {self.name} is {what}; ask {paths}")
        request.refuse_what_is_not_done()

    def rows(self, prompts: Sequence[list[int]], samplings: Sequence[Sampling]) -> list[Row]:
        """A row for each text that is to be written."""
        return [Row.of(self.loaded, ids, sampling) for ids in prompts for sampling in samplings]

    def encoded(self, prompts: Prompts, key: str) -> list[list[int]]:
        """Tokens of prompts."""
        return [
            self.loaded.encode(each) if isinstance(each, str) else self._checked(each) for each in as_list(prompts, key)
        ]

    def _checked(self, ids: list[int]) -> list[int]:
        self.loaded.check(ids)
        return ids


class Event(NamedTuple):
    """More of a row."""

    row: int
    text: str
    ended: str | None
    error: Exception | None


def follow(worker: Worker, rows: Sequence[Row]) -> AsyncIterator[Event]:
    """Queues rows now, or raises Busy; gives how they get on. Who stops listening cancels them."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()
    places = {row: index for index, row in enumerate(rows)}

    def tell(row: Row) -> None:
        piece = row.text.take(row.is_done)
        if piece or row.is_done:
            loop.call_soon_threadsafe(events.put_nowait, Event(places[row], piece, row.ended, row.error))

    for row in rows:
        row.tell = tell
    worker.write(rows)
    return _told(rows, events)


async def _told(rows: Sequence[Row], events: asyncio.Queue[Event]) -> AsyncIterator[Event]:
    going_on = len(rows)
    try:
        while going_on:
            event = await events.get()
            if event.error is not None:
                raise RuntimeError("the model broke; the server's own words say how") from event.error
            going_on -= event.ended is not None
            yield event
    finally:
        for row in rows:
            row.cancelled = row.ended is None


async def at_once(request: Request, worker: Worker, rows: Sequence[Row]) -> None:
    """Has rows written to their ends, or to where nobody listens any more."""
    async for _ in follow(worker, rows):
        if await request.is_disconnected():
            return


def streamed(
    worker: Worker, rows: Sequence[Row], form: Form, body: WritingRequest, starts: Sequence[str] = ()
) -> StreamingResponse:
    """Rows as server-sent events; `starts` come before their own texts."""
    return StreamingResponse(_lines(follow(worker, rows), rows, form, body, starts), media_type="text/event-stream")


async def _lines(
    events: AsyncIterator[Event], rows: Sequence[Row], form: Form, body: WritingRequest, starts: Sequence[str]
) -> AsyncIterator[str]:
    for index, start in enumerate(starts):
        if start:
            yield _sent(form.chunk(index, start, None))
    try:
        async for event in events:
            yield _sent(form.chunk(event.row, event.text, event.ended))
    except RuntimeError as error:  # the status is sent already
        yield _sent(answers.error(str(error), kind="server_error"))
        return
    if body.stream_options is not None and body.stream_options.include_usage:
        yield _sent(form.last_chunk(answers.usage(rows, body.n or 1)))
    yield "data: [DONE]\n\n"


def _sent(value: Answer) -> str:
    return f"data: {json.dumps(value)}\n\n"


def app_of(server: Server) -> FastAPI:
    """The interface as an application."""
    app = FastAPI(title="shardline", description=f"{server.name}, {server.loaded.architecture.name}")
    app.add_middleware(_Bounded)
    for kind, answer in ERRORS.items():
        app.add_exception_handler(kind, answer)
    worker, loaded = server.worker, server.loaded

    @app.get("/health")
    async def health() -> Answer:
        return {"status": "ok", "model": server.name, "shape": loaded.kind}

    @app.get("/v1/models")
    async def models() -> Answer:
        return {"object": "list", "data": [answers.model(server.name, server.created)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Answer:
        server.check(AnyRequest(model=name), loaded.kind)
        return answers.model(server.name, server.created)

    @app.post("/v1/completions", response_model=None)
    async def completions(body: CompletionRequest, request: Request) -> Answer | StreamingResponse:
        server.check(body, "decoder", "encdec")
        _check_completion(body, loaded)
        prompts = server.encoded(body.prompt, "prompt")
        samplings = body.samplings(DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens, body.logprobs)
        rows, form = server.rows(prompts, samplings), Form(server.name)
        starts = [_start(server, body, index, len(samplings)) for index in range(len(rows))] if body.echo else []
        if body.stream:
            return streamed(worker, rows, form, body, starts)
        await at_once(request, worker, rows)
        scored = await _scored(worker, rows) if body.echo and body.logprobs is not None else None
        choices = []
        for index, row in enumerate(rows):
            found = None
            if body.logprobs is not None:
                first, before = (None, []) if scored is None else (row.prompt[0], scored[index])
                found = answers.logprobs(loaded, [*before, *row.taken], first)
            text = (starts[index] if starts else "") + row.text.text
            choices.append(form.choice(index, text, row.ended, found))
        return form.whole(choices, answers.usage(rows, len(samplings)))

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Answer | StreamingResponse:
        server.check(body, "decoder", "encdec")
        if not server.chat:
            raise Mistake(
                "messages: the server was started without --chat, which lets it run the folder's chat template"
            )
        said = [message.plain() for message in body.messages]
        (prompt,) = await run_in_threadpool(rendered, loaded.path, loaded.tokenizer, [said])
        asked = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
        samplings = body.samplings(DEFAULT_CHAT_TOKENS if asked is None else asked)
        rows, form = server.rows([loaded.encode(prompt, as_it_is=True)], samplings), ChatForm(server.name)
        if body.stream:
            return streamed(worker, rows, form, body)
        await at_once(request, worker, rows)
        choices = [form.choice(index, row.text.text, row.ended) for index, row in enumerate(rows)]
        return form.whole(choices, answers.usage(rows, len(samplings)))

    @app.post("/v1/embeddings", response_model=None)
    async def embeddings(body: EmbeddingRequest) -> Answer:
        server.check(body, "encoder")
        texts = server.encoded(body.input, "input")
        parts = await _in_batches(worker, texts, lambda part: embed(loaded, part))
        vectors = [vector for part in parts for vector in part]
        return answers.embeddings(server.name, vectors, sum(map(len, texts)), body.encoding_format == "base64")

    @app.post("/v1/fill-mask", response_model=None)
    async def fill_mask(body: FillMaskRequest) -> Answer:
        server.check(body, "encoder")
        texts = [gaps_of(loaded, str(text), "input") for text in as_list(body.input, "input")]
        likeliest, count = Sampling(temperature=0), body.top_k or DEFAULT_CANDIDATES
        parts = await _in_batches(worker, texts, lambda part: fill(loaded, part, likeliest, count))
        return answers.filled(server.name, [filled for part in parts for filled in part])

    return app


def _check_completion(body: CompletionRequest, loaded: Loaded) -> None:
    """Mistake when keys of a request do not go together."""
    if body.best_of not in (None, body.n or 1):
        raise Mistake(f"best_of: {body.best_of} was found, which is only done where it is n; leave it out")
    if body.stream and body.logprobs is not None:
        raise Mistake("logprobs: they are not streamed; leave out stream or logprobs")
    if body.echo and body.logprobs is not None and (loaded.kind != "decoder" or loaded.architecture.shipped):
        raise Mistake(
            "echo: with logprobs it asks how likely the prompt is, which only a causal model knows: this one has read "
            "all of it before the first token; leave out echo"
        )


def _start(server: Server, body: CompletionRequest, index: int, num_samples: int) -> str:
    """A row's prompt as it was given."""
    prompt = as_list(body.prompt, "prompt")[index // num_samples]
    return prompt if isinstance(prompt, str) else server.loaded.decode(prompt)


async def _scored(worker: Worker, rows: Sequence[Row]) -> list[list[Any]]:
    """How likely the tokens of prompts are."""
    asked = [partial(score, worker.loaded, row.prompt, row.sampling.logprobs or 0) for row in rows]
    return [await asyncio.wrap_future(worker.call(work)) for work in asked]


async def _in_batches(worker: Worker, texts: Sequence[list[int]], work: Callable[[Any], Any]) -> list[Any]:
    """What `work` makes of texts, so many at once as the model reads."""
    size = worker.most_rows
    asked = [partial(work, texts[start : start + size]) for start in range(0, len(texts), size)]
    return [await asyncio.wrap_future(worker.call(part)) for part in asked]


class _Bounded:
    """Refuses bodies that are larger than any prompt, or do not say how large they are."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            length = Headers(scope=scope).get("content-length")
            if length is None or not length.isdecimal() or int(length) > MOST_BYTES:
                found = "no length" if length is None else f"{cut(length)} bytes"
                message = f"the body has {found}; say its Content-Length, which may be {MOST_BYTES} bytes"
                await JSONResponse(answers.error(message), 400)(scope, receive, send)
                return
        await self.app(scope, receive, send)


async def _mistake(_: Request, error: Any) -> JSONResponse:
    return JSONResponse(answers.error(sentence(error)), 400)


async def _not_valid(_: Request, error: Any) -> JSONResponse:
    fault = error.errors()[0]
    kind, key = fault["type"], ".".join(str(part) for part in fault["loc"][1:2]) or "body"
    if kind == "json_invalid":
        message = f"the body is no JSON ({fault['ctx']['error']})"
    elif kind == "extra_forbidden":
        message = f"{key}: no such key is known here; leave it out"
    elif kind == "missing":
        message = f"{key}: it is missing"
    else:
        message = f"{key}: {shown(fault['input'])} was found; {fault['msg'][:1].lower()}{fault['msg'][1:]}"
    return JSONResponse(answers.error(message), 400)


async def _other_model(_: Request, error: Any) -> JSONResponse:
    return JSONResponse(answers.error(str(error), code="model_not_found"), 404)


async def _busy(_: Request, error: Any) -> JSONResponse:
    return JSONResponse(answers.error(str(error), kind="server_error"), 503, headers={"Retry-After": "1"})


async def _http(request: Request, error: Any) -> JSONResponse:
    message = f"{request.method} {request.url.path} is not answered here ({error.detail}); /docs lists what is"
    return JSONResponse(answers.error(message), error.status_code, headers=error.headers)


async def _fault(_: Request, error: Any) -> JSONResponse:
    return JSONResponse(answers.error(str(error), kind="server_error"), 500)


ERRORS: dict[Any, Callable[[Request, Any], Awaitable[JSONResponse]]] = {
    Mistake: _mistake,
    RequestValidationError: _not_valid,
    OtherModel: _other_model,
    Busy: _busy,
    HTTPException: _http,
    Exception: _fault,
}
