"""The pure parts of dockerhost, and the ways to the socket over real and scripted transports."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from clusterctl.containers import ContainerFile
from clusterctl.dockerhost import DockerHost, archive
from clusterctl.dockerhost.dial import Dialer
from clusterctl.dockerhost.failures import (
    DockerUnavailable,
    ImageMissing,
    NameTaken,
    explain,
)
from clusterctl.dockerhost.frames import Demultiplexer
from clusterctl.dockerhost.pullmeter import PullMeter
from clusterctl.dockerhost.registry import NO_LOGIN, READ_CONFIG, host_login, registry_of
from clusterctl.errors import ClusterctlError, Unreachable
from clusterctl.runtime import PullProgress
from clusterctl.transport.local import LocalTransport
from clusterctl.transport.ssh import SshHosts
from tests.clusterctl import dockerd
from tests.clusterctl.sshd import Sshd, free_port, wait_for_port
from tests.fakes import Says, ScriptedTransport

SOCKET = "/var/run/docker.sock"
STDIO = ("docker", "--host", f"unix://{SOCKET}", "system", "dial-stdio")
SUDO_STDIO = ("sudo", "-n", *STDIO)


# --- frames


@pytest.mark.parametrize("cut", [1, 3, 8, 9, 1000])
def test_frames_are_taken_apart_however_they_are_cut(cut: int) -> None:
    wire = (
        b"\x01\0\0\0\0\0\0\x03one"
        b"\x02\0\0\0\0\0\0\x00"
        b"\x02\0\0\0\0\0\0\x05error"
        b"\x01\0\0\0\0\0\0\x04more"
    )
    out, err = bytearray(), bytearray()
    frames = Demultiplexer(out.extend, err.extend)
    for start in range(0, len(wire), cut):
        frames.feed(wire[start : start + cut])
    assert (bytes(out), bytes(err)) == (b"onemore", b"error")


# --- files


def test_a_packed_file_keeps_its_bytes_and_only_files_are_read() -> None:
    file = ContainerFile("/opt/a/secret", b"\x00\xff", 0o600)
    assert archive.only_file(archive.pack([file])) == b"\x00\xff"


# --- pulls


def layer(name: str, status: str, current: int = 0, total: int = 0) -> dict[str, object]:
    detail = {"current": current, "total": total} if total else {}
    return {"id": name, "status": status, "progressDetail": detail}


def test_a_pull_counts_the_bytes_of_all_layers() -> None:
    meter = PullMeter()
    events = [
        {"status": "Pulling from library/x", "id": "1"},
        layer("a", "Pulling fs layer"),
        layer("there", "Already exists"),
        layer("a", "Downloading", 10, 100),
        layer("b", "Downloading", 50, 50),
        layer("a", "Verifying Checksum"),
        layer("b", "Download complete"),
        layer("a", "Extracting", 5, 100),
        layer("a", "Pull complete"),
    ]
    seen = [meter.feed(event) for event in events]
    assert [(p.done, p.total) for p in seen] == [
        *[(0, 0)] * 3,
        (10, 100),
        (60, 150),
        *[(150, 150)] * 4,
    ]
    assert seen[-1] == PullProgress(150, 150, "Pull complete")


# --- failures


@pytest.mark.parametrize(
    ("text", "kind", "says", "hint"),
    [
        (
            "write /var/lib/docker/tmp/x: no space left on device",
            ClusterctlError,
            "the disk is full",
            "docker system df",
        ),
        (
            'could not select device driver "" with capabilities: [[gpu]]',
            ClusterctlError,
            "cannot hand out GPUs",
            "nvidia-ctk runtime configure",
        ),
        (
            'Conflict. The container name "/x" is already in use by container "abc".',
            NameTaken,
            "name is taken",
            "docker rm -f",
        ),
        ("manifest unknown: manifest unknown", ImageMissing, "no such image", "its tag"),
        (
            "pull access denied for x, repository does not exist or may require 'docker login'",
            ImageMissing,
            "did not let this host",
            "docker login",
        ),
        (
            'Get "http://10.0.0.1:5000/v2/": dial tcp 10.0.0.1:5000: connect: connection refused',
            ClusterctlError,
            "cannot reach the registry",
            "proxy",
        ),
        (
            'Get "https://r:5000/v2/": http: server gave HTTP response to HTTPS client',
            ClusterctlError,
            "plain HTTP",
            "insecure-registries",
        ),
        ("No such image: x:1", ImageMissing, "not on this host", "docker pull"),
        (
            'invalid mount config for type "bind": bind source path does not exist: /models',
            ClusterctlError,
            "not on this host",
            "mounts",
        ),
    ],
)
def test_refusals_are_explained_with_their_fix(
    text: str, kind: type[ClusterctlError], says: str, hint: str
) -> None:
    error = explain(text, "gpu01", "doing")
    assert type(error) is kind
    assert error.message.startswith("doing: ")
    assert says in error.message
    assert text in error.message
    assert hint in (error.hint or "")
    assert error.host == "gpu01"


def test_a_refusal_that_nobody_knows_stays_as_it_is() -> None:
    error = explain("something new", "gpu01", "doing")
    assert (error.message, error.hint) == ("doing: something new", None)


# --- the host's own registry login


def with_config(config: object, **replies: str) -> ScriptedTransport:
    helpers = {f"docker-credential-{name}": reply for name, reply in replies.items()}
    return ScriptedTransport("gpu01", {READ_CONFIG: json.dumps(config), **helpers})


def stored(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize(
    ("image", "registry"),
    [
        ("vllm/vllm-openai:v1", "https://index.docker.io/v1/"),
        ("docker.io/vllm/vllm-openai", "https://index.docker.io/v1/"),
        ("ghcr.io/a/b@sha256:00", "ghcr.io"),
        ("10.0.0.1:5000/a", "10.0.0.1:5000"),
    ],
)
def test_the_registry_of_an_image(image: str, registry: str) -> None:
    assert registry_of(image) == registry


def test_the_hosts_stored_login_is_used_for_its_registry_only() -> None:
    host = with_config({"auths": {"ghcr.io": stored("bob", "pa:ss")}})
    login = {"username": "bob", "password": "pa:ss", "serveraddress": "ghcr.io"}
    assert host_login(host, "ghcr.io/a/b:1") == login
    assert host_login(host, "quay.io/a/b:1") == NO_LOGIN


def test_docker_hub_is_found_by_its_old_name() -> None:
    host = with_config({"auths": {"https://index.docker.io/v1/": stored("bob", "x")}})
    assert host_login(host, "vllm/vllm-openai")["username"] == "bob"


def test_the_hosts_credential_helper_is_asked_on_the_host() -> None:
    answer = json.dumps({"Username": "<token>", "Secret": "t0ken"})
    host = with_config({"credHelpers": {"ghcr.io": "pass"}}, **{"pass": answer})
    expected = {"identitytoken": "t0ken", "serveraddress": "ghcr.io"}
    assert host_login(host, "ghcr.io/a/b") == expected


def test_a_host_without_a_docker_config_has_no_login() -> None:
    host = ScriptedTransport("gpu01", {READ_CONFIG: Says(exit_code=1)})
    assert host_login(host, "ghcr.io/a/b") == NO_LOGIN


# --- the ways to the socket


def tiny_engine(peer: socket.socket) -> None:
    """Answers every request of a connection as an Engine that has no containers."""
    heard = b""
    while data := peer.recv(65536):
        heard += data
        while b"\r\n\r\n" in heard:
            request, _, heard = heard.partition(b"\r\n\r\n")
            peer.sendall(answer(request.split()[0], request.split()[1].decode()))


def answer(method: bytes, path: str) -> bytes:
    body = b'{"ApiVersion": "1.41"}' if path == "/version" else b"[]"
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return head if method == b"HEAD" else head + body


def test_the_socket_is_used_where_it_is_open_and_calls_are_traced() -> None:
    lines: list[str] = []
    transport = ScriptedTransport("gpu01", sockets={SOCKET: tiny_engine})
    host = DockerHost(transport, trace=lines.append)
    assert host.containers({"clusterctl.cluster": ""}) == []
    assert transport.ran == []
    assert [line.split("?")[0] for line in lines] == [
        "gpu01\tdocker GET /version",
        "gpu01\tdocker GET /v1.41/containers/json",
    ]
    host.close()


class StdioTransport(ScriptedTransport):
    """Its commands in `engines` are the Engine; all others do as scripted."""

    engines: tuple[tuple[str, ...], ...] = ()

    def open_command(self, argv: tuple[str, ...]) -> object:  # type: ignore[override]
        if tuple(argv) in self.engines:
            self.ran.append(tuple(argv))
            self.sockets["stdio"] = tiny_engine
            return self.open_socket("stdio")
        return super().open_command(argv)


DENIED = Says(stderr="dial unix /var/run/docker.sock: connect: permission denied\n", exit_code=1)


def test_without_the_socket_the_docker_command_carries_the_calls() -> None:
    transport = StdioTransport("gpu01")
    transport.engines = (STDIO,)
    host = DockerHost(transport)  # type: ignore[arg-type]
    assert host.containers({}) == []
    assert transport.ran == [STDIO]
    host.close()


def test_sudo_comes_last_and_is_remembered() -> None:
    transport = StdioTransport("gpu01", {STDIO: DENIED})
    transport.engines = (SUDO_STDIO,)
    dial = Dialer(transport, SOCKET)  # type: ignore[arg-type]
    for stream in [dial(), dial()]:
        stream.close()
    assert transport.ran == [STDIO, SUDO_STDIO, SUDO_STDIO]


@pytest.mark.parametrize(
    ("plain", "sudo", "says", "hint"),
    [
        (
            DENIED,
            Says(stderr="sudo: a password is required\n", exit_code=1),
            "this login may not use Docker's socket",
            "usermod -aG docker",
        ),
        (
            Says(stderr="bash: line 1: docker: command not found\n", exit_code=127),
            Says(stderr="sudo: docker: command not found\n", exit_code=1),
            "there is no Docker on this host",
            "install Docker Engine",
        ),
        (
            Says(stderr="dial unix /var/run/docker.sock: connect: connection refused", exit_code=1),
            Says(stderr="dial unix /var/run/docker.sock: connect: connection refused", exit_code=1),
            "Docker does not answer",
            "systemctl start docker",
        ),
    ],
)
def test_when_no_way_leads_there_the_reason_is_named(
    plain: Says, sudo: Says, says: str, hint: str
) -> None:
    transport = ScriptedTransport("gpu01", {STDIO: plain, SUDO_STDIO: sudo})
    with pytest.raises(DockerUnavailable, match=says) as caught:
        DockerHost(transport).containers({})
    assert caught.value.host == "gpu01"
    assert hint in (caught.value.hint or "")


def test_a_lost_host_is_unreachable_not_a_docker_that_is_down() -> None:
    transport = ScriptedTransport("gpu01")
    transport.close()
    with pytest.raises(Unreachable):
        DockerHost(transport).containers({})


@pytest.fixture
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dockerd.Dockerd]:
    if not dockerd.can_run():
        pytest.skip("needs root and dockerd")
    engine = dockerd.Dockerd(tmp_path_factory.mktemp("dockerd")).start()
    engine.add_image()
    yield engine
    engine.stop()


def test_a_server_that_forwards_no_sockets_is_served_by_dial_stdio(
    engine: dockerd.Dockerd, tmp_path_factory: pytest.TempPathFactory
) -> None:
    server = Sshd(tmp_path_factory.mktemp("sshd"), "AllowStreamLocalForwarding no").start()
    hosts = SshHosts(server.spec())
    lines: list[str] = []
    try:
        transport = hosts.connect(server.node())
        host = DockerHost(transport, engine.socket, trace=lines.append)
        said = host.run_once(dockerd.IMAGE, ["cat", "/etc/passwd"])
        assert said.stdout.encode() == dockerd.PASSWD
        assert host.image_id("absent:1") is None
    finally:
        hosts.close()
        server.stop()


def test_an_engine_that_was_restarted_is_spoken_to_again(
    engine: dockerd.Dockerd, tmp_path_factory: pytest.TempPathFactory
) -> None:
    server = Sshd(tmp_path_factory.mktemp("sshd")).start()
    hosts = SshHosts(server.spec())
    try:
        host = DockerHost(hosts.connect(server.node()), engine.socket)
        before = host.image_id(dockerd.IMAGE)
        engine.stop()
        with pytest.raises(DockerUnavailable, match="does not answer"):
            host.image_id(dockerd.IMAGE)
        engine.start()
        assert host.image_id(dockerd.IMAGE) == before
    finally:
        hosts.close()
        server.stop()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    if shutil.which("docker-registry") is None:
        pytest.skip("needs docker-registry")
    port = free_port()
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/images}}}}\n"
        f"http: {{addr: 127.0.0.1:{port}}}\n"
    )
    process = subprocess.Popen(
        ["docker-registry", "serve", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_port(port)
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait()


def test_an_image_is_pulled_with_progress_from_a_real_registry(
    engine: dockerd.Dockerd, registry: str
) -> None:
    name = f"{registry}/team/tiny:1"
    engine.docker("tag", dockerd.IMAGE, name).check_returncode()
    engine.docker("push", name).check_returncode()
    engine.docker("rmi", name, dockerd.IMAGE).check_returncode()
    host = DockerHost(LocalTransport("gpu01"), engine.socket)
    seen: list[PullProgress] = []
    assert host.pull(name, seen.append) == host.image_id(name)
    assert seen[-1].done == seen[-1].total > 100_000
    with pytest.raises(ImageMissing, match="no such image") as caught:
        host.pull(f"{registry}/team/tiny:2", seen.append)
    assert caught.value.host == "gpu01"
    host.close()
