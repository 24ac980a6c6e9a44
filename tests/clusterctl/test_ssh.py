"""What only SSH has: host keys, logins, jump hosts, limits and losses, against a real sshd."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clusterctl.errors import ClusterctlError, NotReady, Unreachable
from clusterctl.fanout import Done, fan_out
from clusterctl.spec import NodeSpec, SshSpec
from clusterctl.transport import ssh, sshchannel
from clusterctl.transport.base import SocketRefused
from clusterctl.transport.ssh import SshHosts, SshTransport
from tests.clusterctl.sshd import Sshd, free_port, make_key, public

MakeSshd = Callable[..., Sshd]


@pytest.fixture
def make_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeSshd]:
    servers: list[Sshd] = []

    def make(*options: str, **more: str) -> Sshd:
        servers.append(Sshd(tmp_path_factory.mktemp("sshd"), *options, **more).start())
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def sshd(make_sshd: MakeSshd) -> Sshd:
    return make_sshd()


@pytest.fixture
def connect() -> Iterator[Callable[..., SshTransport]]:
    """Connects a node, and closes everything in the end."""
    opened: list[SshHosts] = []

    def call(spec: SshSpec, node: NodeSpec, **more: float) -> SshTransport:
        opened.append(SshHosts(spec, **more))  # type: ignore[arg-type]
        return opened[-1].connect(node)

    yield call
    for hosts in opened:
        hosts.close()


Connect = Callable[..., SshTransport]


def refused(connect: Connect, spec: SshSpec, node: NodeSpec, **more: float) -> Unreachable:
    with pytest.raises(Unreachable) as caught:
        connect(spec, node, **more)
    assert caught.value.host == node.name
    return caught.value


def says_hello(transport: SshTransport) -> bool:
    return transport.run(["echo", "hello"]).stdout == "hello\n"


# --- host keys


def test_an_unknown_host_key_is_refused_with_the_command_that_adds_it(
    sshd: Sshd, connect: Connect
) -> None:
    spec = sshd.spec(known="")
    error = refused(connect, spec, sshd.node())
    assert f"the host key of 127.0.0.1:{sshd.port} is not known" in error.message
    scan = f"ssh-keyscan -p {sshd.port} 127.0.0.1 >> {spec.known_hosts}"
    assert scan in (error.hint or "")
    subprocess.run(scan, shell=True, check=True, capture_output=True)
    assert says_hello(connect(spec, sshd.node()))


def test_new_keys_are_accepted_and_remembered_when_asked_for(sshd: Sshd, connect: Connect) -> None:
    spec = sshd.spec(known="", accept_new_host_keys=True)
    assert says_hello(connect(spec, sshd.node()))
    assert spec.known_hosts is not None
    assert Path(spec.known_hosts).read_text() == sshd.known_hosts_line()
    assert says_hello(connect(replace(spec, accept_new_host_keys=False), sshd.node()))


def test_a_changed_key_is_never_accepted(sshd: Sshd, connect: Connect, tmp_path: Path) -> None:
    other = public(make_key(tmp_path / "other"))
    spec = sshd.spec(known=f"[127.0.0.1]:{sshd.port} {other}\n", accept_new_host_keys=True)
    error = refused(connect, spec, sshd.node())
    assert "HAS CHANGED" in error.message
    assert f"{spec.known_hosts}:1" in error.message
    remove = f"ssh-keygen -R '[127.0.0.1]:{sshd.port}' -f {spec.known_hosts}"
    assert remove in (error.hint or "")
    subprocess.run(remove, shell=True, check=True, capture_output=True)
    assert says_hello(connect(spec, sshd.node()))


def test_a_revoked_key_is_refused_even_where_it_is_known(sshd: Sshd, connect: Connect) -> None:
    known = sshd.known_hosts_line() + f"@revoked * {public(sshd.host_key)}\n"
    assert "is revoked by" in refused(connect, sshd.spec(known), sshd.node()).message


def test_a_host_known_by_certificate_only_is_named_as_such(sshd: Sshd, connect: Connect) -> None:
    known = f"@cert-authority * {public(sshd.host_key)}\n"
    error = refused(connect, sshd.spec(known), sshd.node())
    assert "@cert-authority" in error.message
    assert "ssh-keyscan" in (error.hint or "")


def test_one_bad_line_does_not_lose_the_file(sshd: Sshd, connect: Connect) -> None:
    known = "@cert-authority *.corp broken\n\x00\xff junk\n" + sshd.known_hosts_line()
    assert says_hello(connect(sshd.spec(known), sshd.node()))


def test_the_key_on_record_is_asked_for(make_sshd: MakeSshd, connect: Connect) -> None:
    """The server has two; we know the one that would not have been chosen."""
    sshd = make_sshd("HostKey ~/nowhere")
    rsa = make_key(sshd.directory / "rsa_key", kind="rsa")
    sshd.stop()
    config = sshd.directory / "sshd_config"
    config.write_text(config.read_text().replace("~/nowhere", str(rsa)))
    sshd.start()
    spec = sshd.spec(known=f"[127.0.0.1]:{sshd.port} {public(rsa)}\n")
    assert says_hello(connect(spec, sshd.node()))


def test_a_host_key_alias_is_what_known_hosts_is_asked_for(sshd: Sshd, connect: Connect) -> None:
    config = "Host gpu01\n  HostName 127.0.0.1\n  HostKeyAlias the-gpu\n"
    node = sshd.node(address="gpu01")
    spec = sshd.spec(known=f"the-gpu {public(sshd.host_key)}\n", config=config)
    assert says_hello(connect(spec, node))
    spec = sshd.spec(known="", config=config)
    error = refused(connect, spec, node)
    subprocess.run((error.hint or "").split("`")[1], shell=True, check=True, capture_output=True)
    assert says_hello(connect(spec, node))


# --- logging in


def test_a_refused_login_names_user_address_and_keys(
    sshd: Sshd, connect: Connect, tmp_path: Path
) -> None:
    stranger = make_key(tmp_path / "stranger")
    node = replace(sshd.node(), identity=str(stranger))
    error = refused(connect, sshd.spec(), node)
    assert f"{sshd.user}@127.0.0.1:{sshd.port} refused the login" in error.message
    assert f"keys tried: {stranger};" in error.message
    assert "the server takes: publickey" in error.message


def test_a_key_with_a_passphrase_is_named_as_such(
    sshd: Sshd, connect: Connect, tmp_path: Path
) -> None:
    locked = make_key(tmp_path / "locked", passphrase="secret")
    error = refused(connect, sshd.spec(), replace(sshd.node(), identity=str(locked)))
    assert f"{locked} (has a passphrase and is not in the agent)" in error.message


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """An ssh-agent of our own; call it to add a key."""
    path = str(tmp_path / "agent")
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    monkeypatch.setenv("SSH_AUTH_SOCK", path)

    def add(key: Path) -> None:
        subprocess.run(["ssh-add", "-q", key], check=True, capture_output=True)

    while not os.path.exists(path):
        assert process.poll() is None
    yield add
    process.terminate()
    process.wait()


def test_a_key_of_the_agent_logs_in(
    sshd: Sshd, connect: Connect, agent: Callable[[Path], None], tmp_path: Path
) -> None:
    agent(make_key(tmp_path / "stranger"))
    agent(sshd.identity)
    config = f"IdentityFile {tmp_path}/absent\n"
    assert says_hello(connect(sshd.spec(config=config), replace(sshd.node(), identity=None)))


def test_identities_only_keeps_the_agents_other_keys_out(
    sshd: Sshd, connect: Connect, agent: Callable[[Path], None], tmp_path: Path
) -> None:
    agent(sshd.identity)
    named = make_key(tmp_path / "named")
    agent(named)
    spec = sshd.spec(config=f"IdentityFile {named}\nIdentitiesOnly yes\n")
    error = refused(connect, spec, replace(sshd.node(), identity=None))
    assert "keys tried: agent:named;" in error.message


def test_too_many_keys_end_in_one_clear_error(
    make_sshd: MakeSshd, connect: Connect, agent: Callable[[Path], None], tmp_path: Path
) -> None:
    sshd = make_sshd("MaxAuthTries 2")
    for number in range(4):
        agent(make_key(tmp_path / f"key{number}"))
    error = refused(connect, sshd.spec(), replace(sshd.node(), identity=None))
    assert "agent:key0, agent:key1" in error.message
    assert "MaxAuthTries" in error.message


# --- the road there


def test_a_port_where_nothing_listens(sshd: Sshd, connect: Connect) -> None:
    port = free_port()
    error = refused(connect, sshd.spec(), replace(sshd.node(), port=port))
    assert error.message == f"nothing listens at 127.0.0.1:{port}"
    assert "systemctl start ssh" in (error.hint or "")


def test_a_name_that_does_not_resolve(sshd: Sshd, connect: Connect) -> None:
    error = refused(connect, sshd.spec(), sshd.node(address="no-such-host.invalid"))
    assert "no-such-host.invalid" in error.message


def test_a_host_that_accepts_and_says_nothing(sshd: Sshd, connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        node = replace(sshd.node(), port=silent.getsockname()[1])
        error = refused(connect, sshd.spec(), node, connect_timeout=0.5)
    assert "did not complete the SSH handshake" in error.message


def test_a_jump_host_is_connected_once_for_all(make_sshd: MakeSshd) -> None:
    jump, inner = make_sshd(), make_sshd()
    known = jump.known_hosts_line() + inner.known_hosts_line()
    config = (
        f"Host bastion\n  HostName 127.0.0.1\n  Port {jump.port}\n  IdentityFile {jump.identity}\n"
        "Host gpu*\n  HostName 127.0.0.1\n  ProxyJump bastion\n"
    )
    hosts = SshHosts(inner.spec(known, config))
    names = [f"gpu{n}" for n in range(4)]
    try:
        outcomes = fan_out(
            names, lambda name: hosts.connect(inner.node(name, address=name)), limit=4
        )
        assert all(isinstance(o, Done) and says_hello(o.value) for o in outcomes.values())
        assert len(jump.connections()) == 1
        assert len(inner.connections()) == 4
    finally:
        hosts.close()


def test_a_jump_host_that_fails_is_named(sshd: Sshd, connect: Connect) -> None:
    config = f"Host gpu01\n  ProxyJump 127.0.0.1:{free_port()}\n"
    error = refused(connect, sshd.spec(config=config), sshd.node(address="gpu01"))
    assert error.message.startswith("jump host [127.0.0.1]:")
    assert "nothing listens" in error.message


def test_a_jump_host_that_cannot_reach_the_host_says_so(sshd: Sshd, connect: Connect) -> None:
    config = (
        f"IdentityFile {sshd.identity}\n"
        f"Host gpu01\n  HostName 127.0.0.1\n  ProxyJump {sshd.user}@127.0.0.1:{sshd.port}\n"
    )
    node = replace(sshd.node(address="gpu01"), port=free_port())
    error = refused(connect, sshd.spec(config=config), node)
    assert f"cannot reach 127.0.0.1:{node.port}" in error.message


def test_a_proxy_command_carries_the_connection(sshd: Sshd, connect: Connect) -> None:
    config = (
        f"Host far\n  ProxyCommand ssh -F {sshd.directory}/inner -W 127.0.0.1:{sshd.port} hop\n"
    )
    (sshd.directory / "inner").write_text(
        f"Host hop\n  HostName 127.0.0.1\n  Port {sshd.port}\n  IdentityFile {sshd.identity}\n"
        f"  UserKnownHostsFile {sshd.directory}/known_hosts\n"
    )
    known = sshd.known_hosts_line() + sshd.known_hosts_line("far")
    assert says_hello(connect(sshd.spec(known, config), sshd.node(address="far")))


def test_connections_that_sshd_drops_are_tried_again(make_sshd: MakeSshd) -> None:
    """sshd takes one login at a time and drops every other one meanwhile."""
    sshd = make_sshd("MaxStartups 1:100:1")
    hosts = SshHosts(sshd.spec())
    names = [f"n{n}" for n in range(4)]
    try:
        outcomes = fan_out(names, lambda name: hosts.connect(sshd.node(name)), limit=4)
        assert [name for name, o in outcomes.items() if isinstance(o, Done)] == names
    finally:
        hosts.close()
    assert "beginning MaxStartups throttling" in sshd.log()


# --- limits and losses


@pytest.mark.parametrize("most", [10, 2])
def test_no_more_sessions_than_sshd_takes(make_sshd: MakeSshd, connect: Connect, most: int) -> None:
    """With MaxSessions at its default and below, thirty commands at once all end well."""
    sshd = make_sshd(f"MaxSessions {most}")
    transport = connect(sshd.spec(), sshd.node())
    outcomes = fan_out(
        [str(n) for n in range(30)],
        lambda name: transport.run(["sh", "-c", f"echo {name}"]).stdout,
        limit=30,
    )
    assert outcomes == {str(n): Done(str(n), f"{n}\n") for n in range(30)}


def test_an_eof_that_crosses_sshds_close_does_not_end_the_connection(
    sshd: Sshd, connect: Connect
) -> None:
    """One thread has made its EOF and not yet sent it when the command ends."""
    transport = connect(sshd.spec(), sshd.node())
    stream: Any = transport.open_command(["sleep", "0.2"])
    channel = stream._channel
    eof = channel._send_eof()
    while not channel.closed:
        time.sleep(0.01)
    channel.transport._send_user_message(eof)
    stream.close()
    assert says_hello(transport)


def test_waiting_for_a_session_has_an_end(sshd: Sshd, connect: Connect) -> None:
    transport = connect(sshd.spec(), sshd.node())
    busy = [transport.open_command(["cat"]) for _ in range(sshchannel.SESSIONS_AT_ONCE)]
    with pytest.raises(NotReady, match="8 commands are running"):
        transport.run(["true"], timeout=0.2)
    busy[0].close()
    assert says_hello(transport)


def test_a_server_that_takes_no_session_says_so(
    make_sshd: MakeSshd, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sshchannel, "REFUSED_FOR_S", 0.2)
    sshd = make_sshd("MaxSessions 0")
    transport = connect(sshd.spec(), sshd.node())
    with pytest.raises(ClusterctlError, match="refused a session") as caught:
        transport.run(["true"])
    assert "MaxSessions" in (caught.value.hint or "")


def test_a_connection_lost_during_a_command(sshd: Sshd, connect: Connect) -> None:
    transport = connect(sshd.spec(), sshd.node())

    def cut(_: str) -> None:
        sshd.signal_connections(signal.SIGKILL)

    with pytest.raises(Unreachable, match="lost during sh") as caught:
        transport.stream(["sh", "-c", "echo ready; sleep 60"], cut, timeout=30)
    assert caught.value.host == "gpu01"
    with pytest.raises(Unreachable):
        transport.run(["true"])


def test_a_host_that_falls_silent_is_lost_not_waited_for(
    sshd: Sshd, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "KEEPALIVE_S", 0.05)
    monkeypatch.setattr(ssh, "SILENCE_S", 0.5)
    transport = connect(sshd.spec(), sshd.node())
    stopped = threading.Event()

    def freeze(_: str) -> None:
        sshd.signal_connections(signal.SIGSTOP)
        stopped.set()

    try:
        with pytest.raises(Unreachable, match="lost"):
            transport.stream(["sh", "-c", "echo ready; sleep 60"], freeze)
    finally:
        sshd.signal_connections(signal.SIGCONT)
    assert stopped.is_set()


def test_a_quiet_host_that_answers_is_kept(
    sshd: Sshd, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many pings go by while a command says nothing."""
    monkeypatch.setattr(ssh, "KEEPALIVE_S", 0.01)
    transport = connect(sshd.spec(), sshd.node())
    assert transport.run(["sh", "-c", "sleep 0.5; echo still"]).stdout == "still\n"


def test_sockets_do_not_count_as_sessions(sshd: Sshd, connect: Connect, tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(64)
        transport = connect(sshd.spec(), sshd.node())
        streams = [transport.open_socket(path) for _ in range(25)]
        assert says_hello(transport)
        for stream in streams:
            stream.close()


def test_a_server_that_forwards_no_sockets_refuses_them(
    make_sshd: MakeSshd, connect: Connect, tmp_path: Path
) -> None:
    sshd = make_sshd("AllowStreamLocalForwarding no")
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        transport = connect(sshd.spec(), sshd.node())
        with pytest.raises(SocketRefused) as caught:
            transport.open_socket(path)
    assert path in caught.value.message
