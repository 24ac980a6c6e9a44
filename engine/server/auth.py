"""The API key: every route but /health asks for it."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.server.errors import ApiError, error_response

OPEN_PATHS = frozenset({"/health"})
KEY_VARIABLE = "VLLM_API_KEY"


class RequireKey:
    """ASGI middleware. (Not Starlette's BaseHTTPMiddleware: it hides disconnects from routes.)"""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            given = Headers(scope=scope).get("authorization", "").encode()
            if not hmac.compare_digest(given, self._expected):
                await _refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def read_key(path: Path | None, environment: Mapping[str, str]) -> str | None:
    """The key of the file, else of the environment; None when neither names one. Raises
    ValueError for an empty file: it must not mean "open to everybody"."""
    if path is None and KEY_VARIABLE not in environment:
        return None
    key = (environment[KEY_VARIABLE] if path is None else path.read_text()).strip()
    if not key:
        raise ValueError(f"{path or KEY_VARIABLE} is empty: it must hold the API key")
    return key


_refusal = error_response(
    ApiError(401, "the API key is missing or wrong", code="invalid_api_key"),
    {"WWW-Authenticate": "Bearer"},
)
