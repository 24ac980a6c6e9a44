"""The way to Docker's socket on a host: straight through sshd, or by the docker command there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from clusterctl.dockerhost.failures import unavailable
from clusterctl.errors import ClusterctlError, CommandFailed
from clusterctl.transport.base import ByteStream, SocketRefused, Transport

PING = b"HEAD /_ping HTTP/1.1\r\nHost: docker\r\n\r\n"
PING_TIMEOUT_S = 20.0

Way = Callable[[], ByteStream]


class Dialer:
    """Gives a fresh connection to the Docker Engine at each call, by the first way that works.

    1. the socket, forwarded by sshd           fails where forwarding is off or root is needed
    2. docker system dial-stdio                fails where the login is not in group docker
    3. sudo -n docker system dial-stdio
    """

    def __init__(self, transport: Transport, socket_path: str) -> None:
        self._transport = transport
        self._socket = socket_path
        stdio = ("docker", "--host", f"unix://{socket_path}", "system", "dial-stdio")
        self._ways: tuple[Way, ...] = (
            lambda: transport.open_socket(socket_path),
            lambda: self._by_command(*stdio),
            lambda: self._by_command("sudo", "-n", *stdio),
        )
        self._known: Way | None = None

    def __call__(self) -> ByteStream:
        if self._known:
            try:
                return self._known()
            except (SocketRefused, CommandFailed):
                self._known = None
        return self._search()

    def _search(self) -> ByteStream:
        reasons: list[ClusterctlError] = []
        for way in self._ways:
            try:
                stream = way()
            except (SocketRefused, CommandFailed) as error:
                reasons.append(error)
            else:
                self._known = way
                return stream
        raise unavailable(reasons, self._transport.host, self._socket)

    def _by_command(self, *argv: str) -> ByteStream:
        """A command starts whether or not it will reach the socket: only an answer tells."""
        stream = self._transport.open_command(argv)
        try:
            _ping(stream)
        except (CommandFailed, OSError) as error:
            stream.close()
            if isinstance(error, CommandFailed):
                raise
            raise SocketRefused(f"{argv[0]}: {error}", host=self._transport.host) from error
        return stream


def _ping(stream: ByteStream) -> None:
    stream.settimeout(PING_TIMEOUT_S)
    with suppress(BrokenPipeError):  # ended already: reading tells why
        stream.sendall(PING)
    heard = b""
    while not heard.endswith(b"\r\n\r\n"):
        data = stream.recv(1)
        if not data:
            raise ConnectionError("ended without an answer from Docker")
        heard += data
