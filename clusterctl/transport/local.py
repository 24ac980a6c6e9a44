"""This machine, without SSH. Contract: transport.base.Transport."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

from clusterctl.errors import CommandFailed, NotReady, Unreachable
from clusterctl.trace import Trace, untraced
from clusterctl.transport.base import (
    DEFAULT_TIMEOUT_S,
    ByteStream,
    Result,
    SocketRefused,
    put_argv,
    shell_line,
    trace_line,
)
from clusterctl.transport.lines import LineSplitter

CHUNK = 32768
GRACE_S = 2.0

# A shell in between says 127 and 126 as it does over SSH.
THROUGH_SHELL = ("sh", "-c", 'exec "$@"', "sh")

OnBytes = Callable[[bytes], None]


class LocalTransport:
    def __init__(self, host: str = "localhost", *, trace: Trace = untraced) -> None:
        self.host = host
        self._trace = trace
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    @contextmanager
    def _process(
        self, argv: Sequence[str], **pipes: int | IO[bytes]
    ) -> Iterator[subprocess.Popen[bytes]]:
        process = self._start(argv, pipes)
        try:
            yield process
        finally:
            self._end(process)

    def _start(
        self, argv: Sequence[str], pipes: Mapping[str, int | IO[bytes]]
    ) -> subprocess.Popen[bytes]:
        self._trace(trace_line(self.host, argv))
        with self._lock:
            if self._closed:
                raise Unreachable("the connection is closed", host=self.host)
            process = subprocess.Popen(
                [*THROUGH_SHELL, *argv],
                stdin=pipes.get("stdin", subprocess.PIPE),
                stdout=pipes.get("stdout", subprocess.PIPE),
                stderr=pipes.get("stderr", subprocess.PIPE),
                start_new_session=True,
            )
            self._running.add(process)
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        _stop(process)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()
        with self._lock:
            self._running.discard(process)

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout: float = DEFAULT_TIMEOUT_S,
        check: bool = True,
    ) -> Result:
        begun = time.monotonic()
        with self._process(argv) as process:
            try:
                out, err = process.communicate(stdin, timeout)
            except subprocess.TimeoutExpired:
                raise self._too_late(argv) from None
        result = Result(
            argv=tuple(argv),
            exit_code=_exit_code(process),
            stdout=out.decode(errors="replace"),
            stderr=err.decode(errors="replace"),
            seconds=time.monotonic() - begun,
        )
        if check and not result.ok:
            raise CommandFailed(result, host=self.host)
        return result

    def _too_late(self, argv: Sequence[str]) -> NotReady:
        return NotReady(f"{shell_line(argv)[:200]} did not end in time", host=self.host)

    def stream(
        self,
        argv: Sequence[str],
        on_line: Callable[[str], None],
        *,
        stdin: bytes = b"",
        timeout: float | None = None,
    ) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        with tempfile.TemporaryFile() as given, selectors.DefaultSelector() as waiting:
            given.write(stdin)
            given.seek(0)
            with self._process(argv, stdin=given) as process:
                splitters = [LineSplitter(on_line), LineSplitter(on_line)]
                for pipe, splitter in zip((process.stdout, process.stderr), splitters, strict=True):
                    assert pipe is not None
                    waiting.register(pipe, selectors.EVENT_READ, splitter)
                while waiting.get_map():
                    self._read_ready(waiting, deadline, argv)
                self._wait(process, deadline, argv)
        for splitter in splitters:
            splitter.end()
        return _exit_code(process)

    def _read_ready(
        self, waiting: selectors.BaseSelector, deadline: float | None, argv: Sequence[str]
    ) -> None:
        for key, _ in waiting.select(self._left(deadline, argv)):
            data = os.read(key.fd, CHUNK)
            key.data.feed(data)
            if not data:
                waiting.unregister(key.fileobj)

    def _wait(
        self, process: subprocess.Popen[bytes], deadline: float | None, argv: Sequence[str]
    ) -> None:
        try:
            process.wait(self._left(deadline, argv))
        except subprocess.TimeoutExpired:
            raise self._too_late(argv) from None

    def _left(self, deadline: float | None, argv: Sequence[str]) -> float | None:
        if deadline is None:
            return None
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._too_late(argv)
        return left

    def interact(self, argv: Sequence[str]) -> int:
        self._trace(trace_line(self.host, argv))
        return subprocess.call([*THROUGH_SHELL, *argv])

    def put(self, data: bytes, path: str, *, mode: int = 0o644) -> None:
        self.run(put_argv(path, mode, len(data)), stdin=data)

    def open_socket(self, path: str) -> ByteStream:
        self._trace(f"{self.host}\tsocket {path}")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(path)
        except OSError as error:
            connection.close()
            raise self._refused(path, error) from error
        return SocketStream(connection)

    def open_address(self, address: str, port: int) -> ByteStream:
        where = f"{address}:{port}"
        self._trace(f"{self.host}\tsocket {where}")
        try:
            return SocketStream(socket.create_connection((address, port), DEFAULT_TIMEOUT_S))
        except OSError as error:
            raise self._refused(where, error) from error

    def _refused(self, where: str, error: OSError) -> SocketRefused:
        return SocketRefused(f"cannot connect to {where}: {error.strerror}", host=self.host)

    def open_command(self, argv: Sequence[str]) -> ByteStream:
        ours, theirs = socket.socketpair()
        stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the stream)
        with theirs:
            ends = theirs.fileno()
            process = self._start(argv, {"stdin": ends, "stdout": ends, "stderr": stderr})
        return _CommandStream(ours, process, stderr, argv, self)

    def close(self) -> None:
        """Ends what still runs, as closing an SSH connection does."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        for process in running:
            _stop(process)


class SocketStream:
    """A ByteStream over a connected socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def sendall(self, data: bytes, /) -> None:
        self._socket.sendall(data)

    def recv(self, size: int, /) -> bytes:
        return self._socket.recv(size)

    def settimeout(self, seconds: float | None, /) -> None:
        self._socket.settimeout(seconds)

    def shutdown_write(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()


class _CommandStream(SocketStream):
    """A command's stdin and stdout."""

    def __init__(
        self,
        connection: socket.socket,
        process: subprocess.Popen[bytes],
        stderr: IO[bytes],
        argv: Sequence[str],
        owner: LocalTransport,
    ) -> None:
        super().__init__(connection)
        self._process = process
        self._stderr = stderr
        self._argv = argv
        self._owner = owner

    def recv(self, size: int, /) -> bytes:
        data = super().recv(size)
        if not data and self._process.wait(GRACE_S):
            self._stderr.seek(0)
            said = self._stderr.read().decode(errors="replace")
            result = Result(tuple(self._argv), _exit_code(self._process), "", said)
            raise CommandFailed(result, host=self._owner.host)
        return data

    def close(self) -> None:
        super().close()
        self._stderr.close()
        self._owner._end(self._process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started: it leads a group of its own."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _exit_code(process: subprocess.Popen[bytes]) -> int:
    """255 for a signal, as over SSH."""
    return process.returncode if process.returncode >= 0 else 255
