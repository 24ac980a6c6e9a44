"""A helper's stdin and stdout as a ByteStream, over the connection that Docker attached."""

from __future__ import annotations

import contextlib
from typing import Protocol

from clusterctl.dockerhost.frames import Demultiplexer
from clusterctl.errors import ClusterctlError
from clusterctl.transport.base import ByteStream

CHUNK = 65536


class Owner(Protocol):
    """The engine that it runs on."""

    host: str

    def end_helper(self, container_id: str) -> None: ...


class HelperStream:
    def __init__(self, owner: Owner, container_id: str, stream: ByteStream) -> None:
        self._owner = owner
        self._id = container_id
        self._stream = stream
        self._out, self._err = bytearray(), bytearray()
        self._frames = Demultiplexer(self._out.extend, self._err.extend)
        self.sendall = stream.sendall
        self.settimeout = stream.settimeout
        self.shutdown_write = stream.shutdown_write

    def recv(self, size: int, /) -> bytes:
        while not self._out:
            data = self._stream.recv(CHUNK)
            if not data:
                self._raise_if_crashed()
                return b""
            self._frames.feed(data)
        taken = bytes(self._out[:size])
        del self._out[:size]
        return taken

    def _raise_if_crashed(self) -> None:
        if said := self._err.decode(errors="replace").strip():
            raise ClusterctlError(
                f"the helper crashed: {said.splitlines()[-1]}", host=self._owner.host
            )

    def close(self) -> None:
        """A host that is lost ends the helper by itself."""
        self._stream.close()
        with contextlib.suppress(ClusterctlError):
            self._owner.end_helper(self._id)
