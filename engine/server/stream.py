"""Server-sent events, and noticing that nobody listens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from engine.core import EngineDead
from engine.outputs import GrammarFailed
from engine.server.bridge import Generation, ShuttingDown
from engine.server.errors import Disconnected, as_api_error, error_body

Answer = TypeVar("Answer")


class EventStream(StreamingResponse):
    """The chunks as events, closed by [DONE], or by an error event when the engine fails."""

    def __init__(self, generation: Generation, chunks: AsyncIterator[dict[str, Any]]) -> None:
        super().__init__(_events(chunks), media_type="text/event-stream")
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.cancel()


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """The result of `work`, which is cancelled when the client goes: raises Disconnected then."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Disconnected
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    try:
        async for chunk in chunks:
            yield _event(json.dumps(chunk, ensure_ascii=False))
    except (EngineDead, ShuttingDown, GrammarFailed) as error:
        yield _event(json.dumps(error_body(as_api_error(error))))
    else:
        yield _event("[DONE]")


def _event(data: str) -> str:
    return f"data: {data}\n\n"
