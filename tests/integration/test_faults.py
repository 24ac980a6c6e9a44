"""Each fault of a host while `up` runs: one message that names host, cause and fix, the documented
exit code, and nothing left behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .bed import Cluster
from .conftest import RunningTestbed


@dataclass(frozen=True)
class Case:
    """`says` and `fix` are parts of the message and of the hint."""

    fault: str
    exit_code: int
    code: str
    says: str
    fix: str


CASES = (
    Case("link-down", 3, "unreachable", "did not answer", "the host is down, or a firewall"),
    Case("sshd-stopped", 3, "unreachable", "nothing listens at", "systemctl start ssh"),
    Case("dockerd-stopped", 4, "preflight", "Docker does not answer", "systemctl start docker"),
    Case("image-missing", 4, "preflight", "pulling ", "Docker"),
    Case("port-blocked:6379", 4, "preflight", "cannot reach Ray's port 6379", "firewalls"),
)


@pytest.fixture
def cluster(testbed: RunningTestbed, tmp_path: Path) -> Iterator[Cluster]:
    """Two hosts: the fault strikes the second."""
    made = Cluster(testbed, tmp_path, "faulty", testbed.hosts[:2])
    made.write(limits={"formation_timeout": 60, "connect_timeout": 10})
    yield made
    made.ok("down", "--purge")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.fault)
def test_a_fault_at_up_time(cluster: Cluster, case: Case) -> None:
    struck = cluster.hosts[1]
    before = cluster.snapshots()
    with cluster.testbed.fault(struck, case.fault):
        exit_code, error, stderr = cluster.refused("up", "--no-sanity")
    assert (exit_code, error["code"]) == (case.exit_code, case.code), stderr
    assert struck in error["host"].split(", ")
    assert case.says in error["message"]
    assert error["hint"]
    assert case.fix in error["hint"]
    assert cluster.snapshots() == before


def test_a_node_whose_ray_ends_is_named_with_its_last_words(cluster: Cluster) -> None:
    head, struck = cluster.hosts
    before = cluster.snapshots()
    no_token = {"name": struck, "env": {"RAY_AUTH_TOKEN_PATH": "/nowhere"}}
    cluster.write(hosts=[head, no_token])
    exit_code, error, stderr = cluster.refused("up")
    assert (exit_code, error["code"], error["host"]) == (5, "not_ready", struck), stderr
    assert f"missing {struck} {cluster.testbed.addresses[struck]}: container" in error["message"]
    assert f"  {struck} | " in error["message"]
    assert f"{struck} | undo: warning: container {cluster.container(struck)} was removed" in stderr
    assert cluster.snapshots() == before


def test_interrupted_it_undoes_and_says_so(cluster: Cluster) -> None:
    before = cluster.snapshots()
    cluster.write()
    lines = []
    with cluster.start("up") as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if "formation" in line:
                break
        process.send_signal(signal.SIGINT)
        lines += process.stderr.readlines()
        assert process.wait(120) == 130
    undone = [line for line in lines if "was removed again" in line]
    assert len(undone) == len(cluster.hosts), "".join(lines)
    assert cluster.snapshots() == before


def test_a_killed_container_is_started_by_the_next_up(cluster: Cluster) -> None:
    struck = cluster.hosts[1]
    cluster.write()
    cluster.ok("up", "--no-sanity")
    cluster.testbed.command("fault", struck, "container-killed")
    assert cluster.states()[struck] == "failed"
    assert cluster.run("status").returncode == 5
    cluster.ok("up", "--no-sanity")
    assert cluster.states() == dict.fromkeys(cluster.hosts, "ready")


def test_an_image_without_ray_is_refused_before_anything_is_made(cluster: Cluster) -> None:
    before = cluster.snapshots()
    cluster.write(image=cluster.testbed.noray_image)
    exit_code, error, _ = cluster.refused("up")
    assert exit_code == 4
    assert "has no ray" in error["message"]
    assert set(cluster.hosts) == set(error["host"].split(", "))
    assert cluster.snapshots() == before


def test_a_port_that_is_taken_is_named(cluster: Cluster) -> None:
    head = cluster.hosts[0]
    socket = "LocalPort => 6379, Listen => 1, ReuseAddr => 1"
    listen = f"my $s = IO::Socket::INET->new({socket}) or die; sleep 600"
    perl = f"perl -MIO::Socket::INET -e '{listen}' </dev/null >/dev/null 2>&1 & echo $!; sleep 1"
    pid = cluster.testbed.ssh(head, perl).strip()
    try:
        exit_code, error, _ = cluster.refused("up")
    finally:
        cluster.testbed.ssh(head, f"kill {pid}")
    assert (exit_code, error["host"]) == (4, head)
    assert "6379 (GCS" in error["message"]
