"""OpenAI's interface around a model: FastAPI's routes, and nothing that another module could do.

    request -> checked (requests.py) -> rows or a call -> worker.py -> answer (answers.py) or stream (streams.py)

A bad request gets OpenAI's error object and status 400; one that has to wait too long gets 503.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

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
    as_list,
)
from launcher.serving.requests import Request as AnyRequest
from launcher.serving.sampling import Sampling
from launcher.serving.streams import at_once, streamed
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
    """A model's answers, a method for each route."""

    def __init__(self, worker: Worker, name: str, chat: bool):
        self.worker, self.name, self.chat = worker, name, chat
        self.created = int(time.time())

    @property
    def loaded(self) -> Loaded:
        """The model."""
        return self.worker.loaded

    async def health(self) -> Answer:
        """GET /health."""
        return {"status": "ok", "model": self.name, "shape": self.loaded.kind}

    async def models(self) -> Answer:
        """GET /v1/models."""
        return {"object": "list", "data": [answers.model(self.name, self.created)]}

    async def model(self, name: str) -> Answer:
        """GET /v1/models/NAME."""
        self._check(AnyRequest(model=name), self.loaded.kind)
        return answers.model(self.name, self.created)

    async def complete(self, body: CompletionRequest, request: Request) -> Answer | StreamingResponse:
        """POST /v1/completions."""
        self._check(body, "decoder", "encdec")
        _check_completion(body, self.loaded)
        prompts = self._encoded(body.prompt, "prompt")
        samplings = body.samplings(DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens, body.logprobs)
        rows, form = self._rows(prompts, samplings), Form(self.name)
        starts = self._starts(body, len(samplings)) if body.echo else [""] * len(rows)
        if body.stream:
            return streamed(self.worker, rows, form, body, starts)
        await at_once(request, self.worker, rows)
        told = await self._logprobs(body, rows)
        choices = [
            form.choice(index, starts[index] + row.text.text, row.ended, told[index]) for index, row in enumerate(rows)
        ]
        return form.whole(choices, answers.usage(rows, len(samplings)))

    async def chat_on(self, body: ChatRequest, request: Request) -> Answer | StreamingResponse:
        """POST /v1/chat/completions."""
        self._check(body, "decoder", "encdec")
        if not self.chat:
            raise Mistake("messages: the server was started without --chat, which has the folder's chat template run")
        said = [message.plain() for message in body.messages]
        (prompt,) = await run_in_threadpool(rendered, self.loaded.path, self.loaded.tokenizer, [said])
        asked = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
        samplings = body.samplings(DEFAULT_CHAT_TOKENS if asked is None else asked)
        rows, form = self._rows([self.loaded.encode(prompt, as_it_is=True)], samplings), ChatForm(self.name)
        if body.stream:
            return streamed(self.worker, rows, form, body)
        await at_once(request, self.worker, rows)
        choices = [form.choice(index, row.text.text, row.ended) for index, row in enumerate(rows)]
        return form.whole(choices, answers.usage(rows, len(samplings)))

    async def embed(self, body: EmbeddingRequest) -> Answer:
        """POST /v1/embeddings."""
        self._check(body, "encoder")
        texts = self._encoded(body.input, "input")
        vectors = await self._in_batches(texts, partial(embed, self.loaded))
        return answers.embeddings(self.name, vectors, sum(map(len, texts)), body.encoding_format == "base64")

    async def fill_mask(self, body: FillMaskRequest) -> Answer:
        """POST /v1/fill-mask."""
        self._check(body, "encoder")
        texts = [gaps_of(self.loaded, str(text), "input") for text in as_list(body.input, "input")]
        likeliest, count = Sampling(temperature=0), body.top_k or DEFAULT_CANDIDATES
        work = partial(fill, self.loaded, sampling=likeliest, num_candidates=count)
        return answers.filled(self.name, await self._in_batches(texts, work))

    def _check(self, request: AnyRequest, *kinds: str) -> None:
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

    def _rows(self, prompts: Sequence[list[int]], samplings: Sequence[Sampling]) -> list[Row]:
        """A row for each text that is to be written."""
        return [Row.of(self.loaded, ids, sampling) for ids in prompts for sampling in samplings]

    def _encoded(self, prompts: Prompts, key: str) -> list[list[int]]:
        """Tokens of prompts."""
        return [
            self.loaded.encode(each) if isinstance(each, str) else self._checked(each) for each in as_list(prompts, key)
        ]

    def _checked(self, ids: list[int]) -> list[int]:
        self.loaded.check(ids)
        return ids

    def _starts(self, body: CompletionRequest, num_samples: int) -> list[str]:
        """The prompt of each row as it was given."""
        prompts = [
            each if isinstance(each, str) else self.loaded.decode(each) for each in as_list(body.prompt, "prompt")
        ]
        return [prompt for prompt in prompts for _ in range(num_samples)]

    async def _logprobs(self, body: CompletionRequest, rows: Sequence[Row]) -> list[Answer | None]:
        """How likely the tokens of rows are, where that is asked; with `echo`, those of their prompts too."""
        if body.logprobs is None:
            return [None] * len(rows)
        if not body.echo:
            return [answers.logprobs(self.loaded, row.taken, None) for row in rows]
        asked = [partial(score, self.loaded, row.prompt, body.logprobs) for row in rows]
        scored = [await asyncio.wrap_future(self.worker.call(work)) for work in asked]
        return [
            answers.logprobs(self.loaded, [*before, *row.taken], row.prompt[0])
            for before, row in zip(scored, rows, strict=True)
        ]

    async def _in_batches(self, texts: Sequence[list[int]], work: Callable[[Any], Any]) -> list[Any]:
        """What `work` makes of texts, so many at once as the model reads."""
        size = self.worker.most_rows
        asked = [partial(work, texts[start : start + size]) for start in range(0, len(texts), size)]
        parts = [await asyncio.wrap_future(self.worker.call(part)) for part in asked]
        return [each for part in parts for each in part]


def app_of(server: Server) -> FastAPI:
    """The interface as an application."""
    app = FastAPI(title="shardline", description=f"{server.name}, {server.loaded.architecture.name}")
    app.add_middleware(_Bounded)
    for kind, answer in ERRORS.items():
        app.add_exception_handler(kind, answer)
    app.get("/health")(server.health)
    app.get("/v1/models")(server.models)
    app.get("/v1/models/{name:path}")(server.model)
    app.post("/v1/completions", response_model=None)(server.complete)
    app.post("/v1/chat/completions", response_model=None)(server.chat_on)
    app.post("/v1/embeddings", response_model=None)(server.embed)
    app.post("/v1/fill-mask", response_model=None)(server.fill_mask)
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


class _Bounded:
    """Refuses bodies that are larger than any prompt, or come without saying how large they are."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            headers = Headers(scope=scope)
            length = headers.get("content-length", None if "transfer-encoding" in headers else "0")
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
    if error.status_code == 400:
        message = f"the body cannot be read: {_unreadable(error.__cause__)}"
    return JSONResponse(answers.error(message), error.status_code, headers=error.headers)


def _unreadable(cause: BaseException | None) -> str:
    """What is wrong with a body that nothing could be made of, by what the reader of JSON raised."""
    if isinstance(cause, UnicodeDecodeError):
        return "it is no UTF-8"
    if isinstance(cause, RecursionError):
        return "its JSON is nested too deeply"
    return "it holds a number of too many digits" if isinstance(cause, ValueError) else "it broke off"


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
