"""Channels of one SSH connection: a command with its outputs, a byte stream, a unix socket."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import paramiko
from paramiko.common import cMSG_CHANNEL_OPEN
from paramiko.message import Message

from clusterctl.errors import ClusterctlError, CommandFailed, NotReady, Unreachable
from clusterctl.transport.base import Result, shell_line

SESSIONS_AT_ONCE = 8  # of sshd's MaxSessions, 10 by default
REFUSED_FOR_S = 5.0
REFUSED_PAUSE_S = 0.05
ANSWER_CHECK_S = 0.2
CHUNK = 32768
SSH_SIGNALLED = 255  # what ssh itself says of a command that a signal ended
GRACE_S = 2.0


class ChannelRefused(Exception):
    """sshd answered a channel request with no."""


class OrderedChannel(paramiko.Channel):
    """A channel whose last word is always CLOSE.

    paramiko answers sshd's CLOSE at once, in its own thread, though another thread may be about to
    send EOF or data. sshd then sees a packet for a channel that it has freed, and ends the whole
    connection. Here the answer waits for `close`, which comes after all that the user sends.
    """

    _answer: tuple[Message | None, ...] = ()
    _leaving = False

    def _close_internal(self) -> tuple[Message | None, ...]:
        """What to send on closing. paramiko calls it with its lock held, on sshd's CLOSE too."""
        messages: tuple[Message | None, ...] = super()._close_internal()  # type: ignore[misc]
        if self._leaving:
            return messages
        self._answer = messages
        return ()

    def close(self) -> None:
        self._leaving = True
        super().close()
        channel: Any = self  # the stubs know nothing of private members
        with channel.lock:
            answer, self._answer = self._answer, ()
        for message in answer:
            if message is not None:
                channel.transport._send_user_message(message)


def open_channel(
    transport: paramiko.Transport, kind: str, details: bytes, timeout: float
) -> paramiko.Channel:
    """A channel of any kind. Raises ChannelRefused, TimeoutError, or EOFError when the connection
    is gone.

    Transport.open_channel sends details for the kinds it knows only, and with several threads at
    it mixes up whose refusal was whose; this is its work done over again. It holds private
    members, hence the pin on paramiko and the contract test.
    """
    message, channel, answered = _announce(transport, kind)
    message.add_bytes(details)
    transport._send_user_message(message)  # type: ignore[attr-defined]
    deadline = time.monotonic() + timeout
    while not answered.wait(ANSWER_CHECK_S):  # a connection that ends does not always say so here
        if not transport.is_active():
            raise EOFError(f"the connection ended while opening {kind}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"no answer to opening {kind} within {timeout:g} s")
    if transport._channels.get(channel.get_id()) is None:  # type: ignore[attr-defined]
        refusal = transport.get_exception()
        raise ChannelRefused(
            refusal.text if isinstance(refusal, paramiko.ChannelException) else "refused"
        )
    return channel


def _announce(transport: Any, kind: str) -> tuple[Message, paramiko.Channel, threading.Event]:
    """The transport is Any: its stubs know nothing of its private members."""
    with transport.lock:
        window = transport._sanitize_window_size(None)
        packet = transport._sanitize_packet_size(None)
        number = transport._next_channel()
        channel: Any = OrderedChannel(number)
        transport._channels.put(number, channel)
        transport.channel_events[number] = answered = threading.Event()
        transport.channels_seen[number] = True
        channel._set_transport(transport)
        channel._set_window(window, packet)
    message = Message()
    message.add_byte(cMSG_CHANNEL_OPEN)
    message.add_string(kind)
    for value in (number, window, packet):
        message.add_int(value)
    return message, channel, answered


def open_unix_socket(transport: paramiko.Transport, path: str, timeout: float) -> paramiko.Channel:
    """OpenSSH's direct-streamlocal: string path, string reserved, uint32 reserved."""
    details = Message()
    details.add_string(path)
    details.add_string("")
    details.add_int(0)
    kind = "direct-streamlocal@openssh.com"
    return open_channel(transport, kind, details.asbytes(), timeout)


def open_tcp(
    transport: paramiko.Transport, address: str, port: int, timeout: float
) -> paramiko.Channel:
    """RFC 4254, 7.2: string host, uint32 port, then who asks, which nobody looks at."""
    details = Message()
    details.add_string(address)
    details.add_int(port)
    details.add_string("127.0.0.1")
    details.add_int(0)
    return open_channel(transport, "direct-tcpip", details.asbytes(), timeout)


def is_alive(transport: paramiko.Transport, timeout: float) -> bool:
    """Whether sshd still answers. It refuses a channel kind that nobody has: that is an answer."""
    try:
        open_channel(transport, "ping@clusterctl", b"", timeout).close()
    except ChannelRefused:
        return True
    except (TimeoutError, EOFError, OSError, paramiko.SSHException):
        return False
    return True


class ChannelStream:
    """A ByteStream over a channel."""

    def __init__(self, channel: paramiko.Channel, host: str) -> None:
        self._channel = channel
        self._host = host

    def sendall(self, data: bytes, /) -> None:
        try:
            self._channel.sendall(data)
        except TimeoutError:
            raise
        except OSError as error:
            self._raise_if_lost()
            raise BrokenPipeError(str(error)) from error

    def recv(self, size: int, /) -> bytes:
        data = self._channel.recv(size)
        if not data:
            self._raise_if_lost()
        return data

    def _raise_if_lost(self) -> None:
        if not self._channel.get_transport().is_active():
            raise Unreachable("the connection was lost", host=self._host)

    def settimeout(self, seconds: float | None, /) -> None:
        self._channel.settimeout(seconds)

    def shutdown_write(self) -> None:
        self._channel.shutdown_write()

    def close(self) -> None:
        self._channel.close()


class Sessions:
    """Opens commands on one connection, never more at once than sshd takes."""

    def __init__(self, transport: paramiko.Transport, host: str) -> None:
        self._transport = transport
        self._host = host
        self._slots = threading.BoundedSemaphore(SESSIONS_AT_ONCE)

    def start(
        self,
        argv: Sequence[str],
        timeout: float,
        *,
        ended_after: float | None = None,
        pty: Pty | None = None,
    ) -> Command:
        """`timeout` bounds the start, `ended_after` the command's life, both in seconds."""
        if not self._slots.acquire(timeout=timeout):
            raise NotReady(
                f"{argv[0]} did not start within {timeout:g} s: "
                f"{SESSIONS_AT_ONCE} commands are running on this host",
                host=self._host,
            )
        try:
            channel = self._open(timeout)
            if pty:
                channel.get_pty(*pty)
            channel.exec_command(shell_line(_ended_after(ended_after, argv)))
        except (ChannelRefused, paramiko.SSHException, EOFError, OSError) as error:
            self._slots.release()
            raise self._explain(error, argv) from error
        except BaseException:
            self._slots.release()
            raise
        return Command(channel, argv, self._host, self._slots.release)

    def _open(self, timeout: float) -> paramiko.Channel:
        """sshd counts an ended session a moment longer than we do, and may take fewer than usual:
        a refusal is no answer until it has lasted."""
        deadline = time.monotonic() + min(timeout, REFUSED_FOR_S)
        while True:
            try:
                return open_channel(self._transport, "session", b"", timeout)
            except ChannelRefused:
                if time.monotonic() > deadline:
                    raise
                time.sleep(REFUSED_PAUSE_S)

    def _explain(self, error: Exception, argv: Sequence[str]) -> ClusterctlError:
        if isinstance(error, ChannelRefused):
            return ClusterctlError(
                f"sshd refused a session for {argv[0]}: {error}",
                host=self._host,
                hint="MaxSessions in its sshd_config is 10 by default; clusterctl uses up to 8",
            )
        return Unreachable(f"the connection was lost before {argv[0]}: {error}", host=self._host)


def _ended_after(seconds: float | None, argv: Sequence[str]) -> list[str]:
    """The host itself ends the command, a second after we gave up: closing the channel does not
    end it, sshd takes no signals in a root login, and the connection may be lost by then."""
    bound = [] if seconds is None else ["timeout", "-k", "2", f"{seconds + 1:g}"]
    return [*bound, *argv]


Pty = tuple[str, int, int]  # terminal type, columns, rows
OnBytes = Callable[[bytes], None]


class Command:
    """A command running on the host."""

    def __init__(
        self,
        channel: paramiko.Channel,
        argv: Sequence[str],
        host: str,
        release: Callable[[], None],
    ) -> None:
        self.channel = channel
        self.argv = tuple(argv)
        self._host = host
        self._release = release
        self._closed = threading.Lock()

    def pump(
        self, stdin: bytes, deadline: float | None, on_stdout: OnBytes, on_stderr: OnBytes
    ) -> int:
        """Feed stdin and drain both outputs until the command ends; its exit code."""
        ready = select.poll()
        ready.register(self.channel.fileno(), select.POLLIN)
        unsent: memoryview | None = memoryview(stdin)
        while not self._drain(on_stdout, on_stderr):
            unsent = self._feed(unsent)
            ready.poll(self._patience(deadline, feeding=unsent is not None) * 1000)
        return self.exit_code(deadline)

    def _patience(self, deadline: float | None, *, feeding: bool) -> float:
        """How long to wait for output. While there is stdin to send, the window is asked often."""
        longest = 0.01 if feeding else 60.0
        return longest if deadline is None else min(longest, self._left(deadline))

    def _left(self, deadline: float) -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise NotReady(f"{shell_line(self.argv)[:200]} did not end in time", host=self._host)
        return left

    def _feed(self, unsent: memoryview | None) -> memoryview | None:
        """Send what the window takes without waiting; None when all is sent."""
        try:
            while unsent and self.channel.send_ready():
                unsent = unsent[self.channel.send(unsent[:CHUNK].tobytes()) :]
            if unsent is not None and not unsent:
                self.channel.shutdown_write()
                return None
        except OSError:  # the command closed its stdin or ended: its exit code says what that means
            return None
        return unsent

    def _drain(self, on_stdout: OnBytes, on_stderr: OnBytes) -> bool:
        """Hand over what has arrived; whether both outputs have ended."""
        ended = bool(self.channel.eof_received or self.channel.closed)
        while self.channel.recv_ready():
            on_stdout(self.channel.recv(CHUNK))
        while self.channel.recv_stderr_ready():
            on_stderr(self.channel.recv_stderr(CHUNK))
        return ended

    def exit_code(self, deadline: float | None) -> int:
        while not self.channel.status_event.wait(self._patience(deadline, feeding=False)):
            pass
        code = self.channel.recv_exit_status()
        if code >= 0:
            return code
        if not self.channel.get_transport().is_active():
            raise Unreachable(f"the connection was lost during {self.argv[0]}", host=self._host)
        return SSH_SIGNALLED

    def close(self) -> None:
        """Let go of the channel and free the session. Once."""
        if self._closed.acquire(blocking=False):
            self.channel.close()
            self._release()


class CommandStream(ChannelStream):
    """A ByteStream that is a command's stdin and stdout."""

    def __init__(self, command: Command, host: str) -> None:
        super().__init__(command.channel, host)
        self._command = command

    def recv(self, size: int, /) -> bytes:
        data = super().recv(size)
        if not data:
            self._raise_if_failed()
        return data

    def _raise_if_failed(self) -> None:
        code = self._command.exit_code(time.monotonic() + GRACE_S)
        if code:
            stderr = self._channel.recv_stderr(CHUNK).decode(errors="replace")
            raise CommandFailed(Result(self._command.argv, code, "", stderr), host=self._host)

    def close(self) -> None:
        self._command.close()
