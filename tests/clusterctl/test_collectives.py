"""What is said of collectives over all devices and over pairs of hosts, and of single GPUs. The
verdicts of GPUs are those recorded on two H100s, some with one figure changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterctl import collectives
from clusterctl.containers import LABEL_CLUSTER
from clusterctl.doctor.check import Finding, run_checks, troubles
from clusterctl.doctor.checks import DEEP_CHECKS
from clusterctl.doctor.collectives import COLLECTIVE_CHECKS, Collectives, HostLinks
from clusterctl.doctor.devicespeed import SPEED_CHECKS
from clusterctl.doctor.subject import Plan
from clusterctl.events import silent
from clusterctl.facts.types import Address, DockerContainer, HostFacts, Interface, RdmaPort
from clusterctl.sanityreport import RankVerdict, SanityReport, parse_verdicts
from engine.nccl_log import links as nccl_links
from tests.clusterctl.hosts import host_facts
from tests.clusterctl.localcluster import LocalCluster, cluster

__all__ = ["cluster"]

H100S = Path(__file__).parents[1] / "data/gpu/h100x2"
NAMES = ("gpu01", "gpu02", "gpu03")


def judged(seen: Collectives) -> list[Finding]:
    return list(run_checks((*COLLECTIVE_CHECKS, *SPEED_CHECKS), [seen]))


def bad(seen: Collectives) -> list[tuple[str | None, str | None, str | None, str]]:
    return [(one.check, one.cause, one.host, one.verdict) for one in troubles(judged(seen))]


def only(seen: Collectives) -> Finding:
    (found,) = troubles(judged(seen))
    return found


def rank(number: int, gbyte: float = 1.0, **more: Any) -> RankVerdict:
    return RankVerdict(number, "bandwidth", True, 0.1, gbyte, "", (), (), **more)


def through(*hosts: str, gbyte: float = 1.0, via: str = "") -> SanityReport:
    """One rank each; `via`: NCCL's transport of each way between them."""
    ways = tuple((a, (a + 1) % len(hosts), via) for a in range(len(hosts))) if via else ()
    verdicts = [rank(at, gbyte, links=ways if at == 0 else ()) for at in range(len(hosts))]
    return SanityReport(hosts, tuple(verdicts), {})


def broken(*hosts: str, at: int, detail: str = "no end after 15 s") -> SanityReport:
    failed = RankVerdict(at, "bandwidth", False, 15.0, None, detail, (), ())
    others = [rank(number) for number in range(len(hosts)) if number != at]
    return SanityReport(hosts, (*others, failed), {})


def three(**changed: SanityReport) -> Collectives:
    """Three hosts of 10 Gbit/s; `gpu01_gpu02=` is what that pair said."""
    pairs = {(a, b): changed.get(f"{a}_{b}", through(a, b)) for a, b in combinations(NAMES, 2)}
    links = {name: HostLinks(10.0) for name in NAMES}
    return Collectives(through(*NAMES), "", pairs, links)


def test_healthy_hosts_give_nothing() -> None:
    assert bad(three()) == []
    assert {one.check: one.verdict for one in judged(three())} == {
        "collective.whole": "ok",
        "collective.pairs": "ok",
        "collective.speed": "ok",
        "collective.transport": "skip",
        "gpu.matmul-speed": "skip",
        "gpu.memory-speed": "skip",
    }


def test_where_no_cluster_stands_every_check_says_so() -> None:
    said = judged(Collectives())
    assert {one.verdict for one in said} == {"skip"}
    assert {one.message for one in said} == {"no node of the cluster runs: clusterctl up"}


# --- does it work? -------------------------------------------------------------------------------


def test_a_rank_that_hangs_is_named_with_its_host_and_its_last_line() -> None:
    detail = "did not answer and was killed; its last line: loading libcuda"
    waiting = [
        RankVerdict(one, "gloo all_reduce", False, 9.0, None, "rank 2 did not come", (2,), ())
        for one in (0, 1)
    ]
    hung = RankVerdict(2, "start", False, 105.0, None, detail, (), ())
    found = only(replace(three(), whole=SanityReport(NAMES, (*waiting, hung), {})))
    assert (found.check, found.cause, found.host) == ("collective.whole", "rank-hung", "gpu03")
    assert found.values == {"rank": "2"}
    assert found.evidence is not None
    assert found.evidence.text == f"rank 2: {detail}"


def test_a_node_whose_launcher_is_lost_is_named() -> None:
    lost = SanityReport(NAMES, (rank(0), rank(2)), {"gpu02": "no answer within 120 s"})
    found = only(replace(three(), whole=lost))
    assert (found.host, found.cause) == ("gpu02", "ranks-never-started")
    assert found.evidence is not None


def test_what_keeps_it_from_being_started_is_a_failure() -> None:
    refused = Collectives(reason="x", refused=("image i cannot run the engine", "gpu02", "use..."))
    assert bad(refused) == [("collective.whole", None, "gpu02", "fail")]


def test_two_hosts_are_one_pair_and_a_failure_is_said_once() -> None:
    pair = broken("gpu01", "gpu02", at=1)
    seen = Collectives(pair, "", {("gpu01", "gpu02"): pair})
    assert [one[0] for one in bad(seen)] == ["collective.whole"]


def test_a_bad_host_is_told_from_a_bad_way_by_pairs() -> None:
    host = three(
        gpu01_gpu03=broken("gpu01", "gpu03", at=0), gpu02_gpu03=broken("gpu02", "gpu03", at=0)
    )
    assert bad(host) == [("collective.pairs", "mtu-mismatch", "gpu03", "fail")]
    way = three(gpu01_gpu02=broken("gpu01", "gpu02", at=1))
    assert bad(way) == [("collective.pairs", "mtu-mismatch", "gpu01", "fail")]
    assert only(way).values == {"from": "gpu01", "to": "gpu02"}


# --- how fast? -----------------------------------------------------------------------------------


def test_a_slow_host_is_named_with_the_numbers() -> None:
    seen = three(
        gpu01_gpu02=through("gpu01", "gpu02", gbyte=0.0026),
        gpu02_gpu03=through("gpu02", "gpu03", gbyte=0.0025),
    )
    found = only(seen)
    assert (found.check, found.cause, found.host) == ("collective.speed", "slow-link", "gpu02")
    assert found.message == (
        "all_reduce reaches 20.8 Mbit/s at most with every other host, over gloo; "
        "the link's rate: 10 Gbit/s"
    )


def test_what_is_being_served_keeps_speeds_from_being_judged() -> None:
    slow = through("gpu02", "gpu03", gbyte=0.0025)
    assert bad(replace(three(gpu02_gpu03=slow), busy="llama")) == []


@pytest.mark.parametrize(
    ("via", "gbyte", "verdicts"),
    [
        ("NET/IB/GDRDMA", 40.0, []),  # 320 of 400 Gbit/s
        ("NET/IB/GDRDMA", 20.0, ["collective.speed"]),
        ("NET/IB", 20.0, []),  # through host memory
        ("NET/AWS Libfabric/GDRDMA", 10.0, ["collective.speed"]),
    ],
)
def test_rdma_links_are_held_against_the_rate_of_their_ports(
    via: str, gbyte: float, verdicts: list[str]
) -> None:
    pair = through("gpu01", "gpu02", gbyte=gbyte, via=via)
    links = {name: HostLinks(1.0, (400.0, 400.0)) for name in NAMES}
    seen = Collectives(pair, "", {("gpu01", "gpu02"): pair}, links)
    assert [one.check for one in troubles(judged(seen))] == verdicts


def test_each_device_fills_one_port() -> None:
    links = HostLinks(25.0, (400.0, None, 200.0))
    assert links.rate("NET/IB/GDRDMA", 1) == 400.0
    assert links.rate("NET/IB/GDRDMA", 8) == 600.0
    assert links.rate("NET/Socket", 8) == 25.0
    assert HostLinks().rate("NET/IB/GDRDMA", 8) is None


# --- by which way? -------------------------------------------------------------------------------


def recorded(log: str) -> tuple[tuple[int, int, str], ...]:
    text = (H100S / f"nccl-{log}.log").read_text()
    return nccl_links(text)


def one_host(log: str, plan: Plan) -> Collectives:
    verdicts = (rank(0, 200.0, links=recorded(log)), rank(1, 200.0))
    return Collectives(SanityReport(("gpu01", "gpu01"), verdicts, {}), "", plans=[plan])


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ("p2p", []),
        ("shm", [("collective.transport", "nccl-p2p-unsupported", None, "warn")]),
        ("socket", [("collective.transport", "nccl-p2p-unsupported", None, "warn")]),
    ],
)
def test_recorded_ways_between_two_h100s(log: str, found: list[Any]) -> None:
    assert bad(one_host(log, Plan(2, 1, "as asked"))) == found
    assert bad(one_host(log, Plan(1, 2, "as asked"))) == []


def two_hosts(via: str, *plans: Plan, rdma: Sequence[float] = ()) -> Collectives:
    """Two GPUs each."""
    hosts = ("gpu01", "gpu01", "gpu02", "gpu02")
    ways = ((0, 1, "P2P/CUMEM"), (1, 2, via), (2, 3, "P2P/CUMEM"), (3, 0, via))
    verdicts = (rank(0, 40.0, links=ways), *(rank(number, 40.0) for number in (1, 2, 3)))
    links = {name: HostLinks(100.0, tuple(rdma)) for name in ("gpu01", "gpu02")}
    return Collectives(SanityReport(hosts, verdicts, {}), "", {}, links, plans)


TP4, TP2PP2 = Plan(4, 1, "as asked"), Plan(2, 2, "served as llama")


@pytest.mark.parametrize(
    ("via", "plan", "rdma", "verdict"),
    [
        ("NET/IB/GDRDMA", TP4, [400.0], None),
        ("NET/Socket", TP4, [], ("nccl-fallback-tcp", "fail")),
        ("NET/Socket", TP2PP2, [], None),  # stages bear TCP, where there is nothing better
        ("NET/Socket", TP2PP2, [400.0], ("nccl-fallback-tcp", "warn")),
        ("NET/IB", TP4, [400.0], ("gdr-peermem-error", "warn")),
        ("NET/IB/GDRDMA", Plan(4, 2, "as asked"), [400.0], ("ray-infeasible-gpu-count", "fail")),
    ],
)
def test_ways_between_hosts_are_judged_for_the_split(
    via: str, plan: Plan, rdma: list[float], verdict: tuple[str, str] | None
) -> None:
    found = troubles(judged(two_hosts(via, plan, rdma=rdma)))
    assert [(one.cause, one.verdict) for one in found] == ([verdict] if verdict else [])


def test_the_fix_keeps_tensor_parallelism_inside_hosts() -> None:
    assert (only(two_hosts("NET/Socket", TP4)).fix or "").startswith("--tp 2 --pp 2 keeps")


def test_tcp_in_place_of_rdma_shows_without_any_plan() -> None:
    assert only(two_hosts("NET/Socket", rdma=[400.0])).cause == "nccl-fallback-tcp"


# --- single devices ------------------------------------------------------------------------------


def h100s(**changed: float) -> Collectives:
    """The recorded verdicts of two H100s; `changed` figures are those of rank 1."""
    verdicts = [
        replace(one, **changed) if one.step == "device speed" and one.rank == 1 else one
        for one in parse_verdicts((H100S / "sanity.jsonl").read_text())
    ]
    return Collectives(SanityReport(("gpu01", "gpu01"), tuple(verdicts), {}), "")


def test_two_healthy_h100s_give_nothing() -> None:
    assert bad(h100s()) == []
    said = {one.check: one.message for one in judged(h100s())}
    assert said["gpu.matmul-speed"] == "GPU 0 766 TFLOP/s on gpu01, GPU 1 759 TFLOP/s on gpu01"


@pytest.mark.parametrize(
    ("changed", "check", "words"),
    [
        (
            {"tflops": 310.0},
            "gpu.matmul-speed",
            "GPU 1 (NVIDIA H100 80GB HBM3) multiplies matrices at 310 TFLOP/s; the best of its "
            "kind here does 766, 989 by its datasheet",
        ),
        (
            {"memory_gb_s": 1500.0},
            "gpu.memory-speed",
            "GPU 1 (NVIDIA H100 80GB HBM3) copies memory at 1500 GB/s; the best of its kind here "
            "does 2950, 3350 by its datasheet",
        ),
    ],
)
def test_a_slow_gpu_is_named(changed: Mapping[str, float], check: str, words: str) -> None:
    found = only(h100s(**changed))
    assert (found.check, found.host, found.cause) == (check, "gpu01", "gpu-slowed")
    assert (found.message, found.values["gpu"]) == (words, "1")


def test_gpus_that_were_not_timed_are_not_known_to_be_fast() -> None:
    seen = h100s()
    assert seen.whole is not None
    untimed = [one for one in seen.whole.verdicts if one.step != "device speed"]
    found = troubles(judged(replace(seen, whole=replace(seen.whole, verdicts=tuple(untimed)))))
    assert {(one.check, one.verdict) for one in found} == {
        ("gpu.matmul-speed", "unknown"),
        ("gpu.memory-speed", "unknown"),
    }


# --- which pairs, and what their links are rated for ---------------------------------------------


@given(st.integers(2, 40))
def test_rounds_hold_every_pair_once_and_no_host_twice(count: int) -> None:
    ways = collectives.pairs_of([f"h{number}" for number in range(count)])
    found = collectives.rounds(ways)
    assert sorted(way for one in found for way in one) == sorted(ways)
    for one in found:
        busy = [host for way in one for host in way]
        assert len(busy) == len(set(busy))
    assert all(sum(f"h{host}" in way for way in ways) >= min(2, count - 1) for host in range(count))


def test_links_are_those_of_the_interface_in_use_and_of_ports_that_are_up() -> None:
    eth = Interface("eth1", True, (Address("10.0.1.1", 24),), 1500, 25000, "02:00:00:00:00:09")
    ports = (
        RdmaPort("mlx5_0", 1, "ACTIVE", "InfiniBand", 400.0),
        RdmaPort("mlx5_1", 1, "DOWN", "InfiniBand", 400.0),
    )
    facts = replace(host_facts("gpu01", "10.0.0.1"), interfaces=(eth,), rdma_ports=ports)
    assert collectives.links_of(facts, "eth1") == HostLinks(25.0, (400.0,))
    assert collectives.links_of(facts, "eth7") == HostLinks(None, (400.0,))


def test_every_deep_check_has_a_reason() -> None:
    assert all(one.why and "deep" in one.tags for one in DEEP_CHECKS)


# --- over real processes -------------------------------------------------------------------------


def with_node(name: str) -> HostFacts:
    facts = host_facts(name, "127.0.0.1")
    box = DockerContainer("1", name, "image", "running", {LABEL_CLUSTER: "c"})
    return replace(facts, docker=replace(facts.docker, containers=(box,)))


def test_two_nodes_that_run_are_asked_and_are_their_only_pair(cluster: LocalCluster) -> None:
    with cluster.session() as session:
        facts = {name: with_node(name) for name in session.links}
        seen = collectives.collect(session, facts, {}, silent, Plan(2, 1, "as asked"))
    assert seen.whole is not None
    assert seen.whole.passed
    assert seen.pairs == {("gpu01", "gpu02"): seen.whole}
    assert bad(seen) == []


def test_where_no_node_runs_nothing_is_started(cluster: LocalCluster) -> None:
    with cluster.session() as session:
        facts = {name: host_facts(name, "127.0.0.1") for name in session.links}
        assert collectives.collect(session, facts, {}, silent) == Collectives()
    assert not any("exec" in call for one in cluster.runtimes.values() for call in one.calls)
