"""`ray start` lines, and Formation out of what Ray and Docker say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from clusterctl.raycluster import (
    ExpectedNode,
    Formation,
    RayNode,
    RayReport,
    form,
    parse_report,
    pinned_ports,
    ray_start_argv,
    version_tuple,
    waiting_for,
    with_versions,
)
from clusterctl.runtime import SeenContainer
from clusterctl.spec import RaySpec

HEAD = ExpectedNode("gpu01", "10.0.0.1", "head", "gpu", 8)
WORKER = ExpectedNode("gpu02", "10.0.0.2", "worker", "gpu", 8)
THIRD = ExpectedNode("gpu03", "10.0.0.3", "worker", "gpu", 8)
ALL = (HEAD, WORKER, THIRD)
BOOTS = {node.name: "b1" for node in ALL}


def container(state: str = "running", exit_code: int | None = None) -> SeenContainer:
    return SeenContainer("id", "name", "img", "sha", {}, state, "t", exit_code)  # type: ignore[arg-type]


def ray(node: ExpectedNode, **changes: object) -> RayNode:
    seen = RayNode(
        "n-" + node.name, node.address, True, node.devices, cpu_slots=0, name=f"{node.name}-b1"
    )
    return replace(seen, **changes)  # type: ignore[arg-type]


def formed(
    *nodes: RayNode,
    expected: tuple[ExpectedNode, ...] = ALL,
    containers: dict[str, SeenContainer] | None = None,
    unreachable: dict[str, str] | None = None,
    last_lines: dict[str, str] | None = None,
) -> Formation:
    running = {node.name: container() for node in expected}
    seen = running if containers is None else {**running, **containers}
    return form(expected, RayReport(nodes), seen, BOOTS, unreachable or {}, last_lines or {})


def test_the_head_line() -> None:
    assert " ".join(ray_start_argv(HEAD, HEAD.address, RaySpec())) == (
        "ray start --head --port=6379 --dashboard-host=127.0.0.1 --dashboard-port=8265"
        " --node-ip-address=10.0.0.1 --node-name=gpu01-{boot}"
        " --node-manager-port=6380 --object-manager-port=6381"
        " --runtime-env-agent-port=6382 --dashboard-agent-grpc-port=6383"
        " --dashboard-agent-listen-port=52365 --metrics-export-port=6384"
        " --min-worker-port=10002 --max-worker-port=10999 --num-gpus=8"
        " --disable-usage-stats --block"
    )


def test_a_worker_line_with_cpu_slots() -> None:
    node = ExpectedNode("gpu02", "10.0.0.2", "worker", "cpu", 3)
    argv = ray_start_argv(node, "10.0.0.1", RaySpec(object_store_memory=10**9))
    assert argv[:4] == (
        "ray",
        "start",
        "--address=10.0.0.1:6379",
        "--node-ip-address=10.0.0.2",
    )
    assert argv[-5:] == (
        "--num-gpus=0",
        '--resources={"cpu_slot": 3}',
        "--object-store-memory=1000000000",
        "--disable-usage-stats",
        "--block",
    )


def test_the_client_server_port_is_said_only_where_it_is_not_rays_own() -> None:
    argv = ray_start_argv(HEAD, HEAD.address, RaySpec(client_server_port=20001))
    assert "--ray-client-server-port=20001" in argv


def test_ports_of_the_head_and_of_a_worker() -> None:
    head, worker = pinned_ports(RaySpec(), "head"), pinned_ports(RaySpec(), "worker")
    assert set(head.items()) - set(worker.items()) == {
        ("GCS", 6379),
        ("dashboard", 8265),
        ("client server", 10001),
        ("supervisor", 6385),
    }


def test_a_line_of_the_probe() -> None:
    line = json.dumps(
        {
            "nodes": [
                {
                    "NodeID": "ab",
                    "Alive": True,
                    "NodeManagerAddress": "10.0.0.1",
                    "NodeManagerHostname": "h1",
                    "NodeName": "gpu01-b1",
                    "Resources": {"CPU": 64.0, "GPU": 8.0, "node:10.0.0.1": 1.0},
                },
                {"NodeID": "cd", "Alive": False, "NodeManagerAddress": "10.0.0.2", "Resources": {}},
            ]
        }
    )
    assert parse_report(line).nodes == (
        RayNode("ab", "10.0.0.1", True, gpus=8, cpu_slots=0, hostname="h1", name="gpu01-b1"),
        RayNode("cd", "10.0.0.2", False, gpus=0, cpu_slots=0),
    )


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('{"error": "ConnectionError: no"}', "ConnectionError: no"),
        ("Traceback (most recent call last):", "Traceback (most recent call last):"),
        ("[]", "[]"),
    ],
)
def test_anything_else_is_no_answer(line: str, error: str) -> None:
    assert parse_report(line) == RayReport(None, error)


def test_complete_when_every_node_is_there_with_its_devices() -> None:
    formation = formed(*map(ray, ALL))
    assert formation.complete
    assert waiting_for(formation) == "3/3 nodes"


def test_dead_entries_of_a_node_that_came_back_do_not_count() -> None:
    assert formed(*map(ray, ALL), ray(WORKER, node_id="old", alive=False)).complete


def test_a_container_that_ended_says_why() -> None:
    formation = formed(
        ray(HEAD),
        ray(WORKER),
        containers={"gpu03": container("exited", 127)},
        last_lines={"gpu03": "ray: not found"},
    )
    assert waiting_for(formation) == (
        "2/3 nodes; missing gpu03 10.0.0.3: container exited 127: ray: not found"
    )
    assert [node.name for node in formation.failed] == ["gpu03"]


def test_ray_may_be_the_last_to_know_that_a_node_is_gone() -> None:
    formation = formed(*map(ray, ALL), containers={"gpu02": container("exited", 137)})
    assert not formation.complete
    assert formation.nodes[1].detail == "container exited 137"


@pytest.mark.parametrize(
    ("nodes", "state", "detail"),
    [
        ([], "starting", "has not joined Ray"),
        ([ray(THIRD, alive=False)], "missing", "Ray calls it dead"),
        ([ray(THIRD, gpus=7)], "failed", "Ray shows 7 GPUs, 8 planned"),
        ([ray(THIRD, name="gpu03-b0")], "starting", "has not joined Ray"),
        (
            [ray(THIRD), ray(THIRD, node_id="old", name="gpu03-b0")],
            "starting",
            "Ray still counts an earlier life of it",
        ),
    ],
)
def test_a_node_that_is_not_as_planned(nodes: list[RayNode], state: str, detail: str) -> None:
    formation = formed(ray(HEAD), ray(WORKER), *nodes)
    assert (formation.nodes[2].state, formation.nodes[2].detail) == (state, detail)
    assert not formation.complete


def test_without_a_container_or_without_the_host() -> None:
    seen = {"gpu01": container(), "gpu02": container()}
    report = RayReport(tuple(map(ray, ALL)))
    formation = form(ALL, report, seen, BOOTS, {"gpu02": "no route to host"}, {})
    assert [node.state for node in formation.nodes] == ["ready", "unreachable", "missing"]
    assert waiting_for(formation) == (
        "1/3 nodes; unreachable gpu02 10.0.0.2: no route to host;"
        " missing gpu03 10.0.0.3: no container"
    )


def test_while_the_head_does_not_answer_all_wait_for_one_reason() -> None:
    report = RayReport(None, "Connection refused")
    formation = form((HEAD, WORKER), report, {n.name: container() for n in ALL}, {}, {}, {})
    assert waiting_for(formation) == (
        "0/2 nodes; missing gpu01 10.0.0.1, gpu02 10.0.0.2:"
        " Ray on the head does not answer yet: Connection refused"
    )


def test_a_stranger_in_the_cluster_is_named() -> None:
    stranger = RayNode("s", "10.0.0.9", True, gpus=1, cpu_slots=0, hostname="old-host")
    formation = formed(*map(ray, ALL), stranger)
    assert not formation.complete
    assert waiting_for(formation) == (
        "3/3 nodes; unexpected old-host 10.0.0.9: a Ray node that is not in the cluster's file"
    )


def test_versions_must_agree() -> None:
    odd = {node.address: ("2.60.0", "3.12.3") for node in ALL} | {"10.0.0.2": ("2.60.0", "3.12.9")}
    report = with_versions(RayReport(tuple(map(ray, ALL))), odd)
    formation = form(ALL, report, {node.name: container() for node in ALL}, BOOTS, {}, {})
    assert [node.state for node in formation.nodes] == ["ready", "failed", "ready"]
    assert formation.nodes[1].detail == (
        "Ray 2.60.0 on Python 3.12.9 where others run Ray 2.60.0 on Python 3.12.3"
    )


def test_an_empty_formation_is_not_complete() -> None:
    assert not Formation(()).complete


@pytest.mark.parametrize(
    ("text", "parsed"), [("2.52.0", (2, 52)), ("2.9.1", (2, 9)), ("3.0.0rc1", (3, 0))]
)
def test_versions_compare_as_numbers(text: str, parsed: tuple[int, int]) -> None:
    assert version_tuple(text) == parsed
