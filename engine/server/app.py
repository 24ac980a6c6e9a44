"""The routes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response

from engine.outputs import Sample
from engine.server import embeddings
from engine.server.auth import RequireKey
from engine.server.bridge import Generation, exhaust
from engine.server.errors import ApiError, add_error_handlers, clients_fault
from engine.server.flags import ToolFormat
from engine.server.generation import Job, Preparation
from engine.server.limits import LimitBody
from engine.server.protocol import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    TokenizeBody,
)
from engine.server.replicas import Replicas
from engine.server.stream import EventStream, unless_disconnected
from engine.server.tools import format_of
from engine.server.version import version
from engine.tokenizer import Tokenizer

if TYPE_CHECKING:
    from engine.server.metrics import Metrics

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class AppConfig:
    """`model_names` are what clients may call the model; the first is what answers call it.
    `api_key` None: open to everybody. `allowed_origins`: of web pages in other places (CORS).
    `tool_format` None: as the chat template shows."""

    model_names: Sequence[str]
    api_key: str | None = None
    allowed_origins: Sequence[str] = ()
    max_body_bytes: int = 32 << 20
    tool_format: ToolFormat | None = None


def create_app(
    engine: Replicas, tokenizer: Tokenizer, config: AppConfig, metrics: Metrics | None = None
) -> FastAPI:
    """The app starts and closes `engine`. No pages of documentation: theirs load scripts from
    elsewhere; /openapi.json is there."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await engine.close()

    app = FastAPI(
        title="engine", version=version(), lifespan=lifespan, docs_url=None, redoc_url=None
    )
    add_error_handlers(app)
    app.add_middleware(LimitBody, most=config.max_body_bytes)
    if config.api_key is not None:
        app.add_middleware(RequireKey, key=config.api_key)
    if config.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.allowed_origins),
            allow_methods=["*"],
            allow_headers=["*"],
        )
    _add_routes(app, Routes(engine, tokenizer, config))
    if metrics is not None:
        _add_metrics(app, metrics)
    return app


def _add_routes(app: FastAPI, routes: Routes) -> None:
    app.get("/health")(routes.health)
    app.get("/ready")(routes.ready)
    app.get("/version")(routes.version)
    app.get("/v1/models")(routes.models)
    app.post("/v1/completions")(routes.completions)
    app.post("/v1/chat/completions")(routes.chat_completions)
    app.post("/v1/embeddings")(routes.embeddings)
    app.post("/tokenize")(routes.tokenize)
    app.post("/detokenize")(routes.detokenize)


def _add_metrics(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/metrics")
    async def exposition() -> Response:
        text, kind = metrics.text()
        return Response(text, headers={"Content-Type": kind})


class Routes:
    def __init__(self, engine: Replicas, tokenizer: Tokenizer, config: AppConfig) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._model_names = tuple(config.model_names)
        style = config.tool_format or format_of(tokenizer.chat_template)
        self._preparation = Preparation(tokenizer, style)
        # One thread: a fast tokenizer must not be used by two at once.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._created = int(time.time())

    async def health(self) -> Response:
        """Whether the process lives: 503 once its engine is dead."""
        return Response(status_code=503 if self._engine.dead else 200)

    async def ready(self) -> Response:
        """Whether a request would be answered now: a token came a moment ago, or comes now. With
        several replicas: from one of them; what ails the others is told."""
        reasons = await self._engine.why_not_ready()
        if all(reasons):
            raise ApiError(503, "; ".join(dict.fromkeys(filter(None, reasons))))
        return JSONResponse({"replicas": [_readiness(reason) for reason in reasons]})

    async def version(self) -> JSONResponse:
        return JSONResponse({"version": version()})

    async def models(self) -> JSONResponse:
        cards = [
            {
                "id": name,
                "object": "model",
                "created": self._created,
                "owned_by": "engine",
                "max_model_len": self._engine.max_model_len,
            }
            for name in self._model_names
        ]
        return JSONResponse({"object": "list", "data": cards})

    async def completions(self, body: CompletionBody, request: Request) -> Response:
        model = self._model_name(body.model)
        job = await self._off_loop(lambda: self._preparation.completion(body, model))
        return await self._answer(job, body, request)

    async def chat_completions(self, body: ChatBody, request: Request) -> Response:
        model = self._model_name(body.model)
        job = await self._off_loop(lambda: self._preparation.chat(body, model))
        return await self._answer(job, body, request)

    async def embeddings(self, body: EmbeddingBody, request: Request) -> Response:
        model = self._model_name(body.model)
        name = embeddings.new_name()
        samples = await self._off_loop(lambda: self._preparation.embeddings(body, name))
        await self._compute(samples, request)
        base64 = body.encoding_format == "base64"
        return JSONResponse(embeddings.answer(samples, model, base64=base64))

    async def tokenize(self, body: TokenizeBody) -> JSONResponse:
        self._model_name(body.model)
        tokens = await self._off_loop(lambda: self._tokens(body))
        told: dict[str, Any] = {
            "count": len(tokens),
            "max_model_len": self._engine.max_model_len,
            "tokens": tokens,
        }
        if body.return_token_strs:
            told["token_strs"] = [self._tokenizer.token_text(token) for token in tokens]
        return JSONResponse(told)

    async def detokenize(self, body: DetokenizeBody) -> JSONResponse:
        self._model_name(body.model)
        if foreign := [one for one in body.tokens if not 0 <= one < self._tokenizer.size]:
            most = self._tokenizer.size - 1
            raise ApiError(400, f"token id {foreign[0]} is not in 0 to {most}", param="tokens")
        text = self._tokenizer.decode(body.tokens, skip_special_tokens=False)
        return JSONResponse({"prompt": text})

    def _tokens(self, body: TokenizeBody) -> list[int]:
        if body.messages is not None:
            messages = [message.for_template() for message in body.messages]
            return self._tokenizer.encode_chat(messages)
        special = body.add_special_tokens is not False
        return self._tokenizer.encode(body.prompt or "", add_special_tokens=special)

    async def _off_loop(self, make: Callable[[], Made]) -> Made:
        with clients_fault():
            return await self._engine.loop.run_in_executor(self._tokenizing, make)

    async def _answer(self, job: Job, body: Any, request: Request) -> Response:
        if not body.stream:
            await self._compute(job.samples, request)
            return JSONResponse(job.answer.whole(job.samples))
        with clients_fault():
            generation = await self._engine.submit(job.samples)
        return EventStream(generation, _chunks(job, generation, body.include_usage))

    async def _compute(self, samples: Sequence[Sample], request: Request) -> None:
        """To their end. Raises Disconnected when the client goes before."""
        with clients_fault():
            generation = await self._engine.submit(samples)
            await unless_disconnected(request, exhaust(generation))

    def _model_name(self, asked: str | None) -> str:
        if asked is not None and asked not in self._model_names:
            known = ", ".join(self._model_names)
            raise ApiError(
                404,
                f"the model {asked!r} is not served here (served: {known})",
                param="model",
                code="model_not_found",
            )
        return asked or self._model_names[0]


def _readiness(reason: str | None) -> dict[str, Any]:
    return {"ready": True} if reason is None else {"ready": False, "reason": reason}


async def _chunks(
    job: Job, generation: Generation, include_usage: bool
) -> AsyncIterator[dict[str, Any]]:
    numbers = {sample.request.request_id: n for n, sample in enumerate(generation.samples)}
    for number in numbers.values():
        if chunk := job.answer.opening(number):
            yield chunk
    async for sample, delta in generation.deltas():
        if chunk := job.answer.chunk(numbers[sample.request.request_id], delta):
            yield chunk
    if include_usage:
        yield job.answer.usage_chunk(generation.samples)
