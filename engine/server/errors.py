"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from engine.core import EngineDead
from engine.scheduler import QueueFull
from engine.server.bridge import ShuttingDown

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "internal_error",
    503: "service_unavailable",
}


CLIENT_CLOSED_REQUEST = 499  # nginx's word for it; nobody is there to read it
RETRY_AFTER_S = 1  # how soon a refused request may be sent again; OpenAI's clients heed it


class ApiError(Exception):
    """What the client is told. `param` names the parameter at fault."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


class Disconnected(Exception):
    """The client has gone; what is answered no longer matters."""


@contextmanager
def clients_fault() -> Iterator[None]:
    """What the engine cannot do as it was asked, a ValueError, is the client's to change."""
    try:
        yield
    except ValueError as error:
        raise ApiError(400, str(error)) from error


def as_api_error(error: Exception) -> ApiError:
    """What the engine raised, as a client sees it: a bad request, or a retryable failure."""
    if isinstance(error, QueueFull):
        return ApiError(429, f"the queue is full: {error}", code="queue_full")
    if isinstance(error, EngineDead):
        return ApiError(503, str(error), code="engine_dead")
    if isinstance(error, ShuttingDown):
        return ApiError(503, str(error), code="shutting_down")
    return ApiError(400, str(error))


def error_body(error: ApiError) -> dict[str, Any]:
    return {
        "error": {
            "message": str(error),
            "type": KINDS.get(error.status, "api_error"),
            "param": error.param,
            "code": error.code,
        }
    }


def error_response(error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
    retry = {"Retry-After": str(RETRY_AFTER_S)} if error.status in (429, 503) else {}
    body = json.dumps(error_body(error))  # in ASCII: it may quote what is no text
    return Response(body, error.status, {**retry, **(headers or {})}, "application/json")


def add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        return error_response(error)

    async def refused(_: Request, error: Exception) -> Response:
        return error_response(as_api_error(error))

    for refusal in (QueueFull, EngineDead, ShuttingDown):
        app.add_exception_handler(refusal, refused)

    @app.exception_handler(Disconnected)
    async def disconnected(_: Request, error: Disconnected) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return error_response(_first_problem(error))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        return error_response(ApiError(error.status_code, str(error.detail)), error.headers)

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> Response:
        """Starlette logs it with its traceback."""
        return error_response(ApiError(500, f"internal error: {type(error).__name__}"))


def _first_problem(error: RequestValidationError) -> ApiError:
    """Pydantic's location is ("body", field, ...) for a field, ("body", offset) for bad JSON."""
    problem = error.errors()[0]
    where = [part for part in problem["loc"] if part != "body"]
    if problem["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {problem['ctx']['error']}")
    if problem["loc"] == ("body",) and problem["type"] not in ("unsupported", "value_error"):
        return ApiError(
            400, "the body is not a JSON object (Content-Type must be application/json)"
        )
    param = str(where[0]) if where else problem.get("ctx", {}).get("param")
    message = problem["msg"].removeprefix("Value error, ")
    place = ".".join(str(part) for part in where)
    return ApiError(400, f"{place}: {message}" if place else message, param=param)
