"""Hosts over SSH: one connection each, kept for the whole run and shared by everything."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import paramiko

from clusterctl.errors import ClusterctlError, CommandFailed, Unreachable
from clusterctl.spec import NodeSpec, SshSpec
from clusterctl.trace import Trace, untraced
from clusterctl.transport import sshconnect
from clusterctl.transport.base import (
    DEFAULT_TIMEOUT_S,
    ByteStream,
    Result,
    SocketRefused,
    put_argv,
    trace_line,
)
from clusterctl.transport.lines import LineSplitter
from clusterctl.transport.sshchannel import (
    ChannelRefused,
    ChannelStream,
    Command,
    CommandStream,
    Sessions,
    is_alive,
    open_tcp,
    open_unix_socket,
)
from clusterctl.transport.sshconfig import SshTarget, Wanted, resolve
from clusterctl.transport.sshconnect import Connection
from clusterctl.transport.terminal import attach, terminal_size, terminal_type

KEEPALIVE_S = 15.0
SILENCE_S = 30.0  # a host that leaves a ping unanswered for so long is lost
MANY_HOSTS = 10  # sshd's MaxStartups begins to drop here
JITTER_PER_HOST_S = 0.01


class SshTransport:
    """One connected host. Contract: transport.base.Transport."""

    def __init__(
        self,
        host: str,
        connection: Connection,
        *,
        trace: Trace = untraced,
        socket_timeout: float = 10.0,
    ) -> None:
        self.host = host
        self._ssh = connection.transport
        self._sessions = Sessions(self._ssh, host)
        self._trace = trace
        self._socket_timeout = socket_timeout
        self._closing = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """A host that stopped answering is closed, which wakes everyone who waits for it."""
        while not self._closing.wait(KEEPALIVE_S):
            if not is_alive(self._ssh, SILENCE_S):
                self._ssh.close()
                return

    def _start(
        self, argv: Sequence[str], timeout: float, *, ended_after: float | None = None
    ) -> Command:
        if not self._ssh.is_active():
            raise Unreachable("the connection is closed", host=self.host)
        self._trace(trace_line(self.host, argv))
        return self._sessions.start(argv, timeout, ended_after=ended_after)

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout: float = DEFAULT_TIMEOUT_S,
        check: bool = True,
    ) -> Result:
        begun = time.monotonic()
        out, err = bytearray(), bytearray()
        command = self._start(argv, timeout, ended_after=timeout)
        try:
            code = command.pump(stdin, begun + timeout, out.extend, err.extend)
        finally:
            command.close()
        stdout, stderr = out.decode(errors="replace"), err.decode(errors="replace")
        result = Result(tuple(argv), code, stdout, stderr, time.monotonic() - begun)
        if check and not result.ok:
            raise CommandFailed(result, host=self.host)
        return result

    def stream(
        self,
        argv: Sequence[str],
        on_line: Callable[[str], None],
        *,
        stdin: bytes = b"",
        timeout: float | None = None,
    ) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        out, err = LineSplitter(on_line), LineSplitter(on_line)
        command = self._start(argv, timeout or DEFAULT_TIMEOUT_S, ended_after=timeout)
        try:
            code = command.pump(stdin, deadline, out.feed, err.feed)
        finally:
            command.close()
        out.end()
        err.end()
        return code

    def interact(self, argv: Sequence[str]) -> int:
        self._trace(trace_line(self.host, argv))
        pty = (terminal_type(), *terminal_size())
        command = self._sessions.start(argv, DEFAULT_TIMEOUT_S, pty=pty)
        try:
            attach(ChannelStream(command.channel, self.host), command.channel.resize_pty)
            return command.exit_code(None)
        finally:
            command.close()

    def put(self, data: bytes, path: str, *, mode: int = 0o644) -> None:
        self.run(put_argv(path, mode, len(data)), stdin=data, timeout=_time_for(data))

    def open_socket(self, path: str) -> ByteStream:
        return self._forwarded(path, lambda wait: open_unix_socket(self._ssh, path, wait))

    def open_address(self, address: str, port: int) -> ByteStream:
        return self._forwarded(
            f"{address}:{port}", lambda wait: open_tcp(self._ssh, address, port, wait)
        )

    def _forwarded(self, where: str, opened: Callable[[float], paramiko.Channel]) -> ByteStream:
        self._trace(f"{self.host}\tsocket {where}")
        try:
            channel = opened(self._socket_timeout)
        except ChannelRefused as error:
            raise SocketRefused(
                f"sshd cannot connect to {where}: {error}", host=self.host
            ) from error
        except (TimeoutError, EOFError, OSError, paramiko.SSHException) as error:
            raise Unreachable(f"the connection was lost: {error}", host=self.host) from error
        return ChannelStream(channel, self.host)

    def open_command(self, argv: Sequence[str]) -> ByteStream:
        return CommandStream(self._start(argv, DEFAULT_TIMEOUT_S), self.host)

    def close(self) -> None:
        self._closing.set()
        self._ssh.close()


def _time_for(data: bytes) -> float:
    """A minute, and more for what a 1 MB/s line needs."""
    return DEFAULT_TIMEOUT_S + len(data) / 1e6


class SshHosts:
    """Connects nodes by one SSH configuration. Jump hosts are connected once and shared."""

    def __init__(
        self,
        spec: SshSpec,
        *,
        connect_timeout: float = 10.0,
        expected: int = 1,
        trace: Trace = untraced,
    ) -> None:
        self._spec = spec
        self._timeout = connect_timeout
        self._jitter = expected * JITTER_PER_HOST_S if expected > MANY_HOSTS else 0.0
        self._trace = trace
        self._lock = threading.Lock()
        self._jumps: dict[str, Future[Connection]] = {}
        self._open: list[paramiko.Transport] = []
        self._proxies: list[subprocess.Popen[bytes]] = []

    def connect(self, node: NodeSpec) -> SshTransport:
        """Connect one node. Raises Unreachable or ConfigError with the fix in its hint."""
        time.sleep(random.uniform(0, self._jitter))
        connection = self._connect(Wanted.of_node(node), node.name)
        return SshTransport(node.name, connection, trace=self._trace, socket_timeout=self._timeout)

    def _connect(self, wanted: Wanted, host: str) -> Connection:
        target = resolve(wanted, self._spec)
        timeout = target.connect_timeout or self._timeout
        connection = sshconnect.connect(
            target,
            host,
            timeout=timeout,
            accept_new=self._spec.accept_new_host_keys,
            road=lambda: self._road(target, host, timeout),
        )
        with self._lock:
            self._open.append(connection.transport)
        return connection

    def _road(self, target: SshTarget, host: str, timeout: float) -> sshconnect.Channelish:
        if target.jump:
            return sshconnect.through(self._jump(target.jump, host), target, host, timeout)
        if target.proxy_command:
            road, process = sshconnect.by_command(target.proxy_command)
            with self._lock:
                self._proxies.append(process)
            return road
        return sshconnect.direct(target, host, timeout)

    def _jump(self, jump: str, host: str) -> Connection:
        """The first who needs a jump host connects it; the others wait for that."""
        with self._lock:
            mine = jump not in self._jumps
            future = self._jumps.setdefault(jump, Future())
        if mine:
            try:
                future.set_result(self._connect(Wanted.of_jump(jump), f"jump host {jump}"))
            except BaseException as error:  # noqa: BLE001  (raised again where it is waited for)
                future.set_exception(error)
        try:
            return future.result()
        except ClusterctlError as error:
            raise Unreachable(
                f"jump host {jump}: {error.message}", host=host, hint=error.hint
            ) from error

    def close(self) -> None:
        """Ends every connection made here, also those that nobody got hold of."""
        with self._lock:
            connections, proxies = self._open[::-1], list(self._proxies)
        for connection in connections:
            connection.close()
        for process in proxies:
            process.kill()
            process.wait()
