"""Ports of the cluster on this machine, over the SSH connections that are there already."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import NoReturn
from urllib.parse import urlsplit

from clusterctl.errors import ClusterctlError, ConfigError, Unreachable
from clusterctl.events import Event, Report, silent
from clusterctl.links import HostLink
from clusterctl.serving.records import Deployment
from clusterctl.spec import ClusterSpec
from clusterctl.transport.base import ByteStream, SocketRefused

HERE = "127.0.0.1"
DASHBOARD = "dashboard"
CHUNK = 32768
LOOK_EVERY_S = 10.0


@dataclass(frozen=True)
class Forward:
    """A port of a host, as it is reached from that host itself, and the one on this machine that
    stands for it. `local_port` 0: any that is free. `scheme`: of a URL that leads there."""

    what: str
    host: str
    address: str
    port: int
    local_port: int
    scheme: str = "http"


def to_api(head: str, deployment: Deployment, local_port: int | None) -> Forward:
    """A deployment's API. `local_port` None: the number it has there, where that is free here."""
    at = urlsplit(deployment.url)
    if at.hostname is None or at.port is None:
        raise ValueError(f"no address in {deployment.url}")
    here = free_port(at.port) if local_port is None else local_port
    return Forward(deployment.name, head, at.hostname, at.port, here, at.scheme)


def to_dashboard(spec: ClusterSpec) -> Forward:
    """Ray's dashboard, which listens on the head's loopback alone."""
    port = spec.ray.dashboard_port
    return Forward(DASHBOARD, spec.head, HERE, port, free_port(port))


@contextmanager
def forwarded(link: HostLink, wanted: Forward, report: Report = silent) -> Iterator[Forward]:
    """Listen here for as long as the block lasts; gives the Forward with its real local port.

    Raises ConfigError when the local port is taken.
    """
    server = _listen(link, wanted, report)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield replace(wanted, local_port=server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def all_forwarded(
    link: HostLink, wanted: Sequence[Forward], report: Report
) -> Iterator[list[Forward]]:
    with ExitStack() as stack:
        yield [stack.enter_context(forwarded(link, one, report)) for one in wanted]


def answers(link: HostLink, wanted: Forward) -> bool:
    """Whether somebody listens there now, seen from its host."""
    try:
        link.transport.open_address(wanted.address, wanted.port).close()
    except SocketRefused:
        return False
    return True


def hold(link: HostLink) -> NoReturn:
    """Until the user ends it. Raises Unreachable when the host is lost: nothing else says so."""
    while True:
        time.sleep(LOOK_EVERY_S)
        link.transport.run(["true"])


def free_port(preferred: int) -> int:
    """The same number as over there where it is free here, else any (0)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HERE, preferred))
        except OSError:
            return 0
    return preferred


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    server_address: tuple[str, int]


def _listen(link: HostLink, wanted: Forward, report: Report) -> _Server:
    class Connection(socketserver.BaseRequestHandler):
        request: socket.socket

        def handle(self) -> None:
            try:
                stream = link.transport.open_address(wanted.address, wanted.port)
            except (SocketRefused, Unreachable) as error:
                report(Event("warn", "tunnel", f"{wanted.what}: {error.message}", wanted.host))
                return
            join(self.request, stream)

    try:
        return _Server((HERE, wanted.local_port), Connection)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {HERE}:{wanted.local_port}: {error.strerror}",
            hint="--local-port with another one",
        ) from error


def join(near: socket.socket, far: ByteStream) -> None:
    """Carry bytes both ways until both sides have said all, or one is gone."""
    back = threading.Thread(target=_answers, args=(far, near), daemon=True)
    back.start()
    with closing(far), suppress(OSError, ClusterctlError):
        while data := near.recv(CHUNK):
            far.sendall(data)
        far.shutdown_write()
        back.join()


def _answers(far: ByteStream, near: socket.socket) -> None:
    with suppress(OSError, ClusterctlError):
        while data := far.recv(CHUNK):
            near.sendall(data)
    with suppress(OSError):
        near.shutdown(socket.SHUT_WR)
