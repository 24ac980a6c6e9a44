"""A real terminal (a pty) lent to a command, over SSH and into a container."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from clusterctl.spec import SshSpec
from tests.clusterctl import dockerd
from tests.clusterctl.sshd import Sshd

# Waits for each size, then for a typed line; ends with 7.
COMMAND = """
await() { until [ "$(stty size)" = "$1" ]; do sleep 0.05; done; echo "it is $1"; }
await "31 97"; await "40 120"; read x; echo got-$x; exit 7
"""

CHILD = """
import sys
from clusterctl.dockerhost import DockerHost
from clusterctl.spec import NodeSpec, SshSpec
from clusterctl.transport.local import LocalTransport
from clusterctl.transport.ssh import SshHosts
kind, config, known, user, port, identity, socket, container, command = sys.argv[1:]
hosts = SshHosts(SshSpec(config=config, known_hosts=known))
transport = hosts.connect(NodeSpec("n", "127.0.0.1", user, int(port), identity))
argv = ["sh", "-c", command]
if kind == "ssh":
    code = transport.interact(argv)
else:
    code = DockerHost(transport, socket).interact(container, argv)
hosts.close()
sys.exit(code)
"""


class Terminal:
    """A child whose terminal is ours to type on and to read from."""

    def __init__(self, argv: list[str]) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(31, 97)
        self.before = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs)
        self.theirs = theirs
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read_until(self, text: bytes) -> None:
        while text not in self.seen:
            self.seen += os.read(self.ours, 4096)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture(params=["ssh", "docker"])
def terminal(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Terminal]:
    server = Sshd(tmp_path_factory.mktemp("sshd")).start()
    spec: SshSpec = server.spec()
    engine_socket = container = "-"
    engine = None
    if request.param == "docker":
        engine, container = an_engine_with_a_container(tmp_path_factory.mktemp("dockerd"))
        engine_socket = engine.socket
    child = Terminal(
        [
            *(sys.executable, "-c", CHILD, request.param, str(spec.config), str(spec.known_hosts)),
            *(server.user, str(server.port), str(server.identity)),
            *(engine_socket, container, COMMAND),
        ]
    )
    yield child
    child.close()
    server.stop()
    if engine:
        engine.docker("rm", "-f", container)
        engine.stop()


def an_engine_with_a_container(directory: Path) -> tuple[dockerd.Dockerd, str]:
    if not dockerd.can_run():
        pytest.skip("needs root and dockerd")
    engine = dockerd.Dockerd(directory).start()
    engine.add_image()
    made = engine.docker("run", "-d", "--network", "none", dockerd.IMAGE, "sleep", "600")
    return engine, made.stdout.decode().strip()


def test_a_terminal_is_lent_with_its_size_and_keys(terminal: Terminal) -> None:
    terminal.read_until(b"it is 31 97")
    terminal.resize(40, 120)
    terminal.process.send_signal(signal.SIGWINCH)
    terminal.read_until(b"it is 40 120")
    os.write(terminal.ours, b"hello\r")
    terminal.read_until(b"got-hello")
    assert terminal.process.wait(30) == 7
    assert termios.tcgetattr(terminal.theirs) == terminal.before
