"""What the driver and its ranks say to each other, and the door they say it through."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any, TypeAlias

Address: TypeAlias = str | tuple[str, int]  # a Unix socket's path, or (host, port)

# A stranger who connects and stays silent must not keep the ranks waiting at the door.
HANDSHAKE_S = 10


@dataclass(frozen=True)
class Joined:
    """A rank's first word: where the others reach it, and a port that is free there."""

    rank: int
    host: str
    port: int


@dataclass(frozen=True)
class Call:
    method: str
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Reply:
    """`error` is "Type: message" when the call raised."""

    value: Any = None
    error: str | None = None


class Door:
    """A listening socket that lets in those who hold the key."""

    def __init__(self, server: socket.socket, authkey: bytes) -> None:
        self._server = server
        self.authkey = authkey

    @property
    def address(self) -> Address:
        address: Address = self._server.getsockname()
        return address

    def admit(self, timeout: float) -> Connection | None:
        """The next connection that proved to hold the key; None when `timeout` is over or the
        one who came did not."""
        self._server.settimeout(timeout)
        try:
            visitor, _ = self._server.accept()
        except TimeoutError:
            return None
        with visitor:
            return self._shake_hands(visitor)

    def close(self) -> None:
        self._server.close()

    def _shake_hands(self, visitor: socket.socket) -> Connection | None:
        connection = Connection(os.dup(visitor.fileno()))
        try:
            _receive_timeout(visitor, HANDSHAKE_S)
            deliver_challenge(connection, self.authkey)
            answer_challenge(connection, self.authkey)
            _receive_timeout(visitor, 0)
        except (AuthenticationError, EOFError, OSError):
            connection.close()
            return None
        tune(connection)
        return connection


def tune(connection: Connection) -> None:
    """TCP only: small messages leave at once, and a peer whose host vanished is noticed."""
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        if end.family == socket.AF_INET:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def unix_server(path: str) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    return server


def _receive_timeout(end: socket.socket, seconds: int) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))
