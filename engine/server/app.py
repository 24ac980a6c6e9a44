"""The routes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from engine.core import EngineDead
from engine.outputs import Sample, make_samples
from engine.sampling_params import SamplingParams
from engine.server.answers import Answer, Kind
from engine.server.auth import RequireKey
from engine.server.bridge import AsyncEngine, Generation, ShuttingDown
from engine.server.errors import ApiError, add_error_handlers, as_api_error
from engine.server.protocol import ChatBody, CompletionBody, GenerationBody
from engine.server.stream import Disconnected, EventStream, unless_disconnected
from engine.tokenizer import Tokenizer

CLIENT_CLOSED_REQUEST = 499  # nginx's word for it; nobody is there to read it


def create_app(
    engine: AsyncEngine, tokenizer: Tokenizer, model_names: Sequence[str], api_key: str | None
) -> FastAPI:
    """The app starts and closes `engine`. `model_names` are what clients may call the model; the
    first is what answers call it."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await engine.close()

    app = FastAPI(title="engine", lifespan=lifespan)
    add_error_handlers(app)
    if api_key is not None:
        app.add_middleware(RequireKey, key=api_key)
    routes = Routes(engine, tokenizer, tuple(model_names))
    app.get("/health")(routes.health)
    app.get("/v1/models")(routes.models)
    app.post("/v1/completions")(routes.completions)
    app.post("/v1/chat/completions")(routes.chat_completions)
    return app


class Routes:
    def __init__(
        self, engine: AsyncEngine, tokenizer: Tokenizer, model_names: tuple[str, ...]
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._model_names = model_names
        self._created = int(time.time())

    async def health(self) -> Response:
        return Response(status_code=503 if self._engine.dead else 200)

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
        prompts = [
            self._tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            for prompt in body.prompts
        ]
        return await self._answer("text", body, prompts, request)

    async def chat_completions(self, body: ChatBody, request: Request) -> Response:
        messages = [{"role": message.role, "content": message.text} for message in body.messages]
        try:
            prompt = self._tokenizer.encode_chat(messages)
        except ValueError as error:
            raise ApiError(400, str(error), param="messages") from error
        return await self._answer("chat", body, [prompt], request)

    async def _answer(
        self, kind: Kind, body: GenerationBody, prompts: Sequence[Sequence[int]], request: Request
    ) -> Response:
        answer = Answer(kind, self._model_name(body.model))
        samples = self._samples(answer, prompts, _sampling(body))
        try:
            generation = await self._engine.submit(samples)
            if body.stream:
                return EventStream(generation, _chunks(answer, generation, body.include_usage))
            await unless_disconnected(request, _exhaust(generation))
        except (ValueError, EngineDead, ShuttingDown) as error:
            raise as_api_error(error) from error
        except Disconnected:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return JSONResponse(answer.whole(samples))

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

    def _samples(
        self, answer: Answer, prompts: Sequence[Sequence[int]], sampling: SamplingParams
    ) -> list[Sample]:
        return [
            sample
            for number, prompt in enumerate(prompts)
            for sample in make_samples(f"{answer.name}-{number}", prompt, sampling, self._tokenizer)
        ]


def _sampling(body: GenerationBody) -> SamplingParams:
    try:
        return body.sampling()
    except ValueError as error:
        raise ApiError(400, str(error), param=str(error).partition(" ")[0]) from error


async def _exhaust(generation: Generation) -> None:
    try:
        async for _ in generation.deltas():
            pass
    finally:
        generation.cancel()


async def _chunks(
    answer: Answer, generation: Generation, include_usage: bool
) -> AsyncIterator[dict[str, Any]]:
    numbers = {sample.request.request_id: n for n, sample in enumerate(generation.samples)}
    if answer.kind == "chat":
        for number in numbers.values():
            yield answer.opening(number)
    async for sample, delta in generation.deltas():
        if delta.text or delta.finish_reason:
            yield answer.chunk(numbers[sample.request.request_id], delta)
    if include_usage:
        yield answer.usage_chunk(generation.samples)
