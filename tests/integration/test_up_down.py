"""Three real hosts: up, look, up again, break, down. In this order; each test leaves a cluster that
the next can use."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .bed import Cluster, brought_down
from .conftest import RunningTestbed

# Everything that changes a host through Docker. `exec` runs a probe and changes nothing.
WRITING = re.compile(
    r"\tdocker (PUT|DELETE|POST) (?!\S*/containers/\w+/exec(\s|$))(?!\S*/exec/\w+/(start|resize))"
)


@pytest.fixture(scope="module")
def before() -> dict[str, Any]:
    """What was on the hosts before the cluster; filled by the first fixture that uses them."""
    return {}


@pytest.fixture(scope="module")
def cluster(
    testbed: RunningTestbed, tmp_path_factory: pytest.TempPathFactory, before: dict[str, Any]
) -> Iterator[Cluster]:
    made = Cluster(testbed, tmp_path_factory.mktemp("updown"), "updown", testbed.hosts[:3])
    made.write()
    before.update(made.snapshots())
    with brought_down(made):
        made.ok("up")
        yield made


def test_three_nodes_are_verified(cluster: Cluster) -> None:
    status = cluster.status()
    addresses = cluster.testbed.addresses
    assert status["verified"] is True
    assert status["nodes"] == [
        {
            "name": host,
            "address": addresses[host],
            "role": "head" if index == 0 else "worker",
            "state": "ready",
            "devices_expected": 1,
            "devices_seen": 1,
            "detail": "",
        }
        for index, host in enumerate(cluster.hosts)
    ]
    assert cluster.run("status").returncode == 0


def test_a_second_up_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    identities = cluster.identities()
    trace = tmp_path / "trace"
    said = json.loads(cluster.ok("up", "--json", INFERCLUSTER_TRACE=str(trace)))
    assert [node["action"] for node in said["nodes"]] == ["keep", "keep", "keep"]
    assert cluster.identities() == identities
    calls = trace.read_text().splitlines()
    assert any("\tdocker GET" in call for call in calls)
    assert [call for call in calls if WRITING.search(call)] == []


def test_the_printed_line_makes_the_same_container(cluster: Cluster) -> None:
    plan = json.loads(cluster.ok("up", "--dry-run", "--json"))
    for node in plan["nodes"]:
        host, words = node["name"], shlex.split(node["command"])
        made = cluster.inspect(host)
        renamed = ["pasted" if word == cluster.container(host) else word for word in words]
        cluster.testbed.ssh(host, shlex.join(renamed))
        try:
            pasted = cluster.inspect(host, "pasted")
        finally:
            cluster.testbed.ssh(host, "docker rm --force pasted")
        assert comparable(pasted) == comparable(made)


def comparable(inspected: dict[str, Any]) -> dict[str, Any]:
    """Config and HostConfig. Docker's command line sends the environment in no fixed order."""
    config = {**inspected["Config"], "Env": sorted(inspected["Config"]["Env"])}
    return {"Config": config, "HostConfig": inspected["HostConfig"]}


def test_exec_logs_and_ray_status(cluster: Cluster) -> None:
    head, worker = cluster.hosts[0], cluster.hosts[1]
    assert "cpu_slot" in cluster.ok("exec", head, "--", "ray", "status")
    address = cluster.testbed.addresses[worker]
    assert cluster.ok("exec", worker, "--", "printenv", "VLLM_HOST_IP") == f"{address}\n"
    assert cluster.run("exec", worker, "--", "sh", "-c", "exit 7").returncode == 7
    hostnames = cluster.ok("exec", "*", "--", "hostname").splitlines()
    assert sorted(hostnames) == [f"{host} | {host}" for host in cluster.hosts]
    logs = cluster.ok("logs", "--tail", "3", "--hosts", worker).splitlines()
    assert logs
    assert all(line.startswith(f"{worker} | ") for line in logs)


def test_a_client_without_the_token_is_refused(cluster: Cluster) -> None:
    head = cluster.hosts[0]
    code = "import ray; ray.init(address='auto', log_to_driver=False); print(ray.nodes())"
    with_token = cluster.run("exec", head, "--", "python3", "-c", code)
    assert with_token.returncode == 0, with_token.stdout
    bare = ["env", "-u", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE=disabled"]
    without = cluster.run("exec", head, "--", *bare, "python3", "-c", code)
    assert without.returncode != 0


def test_secrets_are_in_no_argv_and_no_inspect(cluster: Cluster) -> None:
    head = cluster.hosts[0]
    token = cluster.testbed.ssh(head, f"cat /var/lib/clusterctl/{cluster.name}/ray_token").strip()
    assert re.fullmatch("[0-9a-f]{64}", token)
    for host in cluster.hosts:
        assert token not in json.dumps(cluster.inspect(host))
        assert token not in cluster.testbed.ssh(host, "ps -eo args")


def test_a_stopped_container_is_seen_and_up_starts_it_again(cluster: Cluster) -> None:
    last = cluster.hosts[2]
    others = {host: one for host, one in cluster.identities().items() if host != last}
    cluster.testbed.ssh(last, f"docker stop {cluster.container(last)}")
    status = cluster.status()
    assert status["verified"] is False
    assert cluster.states()[last] == "failed"
    assert cluster.run("status").returncode == 5
    plan = json.loads(cluster.ok("up", "--json"))
    assert [node["action"] for node in plan["nodes"]] == ["keep", "keep", "start"]
    assert cluster.status()["verified"] is True
    assert {h: one for h, one in cluster.identities().items() if h != last} == others


def test_a_link_that_is_down_is_seen(cluster: Cluster) -> None:
    last = cluster.hosts[2]
    with cluster.testbed.fault(last, "link-down"):
        done = cluster.run("status", "--json")
        status = json.loads(done.stdout)
    assert status["verified"] is False
    assert {node["name"]: node["state"] for node in status["nodes"]}[last] == "unreachable"
    assert done.returncode == 3


def test_a_node_that_left_the_file_is_removed(cluster: Cluster) -> None:
    cluster.ok("up", "--no-sanity")  # after the link: all three again
    cluster.write(hosts=list(cluster.hosts[:2]))
    plan = json.loads(cluster.ok("up", "--no-sanity", "--json"))
    assert [(node["name"], node["action"]) for node in plan["nodes"]] == [
        (cluster.hosts[0], "keep"),
        (cluster.hosts[1], "keep"),
        (cluster.hosts[2], "remove"),
    ]
    left = cluster.testbed.ssh(cluster.hosts[2], "docker ps --all --quiet")
    assert left == ""
    assert cluster.status()["verified"] is None  # the check was skipped for what runs now
    cluster.write()


def test_down_leaves_nothing(cluster: Cluster, before: dict[str, Any]) -> None:
    said = cluster.ok("down", "--purge")
    assert "none left, ports free" in said
    assert cluster.snapshots() == before
