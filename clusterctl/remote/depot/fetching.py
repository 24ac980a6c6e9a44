"""Take a tree from the hosts before us in the chain: from the nearest one that is alive.

When a source is lost, the one before it takes its place at the same offset, and the chain is whole
again. When none is left, whoever runs us is told that we starve, and may feed us.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from .failures import Failure
from .staging import Piece, Stage

CHUNK = 1 << 18
STREAMS = 4  # files at once: one alone is bound by the speed of SHA-256
SILENCE_S = 5.0  # then a source is asked whether it is alive
ATTEMPTS = 2
PAUSE_S = 0.5
WAIT_S = 0.5
BROKEN = (OSError, http.client.HTTPException)

Say = Callable[..., None]


class Lost(Exception):
    """A source that does not give any more."""


class Fetch:
    """One run over all pieces that are not whole. `sources`: name, address, port; nearest first."""

    def __init__(self, stage: Stage, sources: list[dict[str, Any]], token: str, say: Say) -> None:
        self.stage = stage
        self.received = 0
        self._sources = deque(sources)
        self._headers = {"Authorization": f"Bearer {token}"}
        self._say = say
        self._todo = deque(piece for piece in stage.pieces if not piece.whole)
        self._changing = threading.Lock()
        self._working = 0
        self._idle = 0
        self._told = False
        self._failure: Failure | None = None

    def run(self) -> None:
        """Returns when every piece is whole. Raises Failure for bytes that stay wrong."""
        self._working = min(STREAMS, len(self._todo))
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(self._working)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if self._failure:
            raise self._failure

    def fail(self, failure: Failure) -> None:
        self._failure = failure

    def _work(self) -> None:
        while self._failure is None and (piece := self._next()):
            try:
                self._bring(piece)
            except Failure as failure:
                self.fail(failure)
        self._count(working=-1)

    def _count(self, *, working: int = 0, idle: int = 0) -> None:
        """Once nobody reads from a source any more, nobody but a feeder writes: then say so."""
        with self._changing:
            self._working += working
            self._idle += idle
            if self._working and self._idle == self._working and not self._told:
                self._told = True
                pieces = enumerate(self.stage.pieces)
                missing = [(index, one.have) for index, one in pieces if not one.whole]
                self._say("starving", pieces=missing)

    def _next(self) -> Piece | None:
        with self._changing:
            return self._todo.popleft() if self._todo else None

    def _bring(self, piece: Piece) -> None:
        wrong = 0
        while not piece.whole and self._failure is None:
            source = self._nearest()
            if source is None:
                self._wait_to_be_fed(piece)
                return
            try:
                good = self._stream(piece, source)
            except Lost as lost:
                self._drop(source, str(lost))
                continue
            wrong += not good
            if wrong == ATTEMPTS:
                text = f"{piece.entry.path} from {source['name']} has a wrong digest"
                raise Failure(text, "corrupt")

    def _nearest(self) -> dict[str, Any] | None:
        with self._changing:
            return self._sources[0] if self._sources else None

    def _wait_to_be_fed(self, piece: Piece) -> None:
        self._count(idle=1)
        while self._failure is None and not self.stage.wait_whole(piece, WAIT_S):
            pass
        self._count(idle=-1)

    def _drop(self, source: dict[str, Any], why: str) -> None:
        with self._changing:
            if source in self._sources:
                self._sources.remove(source)
                self._say("lost", source=source["name"], why=why)

    def _stream(self, piece: Piece, source: dict[str, Any]) -> bool:
        """All that is missing of a piece; whether its digest is right. A connection that breaks is
        tried once more."""
        for attempt in range(1, ATTEMPTS + 1):
            before = piece.have
            try:
                return self._read(piece, source)
            except BROKEN as error:
                if attempt == ATTEMPTS and piece.have == before:
                    raise Lost(f"{source['address']}:{source['port']}: {error}") from error
                time.sleep(PAUSE_S)
        raise Lost(f"{source['address']}:{source['port']} breaks off again and again")

    def _read(self, piece: Piece, source: dict[str, Any]) -> bool:
        """A source that is silent and alive waits for its own: it is asked again."""
        while True:
            connection = http.client.HTTPConnection(
                source["address"], source["port"], timeout=SILENCE_S
            )
            try:
                return self._receive(connection, piece)
            except TimeoutError:
                self._ask_alive(source)
            finally:
                connection.close()

    def _receive(self, connection: http.client.HTTPConnection, piece: Piece) -> bool:
        index = self.stage.pieces.index(piece)
        ranged = {**self._headers, "Range": f"bytes={piece.have}-"}
        connection.request("GET", f"/{index}", headers=ranged)
        response = connection.getresponse()
        if response.status != http.client.PARTIAL_CONTENT:
            raise OSError(f"answered {response.status}")
        while data := response.read1(CHUNK):
            good = self.stage.write(index, piece.have, data)
            with self._changing:
                self.received += len(data)
            if piece.whole or not good:
                return good
        raise OSError("ended before its time")

    def _ask_alive(self, source: dict[str, Any]) -> None:
        asking = http.client.HTTPConnection(source["address"], source["port"], timeout=SILENCE_S)
        try:
            asking.request("GET", "/alive", headers=self._headers)
            asking.getresponse().read()
        finally:
            asking.close()
