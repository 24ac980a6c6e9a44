"""GPU memory after nodes went away: the recorded facts of a host with two H100, to which processes
are added as nvidia-smi writes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from clusterctl import release
from clusterctl.containers import LABEL_CLUSTER, LABEL_GPUS
from clusterctl.events import Event, silent
from clusterctl.facts.gather import parse_facts
from clusterctl.facts.types import DockerContainer, HostFacts
from clusterctl.gpumemory import GpuMemory, Holder, Nodes, compare, gpus_of, nodes_of, others
from clusterctl.links import HostLink
from clusterctl.release import Released
from clusterctl.session import Session
from clusterctl.spec import NodeSpec
from tests.clusterctl.hosts import spec_of
from tests.fakes import FakeRuntime, ScriptedTransport

RECORDED = (Path(__file__).parents[1] / "data/facts/h100x2.txt").read_text()
NODE = DockerContainer("ab" * 32, "clusterctl-test-gpu01", "x", "running", {})
OURS, THEIRS = 4711, 900


@dataclass(frozen=True)
class Process:
    """On GPU `gpu`; `cgroup` is the last line of its /proc/PID/cgroup."""

    gpu: int
    pid: int
    name: str
    memory: str
    user: str = "root"
    cgroup: str = "0::/user.slice"


RANK = Process(0, OURS, "VLLM::Worker_TP0", "71000 MiB", cgroup=f"0::/docker-{'ab' * 32}.scope")
NOTEBOOK = Process(0, THEIRS, "/usr/bin/python3", "9000 MiB", user="ann")


def text(used: tuple[object, object], *processes: Process) -> str:
    said = RECORDED
    for index, mib in enumerate(used):
        uuid = f"GPU-0000000{index + 1}-0000-0000-0000-000000000000"
        said = said.replace(f"{uuid}, 81559, 0,", f"{uuid}, 81559, {mib},")
    gpus = said.split("<processes>\n")
    for p in processes:
        info = (
            f"<process_info><pid>{p.pid}</pid><type>C</type><process_name>{p.name}</process_name>"
            f"<used_memory>{p.memory}</used_memory></process_info>\n"
        )
        gpus[p.gpu + 1] = info + gpus[p.gpu + 1]
    owners = "".join(f"{p.pid}\t{p.user}\t{p.cgroup}\n" for p in processes)
    return "<processes>\n".join(gpus).replace("</nvidia_smi_log>\n", f"</nvidia_smi_log>\n{owners}")


def seen(*processes: Process, used: tuple[object, object] = (4, 4), gpus: str = "all") -> HostFacts:
    facts = parse_facts("gpu01", text(used, *processes), sent=0.0, received=0.0)
    labels = {LABEL_CLUSTER: "test", LABEL_GPUS: gpus}
    containers = (replace(NODE, labels=labels),)
    return replace(facts, docker=replace(facts.docker, containers=containers, error=None))


LOADED = seen(RANK, NOTEBOOK, used=(80_100, 4))
IDLE = seen()


def test_what_the_nodes_had_and_who_held_it() -> None:
    assert nodes_of("test", LOADED) == Nodes(frozenset({0, 1}), frozenset({OURS}))
    assert nodes_of("test", seen(RANK, gpus="1")).gpus == {1}
    assert nodes_of("another", LOADED) == Nodes(frozenset())
    assert gpus_of({LABEL_GPUS: "all"}, LOADED) == frozenset()  # no node of ours


BOTH = Nodes(frozenset({0, 1}), frozenset({OURS}))


def test_all_is_back_beside_what_others_hold() -> None:
    after = seen(NOTEBOOK, used=(9_004, 4))
    assert compare(BOTH, LOADED, after) == (
        GpuMemory("gpu01", 0, 80_100, 9_004, True),
        GpuMemory("gpu01", 1, 4, 4, True),
    )
    assert list(others(BOTH, after)) == [
        Holder("gpu01", 0, THEIRS, "ann", "/usr/bin/python3", 9_000, None)
    ]


HELD = {
    "a rank that lives on": (
        seen(RANK, used=(71_004, 4)),
        False,
        "71,004 of 81,559 MiB are in use, still by VLLM::Worker_TP0 (PID 4711) of the cluster",
    ),
    "nobody shows": (
        seen(NOTEBOOK, used=(80_004, 4)),
        False,
        "71,004 of 81,559 MiB are in use by no process that shows",
    ),
    "a share that is not said": (
        seen(replace(NOTEBOOK, memory="N/A"), used=(80_004, 4)),
        None,
        "80,004 of 81,559 MiB are in use; by whom does not show",
    ),
    "no reading": (
        seen(used=("[N/A]", 4)),
        None,
        "the driver does not say how much is in use",
    ),
    "no driver": (
        replace(IDLE, gpu=replace(IDLE.gpu, gpus=(), error="nvidia-smi: GPU is lost")),
        None,
        "nvidia-smi: GPU is lost",
    ),
}


@pytest.mark.parametrize("name", HELD)
def test_what_is_not_back_or_not_known_says_why(name: str) -> None:
    after, back, why = HELD[name]
    first, _ = compare(BOTH, LOADED, after)
    assert (first.back, first.why) == (back, why)


def test_what_nobody_held_before_is_not_ours() -> None:
    """An orphan from before `up` is not what its undoing has to take away."""
    orphaned = seen(used=(70_000, 4))
    assert [one.back for one in compare(Nodes(frozenset({0})), orphaned, orphaned)] == [True]
    assert [one.back for one in compare(Nodes(frozenset({0})), IDLE, orphaned)] == [False]


def watched(
    monkeypatch: pytest.MonkeyPatch, *looks: str, back_s: float = 60
) -> tuple[Released, list[Event]]:
    """The first look is `after`; the driver gives memory back between looks."""
    monkeypatch.setattr(release, "LOOK_S", 0)
    monkeypatch.setattr(release, "BACK_S", back_s)
    later: Iterator[str] = iter(looks[1:])
    transport = ScriptedTransport("gpu01", {"sh": lambda _: next(later)})
    node = NodeSpec("gpu01", "gpu01")
    session = Session(spec_of("gpu01"), {"gpu01": HostLink(node, transport, FakeRuntime("gpu01"))})
    events: list[Event] = []
    after = parse_facts("gpu01", looks[0], sent=0.0, received=0.0)
    found = release.watch(
        session, {"gpu01": BOTH}, {"gpu01": LOADED}, {"gpu01": after}, events.append
    )
    return found, events


def test_it_waits_until_the_driver_has_taken_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    found, events = watched(
        monkeypatch, text((70_000, 4)), text((20_000, 4)), text((9_004, 4), NOTEBOOK)
    )
    assert str(found) == "memory of 2 GPUs back (71,096 MiB)"
    assert [one.pid for one in found.others] == [THEIRS]
    assert [event.message for event in events] == ["waiting for the memory of gpu01"] * 2


def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = watched(monkeypatch, text((70_000, 4)), back_s=-1)
    assert str(found) == (
        "GPU memory still held (GPU 0: 70,000 of 81,559 MiB are in use by no process that shows)"
    )


def test_hosts_without_gpus_have_nothing_to_give_back() -> None:
    session = Session(spec_of("gpu01"), {})
    found = release.watch(session, {"gpu01": Nodes(frozenset())}, {"gpu01": IDLE}, {}, silent)
    assert (str(found), found.gpus, found.held) == ("", (), ())
