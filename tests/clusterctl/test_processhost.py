"""Nodes as processes of this machine: what a container promises, without Docker."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clusterctl.containers import ContainerFile, ContainerSpec
from clusterctl.errors import ClusterctlError, CommandFailed, ConfigError
from clusterctl.launch import LOCAL_PORTS
from clusterctl.localspec import choose_ports, local_spec
from clusterctl.processhost import ProcessHost, environment, is_marked, marked, process_line
from clusterctl.raycluster import pinned_ports
from clusterctl.spec import DevicesSpec, NodeSpec
from tests.clusterctl.hosts import spec_of

NODE = NodeSpec("node1", "localhost", cluster_address="127.0.0.2")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")


def spec(*command: str) -> ContainerSpec:
    return ContainerSpec(
        name="clusterctl-local-node1",
        image="python:3",
        command=command,
        env={"GREETING": "hello"},
        labels={"clusterctl.cluster": "local", "clusterctl.node": "node1"},
    )


@pytest.fixture
def host(tmp_path: Path) -> Iterator[ProcessHost]:
    host = ProcessHost(NODE, tmp_path)
    yield host
    for container in host.containers({}):
        host.remove(container.id)


def eventually(seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def started(host: ProcessHost, *command: str) -> str:
    container_id = host.create(spec(*command))
    host.start(container_id)
    return container_id


def test_created_started_ended_removed(host: ProcessHost, tmp_path: Path) -> None:
    container_id = host.create(spec("sh", "-c", "echo $GREETING; exit 3"))
    assert [one.state for one in host.containers({"clusterctl.cluster": ""})] == ["created"]
    assert host.containers({"clusterctl.cluster": "other"}) == []
    host.start(container_id)
    eventually(lambda: host.containers({})[0].state == "exited")
    (seen,) = host.containers({})
    assert (seen.exit_code, seen.image, seen.name) == (3, "python:3", "clusterctl-local-node1")
    assert list(host.logs(container_id)) == ["hello"]
    host.remove(container_id)
    assert list(tmp_path.iterdir()) == []


def test_it_outlives_the_one_who_started_it_and_keeps_its_exit_code(
    host: ProcessHost, tmp_path: Path
) -> None:
    container_id = started(host, "sh", "-c", "echo up; exec sleep 600")
    other = ProcessHost(NODE, tmp_path)
    eventually(lambda: list(other.logs(container_id)) == ["up"])
    (seen,) = other.containers({})
    assert (seen.id, seen.state) == (container_id, "running")
    other.stop(container_id)
    (ended,) = other.containers({})
    assert (ended.state, ended.exit_code) == ("exited", 143)


def test_a_second_node_in_the_directory_is_refused(host: ProcessHost) -> None:
    started(host, "sleep", "600")
    with pytest.raises(ClusterctlError, match="holds a node already"):
        host.create(spec("true"))


def test_stop_ends_what_left_its_process_group(host: ProcessHost, tmp_path: Path) -> None:
    script = "setsid sleep 600 & echo $! > child; trap '' TERM; sleep 600; sleep 600"
    container_id = started(host, "sh", "-c", script)
    eventually(lambda: (tmp_path / "node1/child").exists())
    scratch = host.exec(container_id, ["sh", "-c", "echo $RAY_TMPDIR"]).stdout.strip()
    eventually(lambda: len(marked(scratch)) >= 3)
    host.stop(container_id, timeout=0.3)
    assert marked(scratch) == []


def test_files_and_commands(host: ProcessHost) -> None:
    container_id = started(host, "sleep", "600")
    path = f"{host.home}/secrets/ray_token"
    host.put_files(container_id, [ContainerFile(path, b"secret", 0o600)])
    assert host.read_file(container_id, path) == b"secret"
    assert host.read_file(container_id, path + "x") is None
    assert os.stat(path).st_mode & 0o777 == 0o600
    said = host.exec(
        container_id, ["sh", "-c", "cat; echo $GREETING $K"], stdin=b"in ", env={"K": "v"}
    )
    assert said.stdout == "in hello v\n"
    with pytest.raises(CommandFailed):
        host.exec(container_id, ["sh", "-c", "exit 7"])
    lines: list[str] = []
    assert host.exec_stream(container_id, ["sh", "-c", "echo a; echo b; exit 4"], lines.append) == 4
    assert lines == ["a", "b"]
    assert host.inspect(container_id)["Config"] == {
        "Image": "python:3",
        "Entrypoint": ["sleep"],
        "Cmd": ["600"],
        "Env": ["GREETING=hello"],
        "Labels": {"clusterctl.cluster": "local", "clusterctl.node": "node1"},
    }


def test_followed_logs_end_with_the_node(host: ProcessHost) -> None:
    container_id = started(host, "sh", "-c", "echo one; sleep 0.3; echo two")
    assert list(host.logs(container_id, follow=True)) == ["one", "two"]
    assert list(host.logs(container_id, tail=1)) == ["two"]


def test_a_command_that_is_not_there(host: ProcessHost) -> None:
    assert host.run_once("any", ["no-such-command"]).exit_code == 127


def test_this_python_comes_first_and_no_other_ray_is_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    made = environment({"A": "1"}, "/tmp/cc-x")
    assert made["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert "RAY_ADDRESS" not in made
    assert (made["A"], made["RAY_TMPDIR"]) == ("1", "/tmp/cc-x")


def test_a_process_is_known_by_its_mark_not_by_its_id() -> None:
    assert not is_marked(os.getpid(), "/tmp/cc-other")


def test_the_line_that_a_dry_run_shows() -> None:
    assert process_line(spec("ray", "start")) == "env GREETING=hello ray start"


# --- the spec of `up --local` --------------------------------------------------------------------


def test_local_nodes_have_addresses_of_their_own() -> None:
    made = local_spec("local", None, 2, None)
    assert [(node.name, node.cluster_address) for node in made.nodes] == [
        ("node1", "127.0.0.2"),
        ("node2", "127.0.0.3"),
    ]
    assert (made.runtime, made.head, made.devices) == ("process", "node1", DevicesSpec("cpu", 1))


def test_a_known_cluster_keeps_its_ports_and_its_size() -> None:
    known = local_spec("local", None, 2, DevicesSpec("cpu", 3))
    assert local_spec("local", known, None, None) == known
    with pytest.raises(ConfigError, match="not a local one"):
        local_spec("test", spec_of("gpu01"), None, None)


def test_ports_are_free_in_a_row_and_distinct() -> None:
    taken = {26400, 26470}
    ray = choose_ports(2, lambda port: port not in taken, client=True)
    ports = pinned_ports(ray, "head")
    assert len(set(ports.values())) == len(ports)
    first, last = min(ports.values()), ray.max_worker_port + LOCAL_PORTS
    assert not taken & set(range(first, last + 1))
    assert choose_ports(1, lambda _: True, client=False).client_server_port == 10001
    with pytest.raises(ConfigError, match="free ports"):
        choose_ports(1, lambda _: False, client=False)
