"""Ports of a host on this machine, over a real sshd and over none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from clusterctl.errors import ConfigError
from clusterctl.events import Event
from clusterctl.links import HostLink
from clusterctl.serving.records import Deployment
from clusterctl.spec import ClusterSpec, NodeSpec, RaySpec
from clusterctl.transport.ssh import SshHosts
from clusterctl.tunnel import (
    HERE,
    Forward,
    all_forwarded,
    answers,
    forwarded,
    free_port,
    to_api,
    to_dashboard,
)
from tests.clusterctl.sshd import Sshd
from tests.fakes import FakeRuntime

TINY = Deployment("tiny", "/m", "native", 1, 1, "ready", "http://10.0.0.1:8000/v1")


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    server = Sshd(tmp_path_factory.mktemp("sshd")).start()
    yield server
    server.stop()


@pytest.fixture
def link(sshd: Sshd) -> Iterator[HostLink]:
    hosts = SshHosts(sshd.spec())
    made = HostLink(sshd.node(), hosts.connect(sshd.node()), FakeRuntime())
    yield made
    made.close()
    hosts.close()


@pytest.fixture
def upper() -> Iterator[int]:
    """A server that answers each line in capitals until its client has said all."""
    server = socket.create_server((HERE, 0))

    def speak(peer: socket.socket) -> None:
        with peer:
            while data := peer.recv(65536):
                peer.sendall(data.upper())

    def accept() -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=speak, args=(peer,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def said(port: int, words: bytes) -> bytes:
    with socket.create_connection((HERE, port), 10) as client:
        threading.Thread(target=lambda: (client.sendall(words), client.shutdown(1))).start()
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_many_clients_at_once_each_get_their_own_answer(link: HostLink, upper: int) -> None:
    wanted = Forward("api", "gpu01", HERE, upper, 0)
    with forwarded(link, wanted) as here:
        assert here.local_port not in (0, upper)
        heard: dict[int, bytes] = {}
        threads = [
            threading.Thread(
                target=lambda n=n: heard.update({n: said(here.local_port, b"%d x" % n * 50_000)})
            )
            for n in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert heard == {n: b"%d X" % n * 50_000 for n in range(12)}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HERE, here.local_port), 5)


def test_a_port_where_nobody_listens_ends_the_client_and_is_said(link: HostLink) -> None:
    told: list[Event] = []
    nobody = Forward("api", "gpu01", HERE, free_port(0) or 1, 0)
    with forwarded(link, nobody, told.append) as here:
        assert said(here.local_port, b"x") == b""
    assert [(one.kind, one.host) for one in told] == [("warn", "gpu01")]
    assert told[0].message.startswith("api: sshd cannot connect to 127.0.0.1:1")
    assert not answers(link, nobody)


def test_a_taken_local_port_is_named(link: HostLink, upper: int) -> None:
    wanted = [Forward("a", "gpu01", HERE, upper, 0), Forward("b", "gpu01", HERE, 1, upper)]
    assert answers(link, wanted[0])
    with (
        pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{upper}: Address"),
        all_forwarded(link, wanted, lambda _: None),
    ):
        pass


def test_what_is_forwarded(upper: int) -> None:
    spec = ClusterSpec(
        "c", (NodeSpec("gpu01", "gpu01"),), "gpu01", ray=RaySpec(dashboard_port=upper)
    )
    assert to_api("gpu01", TINY, 9000) == Forward("tiny", "gpu01", "10.0.0.1", 8000, 9000)
    assert to_dashboard(spec) == Forward("dashboard", "gpu01", HERE, upper, 0)
