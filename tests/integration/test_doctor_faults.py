"""Every fault of the testbed is named by `doctor`, on the right host, and nothing else fails. The
run writes docs/doctor-faults.json, from which `make docs` makes the table of docs/doctor.md."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from .bed import COMMAND_S, Cluster, brought_down, hang_a_rank
from .conftest import MODEL, RunningTestbed

pytestmark = pytest.mark.full

ROWS = Path(__file__).parents[2] / "docs/doctor-faults.json"


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
    Case(f"model-truncated:{MODEL}/model.safetensors", ("model.complete", "model.equal")),
    Case(f"model-missing:{MODEL}", ("model.present",)),
)


@pytest.fixture(scope="module")
def cluster(
    testbed: RunningTestbed, smollm2: str, tmp_path_factory: pytest.TempPathFactory
) -> Cluster:
    made = Cluster(testbed, tmp_path_factory.mktemp("doctor"), "doctor", testbed.hosts[:3])
    made.write(limits={"connect_timeout": 10})
    for host in made.hosts:
        testbed.ssh(host, f"docker pull -q {testbed.image}")
    return made


def findings(cluster: Cluster) -> list[dict[str, str]]:
    done = cluster.run("doctor", "--deep", "--model", f"/models/{MODEL}", "--json")
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
def test_a_fault_is_named(cluster: Cluster, usual: set[tuple[str, str]], case: Case) -> None:
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
    record(case.fault, named[0], seconds, len(beside))
    assert beside == []


def test_a_rank_that_hangs_is_named(cluster: Cluster, usual: set[tuple[str, str]]) -> None:
    """Where the cluster is up, `--deep` lets its devices compute together."""
    struck = cluster.hosts[-1]
    with brought_down(cluster):
        cluster.ok("up", "--no-sanity")
        began = time.monotonic()
        with cluster.start("doctor", "--deep", "--json") as process:
            hang_a_rank(cluster.testbed, struck)
            out, err = process.communicate(timeout=COMMAND_S)
        seconds = time.monotonic() - began
    assert process.returncode == 1, err
    failed = [one for one in json.loads(out)["findings"] if one["verdict"] == "fail"]
    (named,) = [one for one in failed if one["check"] == "collective.whole"]
    assert (named["host"], named["cause"]) == (struck, "rank-hung")
    assert "rank 2" in named["message"]
    record("rank-hung", named, seconds, len(failed) - 1)
    assert failed == [named]


def record(fault: str, named: dict[str, str], seconds: float, beside: int) -> None:
    """Its row in the page's table; a part of the matrix renews its own rows alone."""
    rows = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    seen = {"found_by": named["check"], "verdict": named["verdict"], "seconds": round(seconds, 1)}
    rows[fault] = {**seen, "beside": beside, "date": time.strftime("%Y-%m-%d")}
    known = [*(case.fault for case in CASES), "rank-hung"]
    ordered = {fault: rows[fault] for fault in known if fault in rows}
    ROWS.write_text(json.dumps(ordered, indent=1) + "\n")
