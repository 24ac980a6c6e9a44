"""How we reach a host: a few verbs, whatever carries them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from clusterctl.errors import ClusterctlError

DEFAULT_TIMEOUT_S = 60.0


class SocketRefused(ClusterctlError):
    """A socket on the host could not be reached: absent, not ours, or not forwarded."""


@dataclass(frozen=True)
class Result:
    """What a command on a host left. Outputs are decoded as UTF-8, errors replaced."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


class ByteStream(Protocol):
    """A connected duplex byte stream, shaped like a socket so that http.client can speak over it.

    `recv` gives b"" at the end, raises TimeoutError past `settimeout`, and errors.Unreachable when
    the host is lost.
    """

    def sendall(self, data: bytes, /) -> None: ...
    def recv(self, size: int, /) -> bytes: ...
    def settimeout(self, seconds: float | None, /) -> None: ...
    def shutdown_write(self) -> None:
        """Say that nothing more will be sent; what the other side says can still be read."""
        ...

    def close(self) -> None: ...


class Transport(Protocol):
    """One connected host. Every verb has a deadline; a lost host raises errors.Unreachable.

    `host` is the node's name as the user wrote it: every error names it.
    """

    host: str

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout: float = DEFAULT_TIMEOUT_S,
        check: bool = True,
    ) -> Result:
        """Run a command to its end. Raises CommandFailed on a non-zero code unless check is False.

        Past `timeout` seconds the command is ended and errors.NotReady names it.
        """
        ...

    def stream(
        self,
        argv: Sequence[str],
        on_line: Callable[[str], None],
        *,
        stdin: bytes = b"",
        timeout: float | None = None,
    ) -> int:
        """Run a command, handing over each line of stdout and stderr; its exit code."""
        ...

    def interact(self, argv: Sequence[str]) -> int:
        """Give the command this terminal (a pty over there); its exit code."""
        ...

    def put(self, data: bytes, path: str, *, mode: int = 0o644) -> None:
        """Write a file whole: it appears under `path` with its final mode or not at all."""
        ...

    def open_socket(self, path: str) -> ByteStream:
        """Connect to a unix socket on the host. Raises SocketRefused when that cannot be."""
        ...

    def open_address(self, address: str, port: int) -> ByteStream:
        """Connect to a TCP port as the host sees it. Raises SocketRefused when that cannot be."""
        ...

    def open_command(self, argv: Sequence[str]) -> ByteStream:
        """A command as a stream: its stdin and stdout. Its `recv` raises CommandFailed, with what
        the command said on stderr, where the command ended with a non-zero code."""
        ...

    def close(self) -> None: ...


def shell_line(argv: Sequence[str]) -> str:
    """The one place where an argv becomes text for a shell."""
    return shlex.join(argv)


def trace_line(host: str, argv: Sequence[str]) -> str:
    """A command as one line of the transport log."""
    return f"{host}\trun {shell_line(argv)}".replace("\n", "\\n")


_PUT = """\
umask 077
part="$1.$$.part"
cat > "$part" && [ "$(wc -c < "$part")" -eq "$3" ] && chmod "$2" "$part" && mv -f "$part" "$1" ||
{ rm -f "$part"; echo "cannot write $1" >&2; exit 1; }
"""


def put_argv(path: str, mode: int, size: int) -> list[str]:
    """Writes its stdin, `size` bytes, to `path`. The size is checked because a lost connection
    looks like the end of the data. Put `sudo -n` before it to write where only root may."""
    return ["sh", "-c", _PUT, "put", path, f"{mode:o}", str(size)]
