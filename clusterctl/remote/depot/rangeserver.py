"""Files for the next host of the chain, sent on while they are still arriving here.

GET /INDEX    Range: bytes=N-     206, the bytes from N to the end of that file as they come
GET /alive                        200: whoever waits for bytes knows that we wait too
"""

from __future__ import annotations

import hmac
import os
import re
import select
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .staging import Offer

WAIT_S = 1.0
RANGE = re.compile(r"bytes=(\d+)-")
SLICE = 1 << 20


class RangeServer(ThreadingHTTPServer):
    """On a free port of one address. `sent` counts the bytes of files, over all who read."""

    daemon_threads = True

    def __init__(self, address: str, port: int, token: str, offer: Offer) -> None:
        self.authorization = f"Bearer {token}"
        self.offer = offer
        self.sent = 0
        self._counting = threading.Lock()
        super().__init__((address, port), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def count(self, size: int) -> None:
        with self._counting:
            self.sent += size

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that went away: it comes back, or somebody else says what became of it."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), self.server.authorization.encode()):
            self._answer(HTTPStatus.UNAUTHORIZED)
        elif self.path == "/alive":
            self._answer(HTTPStatus.OK)
        else:
            self._send_file(int(self.path.lstrip("/")))

    def _answer(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_file(self, index: int) -> None:
        piece = self.server.offer.pieces[index]
        asked = RANGE.fullmatch(self.headers.get("Range", ""))
        position, size = int(asked[1]) if asked else 0, piece.entry.size
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Length", str(size - position))
        self.send_header("Content-Range", f"bytes {position}-{size - 1}/{size}")
        self.end_headers()
        with piece.path.open("rb") as file:
            while position < size:
                have = self.server.offer.wait_beyond(index, position, WAIT_S)
                position += self._send_slice(file.fileno(), position, have)

    def _send_slice(self, file: int, position: int, have: int) -> int:
        if have <= position:
            return 0
        if select.select([self.connection], [], [], 0)[0]:  # it asks nothing more: it has gone
            raise ConnectionResetError
        sent = os.sendfile(self.connection.fileno(), file, position, min(have - position, SLICE))
        self.server.count(sent)
        return sent

    def log_message(self, format: str, *args: Any) -> None:
        """Our stdout is a protocol, and our stderr a crash."""
