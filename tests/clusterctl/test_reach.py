"""Whether hosts reach each other: what they are asked, what they say, and the choice it makes."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from clusterctl import cluster
from clusterctl.doctor.check import Finding
from clusterctl.errors import ClusterctlError, PreflightFailed
from clusterctl.events import Event
from clusterctl.network import Chosen, ChosenAddress
from clusterctl.reach import Answer, Reached, Target, choose, parse, peers, script, targets
from clusterctl.spec import ClusterSpec, NodeSpec, RaySpec
from tests.clusterctl.hosts import Bed, spec_of

NAMES = ("gpu01", "gpu02", "gpu03")
SPEC = spec_of(*NAMES)
FREE = Answer(tcp=1, said="Connection refused")
SILENT = Answer(tcp=124)
NO_ROUTE = Answer(tcp=1, ping=1, said="No route to host")
NO_TOOLS = Answer()
PING_FIX = "install bash and coreutils on the host: /dev/tcp and timeout are what tries"


def ray_fix(port: int, peer: str, host: str, setting: str) -> str:
    return (
        f"let TCP {port} pass the firewalls of {peer} and {host}, "
        f"or choose another port: ray: {{{setting}: ...}}"
    )


def on(network: str, interface: str, reason: str) -> Chosen:
    """gpu01 is .11, gpu02 is .12, gpu03 is .13 of the network."""
    start = network.removesuffix("0/24")
    return {
        f"gpu0{i}": ChosenAddress(f"{start}{10 + i}", interface, reason, network) for i in (1, 2, 3)
    }


FAST = on("10.0.1.0/24", "ib0", "10.0.1.0/24 is the fastest shared subnet (200 Gbit/s)")
SLOW = on("10.0.0.0/24", "eth0", "10.0.0.0/24 is another subnet that all nodes share")


def answers(
    *candidates: Chosen, spec: ClusterSpec = SPEC, **odd: Mapping[str, Answer]
) -> dict[str, dict[Target, Answer]]:
    """Every way is free, but for `odd`: by host, by `ADDRESS:PORT`."""
    asked = targets(spec, candidates)
    for host, ways in odd.items():
        assert set(ways) <= {f"{t.address}:{t.port}" for t in asked[host]}
    return {
        host: {t: odd.get(host, {}).get(f"{t.address}:{t.port}", FREE) for t in tried}
        for host, tried in asked.items()
    }


# What a host is asked


def tried(*ways: str) -> tuple[Target, ...]:
    """`ADDRESS:PORT PORT...` -> its targets."""
    return tuple(
        Target(way.split(":")[0], int(port)) for way in ways for port in way.split(":")[1].split()
    )


def test_a_host_tries_its_peers_on_every_candidate_and_rays_ports_there() -> None:
    asked = targets(SPEC, [FAST, SLOW])
    assert asked["gpu01"] == tried(
        *("10.0.1.12:22", "10.0.1.13:22", "10.0.1.12:6380 6381", "10.0.1.13:6380 6381"),
        *("10.0.0.12:22", "10.0.0.13:22", "10.0.0.12:6380 6381", "10.0.0.13:6380 6381"),
    )
    assert asked["gpu02"] == tried(
        *("10.0.1.13:22", "10.0.1.11:22 6379 6385", "10.0.1.13:6380 6381", "10.0.1.11:6380 6381"),
        *("10.0.0.13:22", "10.0.0.11:22 6379 6385", "10.0.0.13:6380 6381", "10.0.0.11:6380 6381"),
    )


def test_ports_are_those_of_the_spec_and_an_address_is_tried_once() -> None:
    nodes = (NodeSpec("gpu01", "gpu01", port=2201), NodeSpec("gpu02", "gpu02"))
    ray = RaySpec(7000, 7001, 7002, supervisor_port=7003)
    spec = replace(SPEC, nodes=nodes, ray=ray)
    assert targets(spec, [FAST, FAST])["gpu02"] == tried("10.0.1.11:2201 7000 7003 7001 7002")


def test_up_to_32_hosts_every_pair_is_tried() -> None:
    names = [f"n{i}" for i in range(32)]
    spec = spec_of(*names)
    assert all({*peers(spec, name), name} == set(names) for name in names)


def test_of_many_hosts_each_tries_the_head_and_the_next_eight() -> None:
    spec = spec_of(*(f"n{i}" for i in range(33)), head="n3")
    ring = [f"n{i}" for i in range(33)] * 2
    assert peers(spec, "n3") == tuple(ring[4:12])
    assert peers(spec, "n10") == (*ring[11:19], "n3")
    assert peers(spec, "n30") == tuple(ring[31:39])  # which the head is one of


def test_the_script_tries_all_at_once() -> None:
    text = script([Target("10.0.0.12", 22), Target("fd00::1", 6379)])
    assert text.endswith("}\n\nprobe 10.0.0.12 22 &\nprobe fd00::1 6379 &\nwait\n")


def run(tried: list[Target], tools: Path) -> dict[Target, Answer]:
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-s"],
        input=script(tried).encode(),
        env=environment,
        capture_output=True,
        check=True,
    )
    return parse(done.stdout.decode(), tried, host="gpu01")


def tool(directory: Path, name: str, exit_code: int) -> None:
    (directory / name).write_text(f"#!/bin/sh\nexit {exit_code}\n")
    (directory / name).chmod(0o755)


def test_the_script_tells_a_port_that_listens_from_one_that_refuses(tmp_path: Path) -> None:
    tool(tmp_path, "ping", 1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        open_port = listening.getsockname()[1]
        with socket.create_server(("127.0.0.1", 0)) as gone:
            closed_port = gone.getsockname()[1]
        tried = [Target("127.0.0.1", open_port), Target("127.0.0.1", closed_port)]
        assert run(tried, tmp_path) == {
            tried[0]: Answer(tcp=0),
            tried[1]: Answer(tcp=1, said="Connection refused"),
        }


@pytest.mark.parametrize(("ping", "reached"), [(0, True), (1, False)])
def test_the_script_pings_where_nothing_answers(tmp_path: Path, ping: int, reached: bool) -> None:
    tool(tmp_path, "timeout", 124)
    tool(tmp_path, "ping", ping)
    target = Target("127.0.0.1", 22)
    answer = run([target], tmp_path)[target]
    assert answer == Answer(tcp=124, ping=ping)
    assert answer.reached is reached


# What a host says


def test_answers_are_read_from_between_other_lines() -> None:
    text = """Welcome to gpu02
@@clusterctl reach 10.0.0.11 22 0 - \n\
@@clusterctl reach 10.0.0.13 22 124 1 \n\
@@clusterctl reach fd00::1 6379 1 - No route to host
@@clusterctl reach 10.0.0.14 22 - - \n"""
    assert parse(text, [Target("10.0.0.11", 22)], host="gpu02") == {
        Target("10.0.0.11", 22): Answer(tcp=0),
        Target("10.0.0.13", 22): Answer(tcp=124, ping=1),
        Target("fd00::1", 6379): Answer(tcp=1, said="No route to host"),
        Target("10.0.0.14", 22): Answer(),
    }


def test_an_answer_that_leaves_a_target_out_is_no_answer() -> None:
    text = "@@clusterctl reach 10.0.0.11 22 0 - "
    with pytest.raises(ClusterctlError) as caught:
        parse(text, [Target("10.0.0.11", 22), Target("10.0.0.13", 22)], host="gpu02")
    assert caught.value.message == "it did not say whether it reaches 10.0.0.13 port 22"
    assert caught.value.host == "gpu02"


@pytest.mark.parametrize(
    ("answer", "reached", "tcp_free"),
    [
        (Answer(tcp=0), True, True),
        (FREE, True, True),
        (Answer(tcp=124, ping=0), True, False),
        (SILENT, False, False),
        (Answer(tcp=143), False, False),
        (NO_ROUTE, False, False),
        (Answer(ping=0), True, None),
        (Answer(ping=1), False, None),
        (Answer(ping=2), None, None),
        (NO_TOOLS, None, None),
        # a bash that was built without /dev/tcp
        (Answer(tcp=1, said="No such file or directory"), None, None),
    ],
)
def test_what_an_answer_proves(answer: Answer, reached: bool | None, tcp_free: bool | None) -> None:
    assert (answer.reached, answer.tcp_free) == (reached, tcp_free)


# The choice


def test_the_first_candidate_is_taken_where_all_reach_all() -> None:
    assert choose(SPEC, [FAST, SLOW], answers(FAST, SLOW)) == Reached(FAST)


def test_a_candidate_with_one_gap_is_passed_over_and_the_reason_says_so() -> None:
    said = answers(FAST, SLOW, gpu02={"10.0.1.13:22": SILENT})
    reached = choose(SPEC, [FAST, SLOW], said)
    assert {name: one.address for name, one in reached.chosen.items()} == {
        "gpu01": "10.0.0.11",
        "gpu02": "10.0.0.12",
        "gpu03": "10.0.0.13",
    }
    gap = "10.0.1.0/24 (ib0): gpu02 cannot reach 10.0.1.13 (gpu03): no answer within 4 s"
    assert {one.reason for one in reached.chosen.values()} == {
        f"10.0.0.0/24 is another subnet that all nodes share; passed over {gap}"
    }
    fix = "repair that network, or name the one to use: network: {subnet: ...}"
    assert reached.findings == (
        Finding("net.passed-over", None, None, "warn", f"passed over {gap}", fix=fix),
    )


def test_where_no_candidate_will_do_every_pair_is_named() -> None:
    said = answers(
        FAST,
        SLOW,
        gpu01={"10.0.1.13:22": NO_ROUTE},
        gpu02={"10.0.1.13:22": NO_ROUTE, "10.0.0.11:22": SILENT},
        gpu03={"10.0.1.12:22": SILENT},
    )
    with pytest.raises(PreflightFailed) as caught:
        choose(SPEC, [FAST, SLOW], said)
    assert caught.value.exit_code == 4
    assert caught.value.message == (
        "the hosts do not reach each other:\n"
        "  10.0.1.0/24 (ib0): gpu01, gpu02 cannot reach 10.0.1.13 (gpu03): No route to host; "
        "gpu03 cannot reach 10.0.1.12 (gpu02): no answer within 4 s\n"
        "  10.0.0.0/24 (eth0): gpu02 cannot reach 10.0.0.11 (gpu01): no answer within 4 s"
    )
    assert caught.value.hint == (
        "open the firewalls between them for the cluster's network, or name another network: "
        "network: {subnet: ...} or network: {interface: ...}"
    )


def test_routed_nodes_are_named_by_all_their_networks() -> None:
    routed = {**FAST, "gpu03": replace(SLOW["gpu03"], interface="eth1")}
    with pytest.raises(PreflightFailed) as caught:
        choose(SPEC, [routed], answers(routed, gpu03={"10.0.1.11:22": SILENT}))
    assert caught.value.message.splitlines()[1] == (
        "  10.0.1.0/24, 10.0.0.0/24 (ib0, eth1): gpu03 cannot reach 10.0.1.11 (gpu01): "
        "no answer within 4 s"
    )


def test_a_way_that_could_not_be_tried_is_taken_and_never_called_ok() -> None:
    ways = {"10.0.1.11:22": NO_TOOLS, "10.0.1.13:22": NO_TOOLS, "10.0.1.11:6379": NO_TOOLS}
    reached = choose(SPEC, [FAST, SLOW], answers(FAST, SLOW, gpu02=ways))
    assert reached == Reached(
        FAST,
        (
            Finding(
                "net.reach",
                None,
                "gpu02",
                "unknown",
                "whether it reaches the others could not be tried",
                fix=PING_FIX,
            ),
        ),
    )


def test_a_ping_says_nothing_of_rays_port() -> None:
    pings = Answer(ping=0)
    ways = {"10.0.1.11:22": pings, "10.0.1.13:22": pings, "10.0.1.11:6379": pings}
    reached = choose(SPEC, [FAST], answers(FAST, gpu02=ways))
    assert [finding.message for finding in reached.findings] == [
        "whether it reaches Ray's ports on the others could not be tried"
    ]


def test_a_firewall_on_rays_port_is_named_for_each_worker_it_stops() -> None:
    dropped = {"10.0.1.11:6379": Answer(tcp=124, ping=0)}
    said = answers(FAST, SLOW, gpu02=dropped, gpu03={"10.0.1.11:6379": NO_ROUTE})
    assert choose(SPEC, [FAST, SLOW], said).findings == (
        Finding(
            "net.ray-port-blocked",
            "ray-gcs-unreachable",
            "gpu02",
            "fail",
            "cannot reach Ray's port 6379 on the head, 10.0.1.11 (gpu01): no answer within 4 s",
            fix=ray_fix(6379, "gpu01", "gpu02", "port"),
        ),
        Finding(
            "net.ray-port-blocked",
            "ray-gcs-unreachable",
            "gpu03",
            "fail",
            "cannot reach Ray's port 6379 on the head, 10.0.1.11 (gpu01): No route to host",
            fix=ray_fix(6379, "gpu01", "gpu03", "port"),
        ),
    )


def test_a_firewall_on_a_raylet_is_named_by_whoever_it_stops() -> None:
    said = answers(FAST, gpu01={"10.0.1.12:6380": SILENT})
    assert choose(SPEC, [FAST], said).findings == (
        Finding(
            "net.ray-port-blocked",
            "ray-port-blocked",
            "gpu01",
            "fail",
            "cannot reach Ray's port 6380 on 10.0.1.12 (gpu02): no answer within 4 s",
            fix=ray_fix(6380, "gpu02", "gpu01", "node_manager_port"),
        ),
    )


def test_a_ray_that_listens_there_already_is_no_obstacle() -> None:
    said = answers(FAST, gpu02={"10.0.1.11:6379": Answer(tcp=0)})
    assert choose(SPEC, [FAST], said).findings == ()


# In `up`


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path, *NAMES)


def planned(bed: Bed, spec: ClusterSpec = SPEC) -> tuple[list[str], list[Event]]:
    events: list[Event] = []
    plan = cluster.plan_up(bed.session(spec), events.append)
    return [node.expected.address for node in plan.nodes if node.expected], events


def trips(bed: Bed) -> list[int]:
    return [transport.ran.count(("sh", "-s")) for transport in bed.transports.values()]


def test_a_plan_takes_one_trip_more_to_each_host(bed: Bed) -> None:
    addresses, events = planned(bed)
    assert addresses == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert trips(bed) == [2, 2, 2]
    done = [event.message for event in events if (event.kind, event.step) == ("done", "network")]
    assert done == ["10.0.0.0/24 is the only subnet that all nodes share"]


def test_a_plan_for_one_host_tries_nothing(bed: Bed) -> None:
    assert planned(bed, spec_of("gpu01"))[0] == ["10.0.0.1"]
    assert trips(bed) == [1, 0, 0]


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("10.0.0.3", "gpu02 cannot reach 10.0.0.3 (gpu03): no answer within 4 s"),
        ("10.0.0.1 6379", "cannot reach Ray's port 6379 on the head, 10.0.0.1 (gpu01)"),
    ],
)
def test_a_plan_is_refused_where_a_way_is_blocked(bed: Bed, lost: str, said: str) -> None:
    bed.transports["gpu02"].unreached.add(lost)
    with pytest.raises(PreflightFailed) as caught:
        planned(bed)
    assert said in caught.value.message


def test_an_address_that_was_asked_for_is_tried_too(bed: Bed) -> None:
    nodes = tuple(
        NodeSpec(name, name, cluster_address=f"10.0.0.{i}") for i, name in enumerate(NAMES, 1)
    )
    bed.transports["gpu01"].unreached.add("10.0.0.2")
    with pytest.raises(PreflightFailed) as caught:
        planned(bed, replace(SPEC, nodes=nodes))
    assert "gpu01 cannot reach 10.0.0.2 (gpu02)" in caught.value.message
