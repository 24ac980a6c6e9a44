"""The two ends of the way between the head's supervisor and another's: orders go out, reports come
in, each once a second and at every change."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing
from typing import Any

from .local import Order
from .node import Orders, Report
from .processes import say
from .wire import LOST_S, Stranger, Wire

BEAT_S = 1.0
RETRY_S = 1.0
COME_BACK_S = 5.0


class News:
    """What is to be said next: taken at once when it changed, else after a second."""

    def __init__(self) -> None:
        self._content: dict[str, Any] = {}
        self._version = 0
        self._changed = threading.Condition()

    def put(self, content: dict[str, Any]) -> None:
        with self._changed:
            if content != self._content:
                self._content, self._version = content, self._version + 1
                self._changed.notify_all()

    def after(self, version: int) -> tuple[int, dict[str, Any]]:
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, BEAT_S)
            return self._version, self._content


def talk(wire: Wire, news: News) -> None:
    """Say the news until the wire breaks."""
    version = -1
    try:
        while True:
            version, content = news.after(version)
            if content:
                wire.send(content)
    except OSError:
        wire.close()


class Lead:
    """The head's end."""

    def __init__(self, address: tuple[str, int], token: bytes) -> None:
        self._address = address
        self._token = token
        self._news = News()
        self._heard: dict[str, tuple[float, Report]] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def tell(self, orders: Orders) -> None:
        self._news.put({"orders": {name: vars(order) for name, order in orders.items()}})

    def reports(self) -> dict[str, Report]:
        """By node, of those heard in the last LOST_S seconds; each with when that was."""
        now = time.monotonic()
        return {
            node: {**said, "heard": at}
            for node, (at, said) in list(self._heard.items())
            if now - at < LOST_S
        }

    def _listen(self) -> None:
        said = ""
        while True:
            try:
                with _server(self._address) as server:
                    while True:
                        connection, _ = server.accept()
                        run = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                        run.start()
            except OSError as error:
                if str(error) != said:
                    said = str(error)
                    say(f"supervisor: {self._address[0]}:{self._address[1]}: {error}".encode())
                time.sleep(RETRY_S)

    def _serve(self, connection: socket.socket) -> None:
        node = ""
        try:
            with connection, closing(Wire(connection, self._token, leads=True)) as wire:
                report = wire.receive()  # nothing is said to a stranger
                node = report["node"]
                threading.Thread(target=talk, args=(wire, self._news), daemon=True).start()
                while True:
                    self._heard[node] = time.monotonic(), report
                    report = wire.receive()
        except (OSError, ValueError, KeyError):
            self._broke(node)

    def _broke(self, node: str) -> None:
        """A cut cable breaks no connection, an end of the other supervisor does: it has a moment to
        come back, unless it has already."""
        heard = self._heard.get(node)
        if heard is not None:
            at = min(heard[0], time.monotonic() - LOST_S + COME_BACK_S)
            self._heard[node] = at, heard[1]


class Follow:
    """Another node's end."""

    def __init__(self, address: tuple[str, int], token: bytes) -> None:
        self._address = address
        self._token = token
        self._news = News()
        self._orders: dict[str, Order] = {}
        self._heard_at = 0.0
        threading.Thread(target=self._keep, daemon=True).start()

    def tell(self, report: Report) -> None:
        self._news.put(report)

    def orders(self) -> Orders:
        """What the head said last. A head that was not heard for LOST_S seconds may be gone: what
        runs here by its order ends."""
        if time.monotonic() - self._heard_at < LOST_S:
            return dict(self._orders)
        return {
            name: Order(order.generation, order.epoch, "end", order.owner)
            for name, order in self._orders.items()
        }

    def _keep(self) -> None:
        said = ""
        while True:
            try:
                self._follow()
            except (OSError, ValueError, KeyError) as error:
                text = f"supervisor: the head at {self._address[0]}:{self._address[1]}: {error}"
                if isinstance(error, Stranger) and text != said:
                    said = text
                    say(text.encode())
            time.sleep(RETRY_S)

    def _follow(self) -> None:
        connection = socket.create_connection(self._address, timeout=LOST_S)
        with connection, closing(Wire(connection, self._token, leads=False)) as wire:
            threading.Thread(target=talk, args=(wire, self._news), daemon=True).start()
            while True:
                orders = wire.receive()["orders"]
                self._orders = {name: Order(**order) for name, order in orders.items()}
                self._heard_at = time.monotonic()


def _server(address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    return socket.create_server(address, family=family)
