"""The testbed's hosts are hosts: separate, restarted, broken and healed on command."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from .conftest import RunningTestbed

PATIENCE_S = 60


@pytest.fixture
def host(testbed: RunningTestbed) -> str:
    """The last one: the one whose absence disturbs others least."""
    return testbed.hosts[-1]


def test_each_host_has_a_name_an_address_and_a_docker_of_its_own(testbed: RunningTestbed) -> None:
    seen = {name: testbed.ssh(name, "hostname; docker info -f '{{.ID}}'") for name in testbed.hosts}
    names = {name: text.split()[0] for name, text in seen.items()}
    assert names == {name: name for name in testbed.hosts}
    assert len({text.split()[1] for text in seen.values()}) == len(testbed.hosts)


def test_a_host_sees_its_own_interfaces_only(testbed: RunningTestbed, host: str) -> None:
    assert testbed.ssh(host, "ls /sys/class/net").split() == ["eth0", "lo"]
    assert testbed.addresses[host] in testbed.ssh(host, "ip -br address show eth0")


def test_files_written_on_one_host_stay_there(testbed: RunningTestbed, host: str) -> None:
    paths = [f"{place}/{uuid4().hex}" for place in ("/root", "/etc", "/var/lib", "/tmp", "/run")]
    testbed.ssh(host, f"touch {' '.join(paths)}")
    try:
        for path in paths:
            testbed.ssh(testbed.hosts[0], f"test ! -e {path}")
            assert not Path(path).exists()
    finally:
        testbed.ssh(host, f"rm {' '.join(paths)}")


def test_all_hosts_see_the_models_and_none_may_write_there(testbed: RunningTestbed) -> None:
    for name in testbed.hosts:
        assert "ro" in testbed.ssh(name, "findmnt -no OPTIONS /models").strip().split(",")


def test_who_may_speak_to_docker(testbed: RunningTestbed, host: str) -> None:
    testbed.ssh(host, "docker ps", user="op")
    with pytest.raises(AssertionError, match="permission denied"):
        testbed.ssh(host, "docker ps", user="sudoer")
    testbed.ssh(host, "sudo -n docker ps", user="sudoer")


def test_the_node_image_carries_what_a_node_needs_and_nothing_of_ours(
    testbed: RunningTestbed, host: str
) -> None:
    program = (
        "import importlib.util as u, json, ray, torch, transformers, fastapi, uvicorn;"
        "print(json.dumps([ray.__version__, torch.__version__, "
        "[m for m in ('clusterctl', 'engine') if u.find_spec(m)]]))"
    )
    text = testbed.ssh(host, f'docker run --rm {testbed.image} python3 -c "{program}"')
    ray, torch, ours = json.loads(text.splitlines()[-1])
    assert (ray, torch.partition("+")[0], ours) == ("2.60.0", "2.13.0", [])


@pytest.mark.parametrize("service", ["sshd", "docker"])
def test_a_killed_service_comes_back(testbed: RunningTestbed, host: str, service: str) -> None:
    before = _pid(testbed, host, service)
    testbed.ssh(host, f"kill -9 {before}")
    wait(lambda: _pid(testbed, host, service) not in ("", before))
    wait(lambda: answers(testbed, host, "docker ps"))


def test_link_down(testbed: RunningTestbed, host: str) -> None:
    with testbed.fault(host, "link-down"):
        assert not reaches(testbed.addresses[host], 22)
    assert answers(testbed, host, "test $(cat /sys/class/net/eth0/carrier) = 1")


def test_port_blocked(testbed: RunningTestbed, host: str) -> None:
    with testbed.fault(host, "port-blocked:22"):
        assert not reaches(testbed.addresses[host], 22)
    assert reaches(testbed.addresses[host], 22)


def test_dockerd_stopped(testbed: RunningTestbed, host: str) -> None:
    with testbed.fault(host, "dockerd-stopped"):
        assert not answers(testbed, host, "docker ps")
    assert answers(testbed, host, "docker ps")


def test_sshd_stopped(testbed: RunningTestbed, host: str) -> None:
    with testbed.fault(host, "sshd-stopped"):
        assert not reaches(testbed.addresses[host], 22)
    assert reaches(testbed.addresses[host], 22)


def test_container_killed(testbed: RunningTestbed, host: str) -> None:
    name = _start_container(testbed, host)
    running = f"test $(docker inspect -f '{{{{.State.Running}}}}' {name}) = true"
    try:
        with testbed.fault(host, "container-killed"):
            assert not answers(testbed, host, running)
        assert answers(testbed, host, running)
    finally:
        testbed.ssh(host, f"docker rm -f {name}")


def test_image_missing(testbed: RunningTestbed, host: str) -> None:
    pull = f"docker pull -q {testbed.empty_image}"
    testbed.ssh(host, pull)
    with testbed.fault(host, "image-missing"):
        assert not answers(testbed, host, f"docker image inspect {testbed.empty_image}")
        with pytest.raises(AssertionError, match="connection refused"):
            testbed.ssh(host, pull)
    assert answers(testbed, host, pull)


def test_a_snapshot_shows_what_was_left_and_nothing_else(
    testbed: RunningTestbed, host: str
) -> None:
    testbed.ssh(host, f"docker pull -q {testbed.empty_image}")
    before = testbed.snapshot(host)
    name = _start_container(testbed, host)
    testbed.ssh(host, "echo kept > /root/left; setsid sleep 1234 >/dev/null 2>&1 &")
    between = testbed.snapshot(host)
    testbed.ssh(host, f"docker rm -f {name}; rm /root/left; kill $(pgrep -x sleep)")
    changed = {part for part in before if before[part] != between[part]}
    assert {"processes", "containers", "files"} <= changed
    assert "/root/left" in between["files"]
    assert testbed.snapshot(host) == before


def test_an_unknown_fault_lists_those_that_exist(testbed: RunningTestbed, host: str) -> None:
    with pytest.raises(AssertionError, match="link-down"):
        testbed.command("fault", host, "earthquake")


def _start_container(testbed: RunningTestbed, host: str) -> str:
    name = f"clusterctl-test-{uuid4().hex[:8]}"
    what = f"--label clusterctl.cluster=test --network host --init {testbed.empty_image}"
    testbed.ssh(host, f"docker run -d --name {name} {what} busybox sleep 1000")
    return name


def _pid(testbed: RunningTestbed, host: str, service: str) -> str:
    try:
        return testbed.ssh(host, f"cat /run/{service}.pid").strip()
    except AssertionError:
        return ""


def answers(testbed: RunningTestbed, host: str, command: str) -> bool:
    try:
        testbed.ssh(host, command)
    except AssertionError:
        return False
    return True


def reaches(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=2).close()
    except OSError:
        return False
    return True


def wait(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"not so within {PATIENCE_S} s"
        time.sleep(0.2)
