"""Two clusters on the same hosts, and two deployments in one: what ends one leaves the other as it
was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .bed import Cluster, brought_down
from .conftest import RunningTestbed

KEY = {"INFERCLUSTER_API_KEY": "sk-side-by-side"}


@pytest.fixture(scope="module")
def first(testbed: RunningTestbed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(testbed, tmp_path_factory.mktemp("first"), "first", testbed.hosts[:2])
    made.write(devices="cpu:2")
    with brought_down(made):
        made.ok("up", "--no-sanity")
        yield made


@pytest.fixture
def second(first: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(first.testbed, tmp_path, "second", first.hosts)
    made.write()
    with brought_down(made):
        yield made


def test_a_second_cluster_finds_ports_of_its_own_and_goes_without_a_trace(
    first: Cluster, second: Cluster
) -> None:
    before = first.identities()
    code, error, _ = second.refused("up")
    assert code == 4
    assert "6379 (GCS" in error["message"]
    assert "--port-offset 1000" in error["hint"]
    second.write(ray={"port_offset": 1000})
    second.ok("up")
    assert first.identities() == before
    assert second.states() == first.states() == dict.fromkeys(first.hosts, "ready")
    live = json.loads(second.ok("ls", "--live", "--json"))["nodes"]
    assert {(one["host"], one["cluster"], one["state"]) for one in live} == {
        (host, name, "running") for host in first.hosts for name in ("first", "second")
    }
    assert "none left, ports free" in second.ok("down", "--purge")
    assert first.identities() == before
    assert first.states() == dict.fromkeys(first.hosts, "ready")
    for host in first.hosts:
        assert first.testbed.ssh(host, "ls /var/lib/clusterctl") == "first\n"
        assert (
            first.testbed.ssh(host, "docker ps -aq --filter label=clusterctl.cluster=second") == ""
        )


def deployed(cluster: Cluster) -> dict[str, dict[str, Any]]:
    every = json.loads(cluster.ok("ps", "--json", **KEY))["deployments"]
    return {one["name"]: one for one in every}


@pytest.mark.full
def test_two_deployments_share_the_slots_and_end_one_by_one(first: Cluster, smollm2: str) -> None:
    for name, port in (("one", "8000"), ("two", "8001")):
        first.ok("serve", smollm2, "--pp", "2", "--name", name, "--port", port, **KEY)
    seen = deployed(first)
    assert {name: one["state"] for name, one in seen.items()} == {"one": "ready", "two": "ready"}
    code, error, _ = first.refused("serve", smollm2, "--pp", "2", "--name", "three")
    assert (code, error["code"]) == (4, "preflight")
    first.ok("stop", "one", **KEY)
    after = deployed(first)
    assert after["one"]["state"] == "stopped"
    assert {key: after["two"][key] for key in ("state", "since", "restarts")} == {
        key: seen["two"][key] for key in ("state", "since", "restarts")
    }
    ranks = [[rank["pid"] for rank in one["two"]["ranks"]] for one in (seen, after)]
    assert ranks[0] == ranks[1]
    first.ok("stop", "two", **KEY)
