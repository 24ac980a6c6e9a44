"""JSON objects over TCP between supervisors. Each line is authenticated: HMAC-SHA256 by a key made
of the cluster's token and a nonce of either end, over who says it, its number and its text. So a
stranger can neither say anything nor repeat what was said. Nothing in it is secret."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
import socket
from typing import Any

LOST_S = 20.0  # nothing heard for so long: the other end is lost
NONCE_HEX = 32
MAC_HEX = 64
LINE_MAX = 4 * 1024 * 1024


class Stranger(OSError):
    """The other end does not know the token, or does not speak this."""


class Wire:
    """A connected socket. Raises OSError (Stranger, timeouts) when it is of no use any more."""

    def __init__(self, connection: socket.socket, token: bytes, *, leads: bool) -> None:
        connection.settimeout(LOST_S)
        self._socket = connection
        self._lines = connection.makefile("rb")
        self._leads = leads
        mine = secrets.token_hex(NONCE_HEX // 2).encode()
        connection.sendall(mine + b"\n")
        theirs = self._line(NONCE_HEX + 1)
        lead, follow = (mine, theirs) if leads else (theirs, mine)
        self._key = hmac.digest(token, lead + b" " + follow, "sha256")
        self._sent = self._heard = 0

    def send(self, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        line = self._mac(self._leads, self._sent, text) + b" " + text + b"\n"
        self._sent += 1
        self._socket.sendall(line)

    def receive(self) -> dict[str, Any]:
        mac, _, text = self._line(LINE_MAX).partition(b" ")
        if not hmac.compare_digest(mac, self._mac(not self._leads, self._heard, text)):
            raise Stranger("the other end does not have this cluster's token")
        self._heard += 1
        content: dict[str, Any] = json.loads(text)
        return content

    def close(self) -> None:
        """At once and for all: a socket whose file is open is not closed by closing it, and the
        other end would go on talking to nobody."""
        with contextlib.suppress(OSError):  # it is closed already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self._socket.close()

    def _line(self, limit: int) -> bytes:
        line = self._lines.readline(limit)
        if not line.endswith(b"\n"):
            raise ConnectionError("the other end closed the connection")
        return line[:-1]

    def _mac(self, by_lead: bool, number: int, text: bytes) -> bytes:
        said = b"%s %d " % (b"lead" if by_lead else b"follow", number) + text
        return hmac.new(self._key, said, hashlib.sha256).hexdigest().encode()
