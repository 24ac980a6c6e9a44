"""Every fault of the testbed is named by `doctor`, on the right host, and nothing else fails. The
run writes the table of docs/doctor-faults.md."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .bed import Cluster
from .conftest import RunningTestbed

pytestmark = pytest.mark.full

TABLE = Path(__file__).parents[2] / "docs/doctor-faults.md"
HEAD = """# What doctor finds on the testbed

Written by `make test-full` (`tests/integration/test_doctor_faults.py`) on {date}, three hosts of
`scripts/testbed` on one machine with {cpus} cores: each fault is inflicted on one host,
`clusterctl doctor --deep` is asked, the host is healed.
"Beside it" counts failures that name neither the fault nor what follows from it.

| fault | found by | verdict | seconds | beside it |
|---|---|---|---:|---:|
"""


@dataclass(frozen=True)
class Case:
    """`checks`: ids of which the first is the fault's own name and the others follow from it."""

    fault: str
    checks: tuple[str, ...]


CASES = (
    Case("link-down", ("ssh.reach",)),
    Case("sshd-stopped", ("ssh.reach",)),
    Case("dockerd-stopped", ("docker.answers",)),
    Case("docker-disk-full", ("docker.disk", "host.disk")),
    Case("port-blocked:6379", ("net.pair-tcp", "net.ray-port-blocked")),
    Case("return-ports-blocked", ("net.pair-tcp", "net.ray-port-blocked")),
    Case("loss:10", ("net.pair-loss",)),
    Case("large-lost", ("net.path-mtu",)),
    Case("mtu", ("net.path-mtu", "net.mtu-equal")),
    Case("slow-link:20", ("net.pair-speed",)),
    Case("hostname-loopback", ("net.hostname-loopback",)),
    Case("nic-twin", ("net.same-subnet",)),
    Case(
        "address-duplicate:gpu01",
        ("net.duplicate-address", "net.address-taken", "network.address", "net.address"),
    ),
    Case("clock-skewed:120", ("host.clock",)),
    Case("shm-small", ("host.shm",)),
    Case("image-differs", ("image.equal",)),
    Case("ray-skew", ("image.equal", "image.versions")),
    Case("ray-stray", ("ray.ports", "docker.stale")),
)


@dataclass(frozen=True)
class Row:
    case: Case
    found_by: str
    verdict: str
    seconds: float
    beside: int


@pytest.fixture(scope="module")
def cluster(testbed: RunningTestbed, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    made = Cluster(testbed, tmp_path_factory.mktemp("doctor"), "doctor", testbed.hosts[:3])
    made.write(limits={"connect_timeout": 10})
    for host in made.hosts:
        testbed.ssh(host, f"docker pull -q {testbed.image}")
    return made


@pytest.fixture(scope="module")
def rows() -> Iterator[list[Row]]:
    """Written when all cases were run: a part of them makes no table."""
    found: list[Row] = []
    yield found
    if len(found) == len(CASES):
        TABLE.write_text(table(found))


def findings(cluster: Cluster) -> list[dict[str, str]]:
    done = cluster.run("doctor", "--deep", "--json")
    assert done.returncode in (0, 1), done.stderr
    found: list[dict[str, str]] = json.loads(done.stdout)["findings"]
    return found


@pytest.fixture(scope="module")
def usual(cluster: Cluster) -> set[tuple[str, str]]:
    """What is said of the hosts as they are: warnings about this machine, by check and host."""
    found = findings(cluster)
    assert [one for one in found if one["verdict"] == "fail"] == []
    return {(one["check"], one["host"]) for one in found}


def test_three_healthy_hosts_fail_nothing(usual: set[tuple[str, str]]) -> None:
    assert len(usual) < 10


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.fault)
def test_a_fault_is_named(
    cluster: Cluster, rows: list[Row], usual: set[tuple[str, str]], case: Case
) -> None:
    struck = cluster.hosts[-1]
    with cluster.testbed.fault(struck, case.fault):
        began = time.monotonic()
        found = [one for one in findings(cluster) if (one["check"], one["host"]) not in usual]
        seconds = time.monotonic() - began
    named = sorted(
        (one for one in found if one["check"] in case.checks and one["verdict"] != "unknown"),
        key=lambda one: case.checks.index(one["check"]),
    )
    assert named, found
    assert all(one["fix"] for one in named), named
    places = " ".join(f"{one['host']} {one['message']}" for one in named)
    assert struck in places or struck in json.dumps(named)
    beside = [one for one in found if one["verdict"] == "fail" and one["check"] not in case.checks]
    rows.append(Row(case, named[0]["check"], named[0]["verdict"], seconds, len(beside)))
    assert beside == []


def table(rows: list[Row]) -> str:
    lines = [
        f"| `{row.case.fault}` | `{row.found_by}` | {row.verdict} "
        f"| {row.seconds:.1f} | {row.beside} |"
        for row in rows
    ]
    head = HEAD.format(date=time.strftime("%Y-%m-%d"), cpus=os.cpu_count())
    return head + "\n".join(lines) + "\n"
