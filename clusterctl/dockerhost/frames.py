"""Docker's attached streams, taken apart. PURE.

Without a terminal, stdout and stderr share one connection as frames:

    1 byte stream (1 out, 2 err) | 3 bytes zero | 4 bytes length, big endian | payload
"""

from __future__ import annotations

import struct
from collections.abc import Callable

HEADER = struct.Struct(">BxxxL")
STDERR = 2


class Demultiplexer:
    """Feed it what arrives; it hands over the payloads, however the bytes were cut."""

    def __init__(
        self, on_stdout: Callable[[bytes], object], on_stderr: Callable[[bytes], object]
    ) -> None:
        self._on_stdout = on_stdout
        self._on_stderr = on_stderr
        self._header = bytearray()
        self._stream = 0
        self._left = 0

    def feed(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = self._payload(view) if self._left else self._begin(view)

    def _begin(self, view: memoryview) -> memoryview:
        missing = HEADER.size - len(self._header)
        self._header += view[:missing]
        if len(self._header) == HEADER.size:
            self._stream, self._left = HEADER.unpack(self._header)
            self._header.clear()
        return view[missing:]

    def _payload(self, view: memoryview) -> memoryview:
        payload = bytes(view[: self._left])
        self._left -= len(payload)
        if self._stream == STDERR:
            self._on_stderr(payload)
        else:
            self._on_stdout(payload)
        return view[len(payload) :]
