"""Bytes as they arrive, cut into lines of text."""

from __future__ import annotations

from collections.abc import Callable


class LineSplitter:
    """Feeds whole lines to `on_line`; `end` feeds what is left without a line end."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._on_line(_text(line))

    def end(self) -> None:
        if self._rest:
            self._on_line(_text(self._rest))
        self._rest = b""


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r").decode(errors="replace")
