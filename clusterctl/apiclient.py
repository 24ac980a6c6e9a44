"""An OpenAI API as its clients see it: which models, and answers as they come."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from clusterctl.errors import ClusterctlError, ConfigError, NotReady, Unreachable
from clusterctl.secret import Secret

CONNECT_S = 10.0


@dataclass(frozen=True)
class Piece:
    """Text that came `at` so many seconds after the request; `usage` once, with the last of it."""

    at: float
    text: str = ""
    usage: Mapping[str, int] | None = None


def only(certificate: str) -> ssl.SSLContext:
    """Who has the key of this very certificate (PEM) is trusted, under whatever name it is called,
    and nobody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=certificate)
    return context


def signed_by(file: Path) -> ssl.SSLContext:
    """Servers whose certificate the authority in `file` has signed, under their own names. Raises
    ConfigError."""
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as error:  # what ssl raises for its content too
        raise ConfigError(f"{file} holds no certificates in PEM: {error}") from error


class ApiClient:
    """`url` ends in /v1. `silence`: the longest wait in seconds for a next word; a long prompt of
    a busy engine takes its time. `trust` None: the authorities that the world trusts. Any thread
    may use it."""

    def __init__(
        self,
        url: str,
        key: Secret | None,
        *,
        trust: ssl.SSLContext | None = None,
        silence: float = 300.0,
    ) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key.reveal()}"} if key else {}
        self._http = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(silence, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            verify=True if trust is None else trust,
            trust_env=False,  # a proxy is for the outside, never for one's own cluster
        )

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    def models(self) -> list[str]:
        """Raises Unreachable, or ClusterctlError with what the server said."""
        with self._translated():
            response = self._http.get(f"{self.url}/models")
            _check(response)
            return [one["id"] for one in response.json()["data"]]

    def chat(
        self, model: str, messages: Sequence[Mapping[str, str]], **params: Any
    ) -> Iterator[Piece]:
        body = {"model": model, "messages": list(messages), **params}
        return self._stream("chat/completions", body, lambda choice: choice["delta"].get("content"))

    def complete(self, model: str, prompt: str, **params: Any) -> Iterator[Piece]:
        return self._stream(
            "completions",
            {"model": model, "prompt": prompt, **params},
            lambda choice: choice["text"],
        )

    def _stream(self, path: str, body: dict[str, Any], text_of: Any) -> Iterator[Piece]:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        began = time.perf_counter()
        with (
            self._translated(),
            self._http.stream("POST", f"{self.url}/{path}", json=body) as response,
        ):
            if response.is_error:
                response.read()
            _check(response)
            for line in response.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield _piece(json.loads(line[6:]), time.perf_counter() - began, text_of)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx.ReadTimeout as error:
            raise NotReady(
                f"{self.url} sent nothing for {self._http.timeout.read:.0f} s",
                hint="clusterctl ps tells whether a token still comes back",
            ) from error
        except httpx.TransportError as error:
            strange = "CERTIFICATE_VERIFY_FAILED" in str(error)
            raise Unreachable(
                f"{self.url}: {error or type(error).__name__}",
                hint="--ca-file with its authority's certificate" if strange else None,
            ) from error


def _piece(event: Mapping[str, Any], at: float, text_of: Any) -> Piece:
    """Raises ClusterctlError for an error in the midst of a stream."""
    if "error" in event:
        raise ClusterctlError(f"the server ended the answer: {event['error'].get('message')}")
    choices = event.get("choices") or []
    return Piece(at, "".join(text_of(one) or "" for one in choices), event.get("usage"))


def _check(response: httpx.Response) -> None:
    if not response.is_error:
        return
    hint = "--api-key-file FILE, or INFERCLUSTER_API_KEY" if response.status_code == 401 else None
    raise ClusterctlError(f"HTTP {response.status_code}: {_said(response)}", hint=hint)


def _said(response: httpx.Response) -> str:
    """An error's message as OpenAI puts it, or what came instead of one."""
    try:
        text: str = response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        text = response.text
    return text.strip()[:500] or response.reason_phrase
