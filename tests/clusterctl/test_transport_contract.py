"""One contract, three transports: the fake that other tests rely on, this machine, a real sshd."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clusterctl.errors import CommandFailed, NotReady, Unreachable
from clusterctl.transport.base import ByteStream, SocketRefused, Transport
from clusterctl.transport.local import LocalTransport
from clusterctl.transport.ssh import SshHosts
from tests.clusterctl.sshd import Sshd, free_port
from tests.fakes import Says, ScriptedTransport

SPEAK = ("sh", "-c", "echo out; echo err >&2; exit 3")
CAT = ("cat",)
ODD = ("printf", "%s|", "a b", "$HOME", "it's", 'q"q', "*", "é", "")
LINES = ("sh", "-c", r"printf 'one\ntwo\nthree'; exit 4")
SLEEP = ("sleep", "600")
ABSENT = ("no-such-command-here",)


def echo(stdin: bytes) -> str:
    return stdin.decode()


def serve_upper(peer: socket.socket) -> None:
    """Answers in capitals once the other side has said all."""
    heard = b""
    while data := peer.recv(1024):
        heard += data
    if heard:
        peer.sendall(heard.upper())


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    server = Sshd(tmp_path_factory.mktemp("sshd")).start()
    yield server
    server.stop()


@pytest.fixture
def unix_server(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "sock")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    with serving(server):
        yield path


@pytest.fixture
def tcp_server() -> Iterator[tuple[str, int]]:
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    with serving(server):
        yield server.getsockname()


@contextmanager
def serving(server: socket.socket) -> Iterator[None]:
    server.listen()

    def accept() -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            with peer:
                serve_upper(peer)

    threading.Thread(target=accept, daemon=True).start()
    yield
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def scripted(*served: str) -> ScriptedTransport:
    absent = Says(stderr="sh: no-such-command-here: not found\n", exit_code=127)
    return ScriptedTransport(
        "gpu01",
        {
            SPEAK: Says("out\n", "err\n", 3),
            CAT: echo,
            ODD: "a b|$HOME|it's|q\"q|*|é||",
            LINES: Says("one\ntwo\nthree", exit_code=4),
            SLEEP: Says(hangs=True),
            ABSENT: absent,
        },
        sockets=dict.fromkeys(served, serve_upper),
    )


@pytest.fixture(params=["fake", "local", "ssh"])
def transport(
    request: pytest.FixtureRequest, unix_server: str, tcp_server: tuple[str, int], sshd: Sshd
) -> Iterator[Transport]:
    hosts = SshHosts(sshd.spec())
    makers: dict[str, Callable[[], Transport]] = {
        "fake": lambda: scripted(unix_server, "{}:{}".format(*tcp_server)),
        "local": lambda: LocalTransport("gpu01"),
        "ssh": lambda: hosts.connect(sshd.node()),
    }
    transport = makers[request.param]()
    yield transport
    transport.close()
    hosts.close()


def read_all(stream: ByteStream) -> bytes:
    heard = b""
    while data := stream.recv(1024):
        heard += data
    return heard


def test_run_keeps_both_outputs_and_the_code(transport: Transport) -> None:
    result = transport.run(SPEAK, check=False)
    assert (result.argv, result.exit_code) == (SPEAK, 3)
    assert (result.stdout, result.stderr) == ("out\n", "err\n")


def test_run_raises_on_a_code_by_default(transport: Transport) -> None:
    with pytest.raises(CommandFailed, match="sh exited 3: err") as caught:
        transport.run(SPEAK)
    assert caught.value.host == "gpu01"
    assert caught.value.result.exit_code == 3


def test_run_passes_every_argument_unchanged(transport: Transport) -> None:
    assert transport.run(ODD).stdout == "a b|$HOME|it's|q\"q|*|é||"


def test_run_feeds_stdin_whole_while_output_comes_back(transport: Transport) -> None:
    """More than any window or pipe holds, both ways at once."""
    data = b"0123456789abcdef" * 400_000
    assert transport.run(CAT, stdin=data).stdout == data.decode()


def test_run_ends_without_stdin(transport: Transport) -> None:
    assert transport.run(CAT).stdout == ""


def test_a_command_that_is_not_there_is_127(transport: Transport) -> None:
    result = transport.run(ABSENT, check=False)
    assert result.exit_code == 127
    assert ABSENT[0] in result.stderr


def test_run_past_its_time_names_the_command(transport: Transport) -> None:
    with pytest.raises(NotReady, match="sleep") as caught:
        transport.run(SLEEP, timeout=0.3)
    assert caught.value.host == "gpu01"


def test_stream_hands_over_lines_and_the_code(transport: Transport) -> None:
    lines: list[str] = []
    assert transport.stream(LINES, lines.append) == 4
    assert lines == ["one", "two", "three"]


def test_stream_feeds_stdin(transport: Transport) -> None:
    lines: list[str] = []
    assert transport.stream(CAT, lines.append, stdin=b"a\nb\n") == 0
    assert lines == ["a", "b"]


def test_stream_past_its_time_names_the_command(transport: Transport) -> None:
    with pytest.raises(NotReady, match="sleep"):
        transport.stream(SLEEP, lambda _: None, timeout=0.3)


def test_a_unix_socket_carries_both_directions_and_a_half_close(
    transport: Transport, unix_server: str
) -> None:
    stream = transport.open_socket(unix_server)
    stream.settimeout(20)
    stream.sendall(b"hello")
    stream.shutdown_write()
    assert read_all(stream) == b"HELLO"
    stream.close()


def test_an_address_carries_both_directions_and_a_half_close(
    transport: Transport, tcp_server: tuple[str, int]
) -> None:
    stream = transport.open_address(*tcp_server)
    stream.settimeout(20)
    stream.sendall(b"hello")
    stream.shutdown_write()
    assert read_all(stream) == b"HELLO"
    stream.close()


def test_an_address_where_nobody_listens_is_refused(transport: Transport) -> None:
    port = free_port()
    with pytest.raises(SocketRefused, match=rf"127\.0\.0\.1:{port}") as caught:
        transport.open_address("127.0.0.1", port)
    assert caught.value.host == "gpu01"


def test_a_unix_socket_that_is_silent_times_out(transport: Transport, unix_server: str) -> None:
    stream = transport.open_socket(unix_server)
    stream.settimeout(0.1)
    with pytest.raises(TimeoutError):
        stream.recv(1)
    stream.close()


def test_a_unix_socket_that_is_not_there_is_refused(transport: Transport) -> None:
    with pytest.raises(SocketRefused, match=r"/nowhere/docker\.sock") as caught:
        transport.open_socket("/nowhere/docker.sock")
    assert caught.value.host == "gpu01"


def test_a_failed_command_stream_says_why_at_its_end(transport: Transport) -> None:
    stream = transport.open_command(ABSENT)
    with pytest.raises(CommandFailed, match="not found") as caught:
        read_all(stream)
    assert (caught.value.host, caught.value.result.exit_code) == ("gpu01", 127)
    stream.close()


def test_a_closed_transport_is_unreachable(transport: Transport) -> None:
    transport.close()
    with pytest.raises(Unreachable) as caught:
        transport.run(CAT)
    assert caught.value.host == "gpu01"


def test_every_command_is_one_line_of_the_log() -> None:
    lines: list[str] = []
    LocalTransport("gpu01", trace=lines.append).run(["printf", "a\nb c"])
    assert lines == ["gpu01\trun printf 'a\\nb c'"]


# --- what only real hosts can show


@pytest.fixture(params=["local", "ssh"])
def real(request: pytest.FixtureRequest, sshd: Sshd) -> Iterator[Transport]:
    hosts = SshHosts(sshd.spec())
    transport: Transport = (
        LocalTransport("gpu01") if request.param == "local" else hosts.connect(sshd.node())
    )
    yield transport
    transport.close()
    hosts.close()


def test_a_command_past_its_time_is_ended_over_there(real: Transport, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with pytest.raises(NotReady):
        real.run(["sh", "-c", f"echo $$ > {note}; exec sleep 600"], timeout=1.0)
    assert gone(int(note.read_text()))


def test_a_command_that_ignores_term_is_ended_too(real: Transport, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    stubborn = f"trap '' TERM; echo $$ > {note}; while :; do sleep 0.1; done"
    with pytest.raises(NotReady):
        real.run(["sh", "-c", stubborn], timeout=1.0)
    assert gone(int(note.read_text()))


def gone(pid: int) -> bool:
    """Waits for the process to be reaped: its parent needs a moment."""
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        threading.Event().wait(0.05)
    return False


def test_put_writes_whole_files_with_their_mode(real: Transport, tmp_path: Path) -> None:
    path = tmp_path / "a file"
    data = os.urandom(300_000)
    real.put(b"old", str(path))
    real.put(data, str(path), mode=0o600)
    assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["a file"]


def test_put_leaves_nothing_where_it_fails(real: Transport, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="cannot write"):
        real.put(b"data", str(tmp_path / "absent" / "file"))
    assert list(tmp_path.iterdir()) == []


def test_a_command_stream_is_duplex(real: Transport) -> None:
    stream = real.open_command(["tr", "a-z", "A-Z"])
    stream.sendall(b"hello")
    stream.shutdown_write()
    assert read_all(stream) == b"HELLO"
    stream.close()


def test_stream_shows_lines_before_the_command_ends(real: Transport, tmp_path: Path) -> None:
    """The command waits for a file that only its own first line makes us write."""
    go = tmp_path / "go"
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        go.touch()

    script = f"echo first; while [ ! -e {go} ]; do sleep 0.05; done; echo second >&2"
    assert real.stream(["sh", "-c", script], on_line, timeout=30) == 0
    assert lines == ["first", "second"]
