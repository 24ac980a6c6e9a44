"""`doctor --deep` where a cluster stands: silent on healthy hosts, right about ranks and links."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from .bed import Cluster, brought_down
from .conftest import RunningTestbed

pytestmark = pytest.mark.full

STARTS_S = 120.0  # until a rank of the check is seen on a host

Finding = dict[str, Any]


@pytest.fixture(scope="module")
def cluster(testbed: RunningTestbed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(testbed, tmp_path_factory.mktemp("deep"), "deep", testbed.hosts[:3])
    made.write()
    with brought_down(made):
        made.ok("up")
        yield made


def findings(out: str) -> list[Finding]:
    found: list[Finding] = json.loads(out)["findings"]
    return found


def named(found: list[Finding]) -> list[tuple[str, str, str, str]]:
    return [(one["check"], one["cause"], one["host"], one["verdict"]) for one in found]


def test_a_healthy_cluster_gives_no_finding(cluster: Cluster) -> None:
    done = cluster.run("doctor", "--deep", "--tp", "3", "--strict", "--json")
    assert (done.returncode, findings(done.stdout)) == (0, [])


def test_a_rank_that_hangs_is_named_with_its_host(cluster: Cluster) -> None:
    struck = cluster.hosts[-1]
    with cluster.start("doctor", "--deep", "--json") as doctor:
        try:
            stop_a_rank(cluster.testbed, struck)
            out, _ = doctor.communicate(timeout=300)
        finally:
            doctor.kill()
            cluster.testbed.command("heal", struck)
    found = findings(out)
    assert named(found) == [("collective.whole", "rank-hung", struck, "fail")]
    assert found[0]["values"] == {"rank": "2"}
    assert "rank 2: did not answer and was killed" in found[0]["evidence"]["text"]
    assert doctor.returncode == 1


def stop_a_rank(testbed: RunningTestbed, host: str) -> None:
    """As soon as there is one."""
    deadline = time.monotonic() + STARTS_S
    while not testbed.ssh(host, "pgrep -f '[s]anity_rank' || true"):
        assert time.monotonic() < deadline, "no rank of the check was seen"
        time.sleep(0.2)
    testbed.command("fault", host, "rank-hung")


def test_a_slow_link_is_named_with_its_numbers(cluster: Cluster) -> None:
    struck = cluster.hosts[1]
    with cluster.testbed.fault(struck, "slow-link:20"):
        done = cluster.run("doctor", "--deep", "--json")
    found = findings(done.stdout)
    assert sorted(named(found)) == [
        ("collective.speed", "slow-link", struck, "warn"),
        ("net.pair-speed", "slow-link", struck, "warn"),
    ]
    (speed,) = (one for one in found if one["check"] == "collective.speed")
    assert float(speed["values"]["gbit"]) < 0.03
    assert speed["values"]["rate"] == "10 Gbit/s"


def test_a_node_that_ray_lost_is_named(cluster: Cluster) -> None:
    struck = cluster.hosts[-1]
    with cluster.testbed.fault(struck, "container-killed"):
        done = cluster.run("doctor", "--json")
    assert named(findings(done.stdout)) == [("ray.formed", "ray-node-died", struck, "fail")]
