"""HTTP for the Docker SDK over any ByteStream.

APIClient ── requests ── StreamAdapter ── urllib3 pool ── http.client ── ByteStream
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import requests
import urllib3
from docker import APIClient
from docker.transport.basehttpadapter import BaseHTTPAdapter
from urllib3.connection import HTTPConnection

from clusterctl.errors import ClusterctlError
from clusterctl.trace import Trace
from clusterctl.transport.base import ByteStream

BASE_URL = "http+docker://ssh"  # by this name the SDK looks for `.channel` below an upgrade
FIRST_VERSION = "1.24"  # the oldest that the SDK takes; replaced by the server's own
CALL_TIMEOUT_S = 60.0
SILENCE_S = 600.0  # the SDK asks for no limit on a pull; without a word for so long it is lost
POOL_SIZE = 8

# A pooled connection may have ended unnoticed (dockerd restarted): what only reads is asked again.
ONCE_MORE = urllib3.Retry(
    total=1, connect=0, read=1, redirect=0, status=0, other=0, allowed_methods=("GET", "HEAD")
)

Dial = Callable[[], ByteStream]


def api_client(dial: Dial, trace: Trace) -> Any:
    """An APIClient that speaks over `dial()`, at the server's version.

    The SDK knows no client of ours, so it is built for an address that nobody calls, and its
    adapter exchanged. Nothing of the operator's proxies reaches the host. Any, because the SDK's
    stubs do not know half of what it takes.
    """
    client: Any = APIClient(
        base_url="tcp://127.0.0.1:1", version=FIRST_VERSION, timeout=int(CALL_TIMEOUT_S)
    )
    adapter = StreamAdapter(dial, trace)
    client.trust_env = False
    client.base_url = BASE_URL
    client.mount(BASE_URL, adapter)
    client._custom_adapter = adapter
    client._version = client.version(api_version=False)["ApiVersion"]
    return client


class StreamAdapter(BaseHTTPAdapter):
    def __init__(self, dial: Dial, trace: Trace) -> None:
        self._pool = _Pool(dial)
        self._trace = trace
        super().__init__(max_retries=ONCE_MORE)

    def get_connection(self, url: str | bytes, proxies: object = None) -> _Pool:
        return self._pool

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        self._trace(f"{request.method} {request.path_url}")
        kwargs["timeout"] = kwargs.get("timeout") or SILENCE_S
        return super().send(request, *args, **kwargs)

    def close(self) -> None:
        super().close()
        self._pool.close()


class _Pool(urllib3.HTTPConnectionPool):
    def __init__(self, dial: Dial) -> None:
        super().__init__("docker", maxsize=POOL_SIZE)
        self._dial = dial

    def _new_conn(self) -> _Connection:
        return _Connection(self._dial)


class _Connection(HTTPConnection):
    def __init__(self, dial: Dial) -> None:
        super().__init__("docker")
        self._dial = dial

    def connect(self) -> None:
        self.sock: Any = _Socket(self._dial())

    @property
    def is_connected(self) -> bool:
        """Asked before a pooled connection is used again: dockerd may have been restarted."""
        return self.sock is not None and self.sock.is_quiet()


class _Socket:
    """A ByteStream in the shape that http.client wants. As with a real socket, the stream ends
    when the socket and every file made of it are closed."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.sendall = stream.sendall
        self.settimeout = stream.settimeout
        self._users = 1
        self._closed = False

    def makefile(self, mode: str, *_: object) -> Reader:
        self._users += 1
        return Reader(self)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.release()

    def release(self) -> None:
        self._users -= 1
        if self._users == 0:
            self.stream.close()

    def is_quiet(self) -> bool:
        """Open, with nothing to say: what a connection between two calls must be."""
        self.stream.settimeout(0.001)
        try:
            self.stream.recv(1)
        except TimeoutError:
            return True
        except (ClusterctlError, OSError):
            return False
        return False


class _Raw(io.RawIOBase):
    def __init__(self, owner: _Socket) -> None:
        self._owner = owner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._owner.stream.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._owner.release()


class Reader(io.BufferedReader):
    """What http.client reads a response from. `channel` is where the SDK finds the connection
    after an upgrade."""

    def __init__(self, owner: _Socket) -> None:
        super().__init__(_Raw(owner))
        self._owner = owner

    @property
    def channel(self) -> Hijacked:
        return Hijacked(self, self._owner.stream)


class Hijacked:
    """A ByteStream that was an HTTP connection. What the reader had read ahead comes first."""

    def __init__(self, reader: Reader, stream: ByteStream) -> None:
        self._reader = reader
        self.sendall = stream.sendall
        self.settimeout = stream.settimeout
        self.shutdown_write = stream.shutdown_write
        self._stream = stream
        self._response: object = None  # the SDK keeps the response alive here

    def recv(self, size: int, /) -> bytes:
        return self._reader.read1(size)

    def close(self) -> None:
        self._stream.close()
