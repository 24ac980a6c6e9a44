"""The talk with one host's depot (remote/depot): requests, replies, events, and bytes to it."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from clusterctl.errors import ClusterctlError, LockHeld
from clusterctl.transport.base import ByteStream

CHUNK = 65536
GRACE_S = 3.0
ALIVE_S = 20.0  # the depot ends after 120 s of silence

OnEvent = Callable[[Mapping[str, Any]], None]

HINTS = {
    "held": "wait for it to end, or end it",
    "corrupt": "run it again; if it comes back, look at that host's disk and network",
    "hub": "a token by $HF_TOKEN or --hf-token-file, HF_ENDPOINT for a mirror, proxies: in "
    "cluster.yaml; or bring it from this machine by `clusterctl model push`",
    "disk": "look at that host's disk",
}


def unwatched(_: Mapping[str, Any]) -> None:
    """An OnEvent for requests that say nothing on the way."""


class Depot:
    """One request at a time; `send` may go on beside it."""

    def __init__(self, host: str, stream: ByteStream) -> None:
        self.host = host
        self._stream = stream
        self._sending = threading.Lock()
        self._heard: queue.SimpleQueue[Mapping[str, Any] | ClusterctlError] = queue.SimpleQueue()
        self._number = 0
        self._closed = threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        threading.Thread(target=self._keep_alive, daemon=True).start()

    def call(self, op: str, on_event: OnEvent = unwatched, **arguments: Any) -> dict[str, Any]:
        """The reply. Raises what the host failed with; LockHeld where another run is at work."""
        self._number += 1
        self._write({"id": self._number, "op": op, **arguments})
        while True:
            heard = self._heard.get()
            if isinstance(heard, ClusterctlError):
                self._heard.put(heard)
                raise heard
            if "event" in heard:
                on_event(heard)
            elif "error" in heard:
                raise self._failed(heard)
            else:
                answer: dict[str, Any] = heard["ok"]
                return answer

    def send(self, index: int, offset: int, content: bytes) -> None:
        """The next bytes of a file."""
        head = {"op": "data", "index": index, "offset": offset, "size": len(content)}
        self._write(head, content)

    def fail(self, error: ClusterctlError) -> None:
        """Whoever waits for a reply gets this instead."""
        self._heard.put(error)

    def close(self) -> None:
        """The depot ends with its stdin; one that cannot be reached is not waited for long."""
        if self._closed.is_set():
            return
        self._closed.set()
        with contextlib.suppress(OSError, EOFError):
            self._stream.shutdown_write()
        self._listener.join(GRACE_S)
        self._stream.close()

    def _write(self, request: Mapping[str, Any], content: bytes = b"") -> None:
        with self._sending:
            try:
                self._stream.sendall(json.dumps(request).encode() + b"\n" + content)
            except OSError as error:
                raise self._ended() from error

    def _listen(self) -> None:
        rest = bytearray()
        try:
            while data := self._stream.recv(CHUNK):
                rest += data
                *lines, rest[:] = rest.split(b"\n")
                for line in lines:
                    self._heard.put(json.loads(line))
            self._heard.put(self._ended())
        except ClusterctlError as error:
            self._heard.put(error)
        except OSError:
            self._heard.put(self._ended())

    def _keep_alive(self) -> None:
        while not self._closed.wait(ALIVE_S):
            try:
                self._write({"op": "alive"})
            except ClusterctlError:
                return

    def _ended(self) -> ClusterctlError:
        return ClusterctlError(
            "its helper ended before its work was done",
            host=self.host,
            hint="run it again: it goes on from where it broke off",
        )

    def _failed(self, heard: Mapping[str, Any]) -> ClusterctlError:
        kind = LockHeld if heard["kind"] == "held" else ClusterctlError
        return kind(heard["error"], host=self.host, hint=HINTS.get(heard["kind"]))
