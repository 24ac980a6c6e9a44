"""Who is blamed for a collective check that failed, and what is kept of one that passed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

import pytest

from clusterctl import sanity
from clusterctl.enginepackage import EnginePackage
from clusterctl.errors import ClusterctlError, NotReady, Unreachable
from clusterctl.events import Event
from clusterctl.fanout import Done, Failed, Outcome
from clusterctl.members import Member
from clusterctl.raycluster import ExpectedNode
from clusterctl.sanityreport import RankVerdict, failure, gather
from clusterctl.session import Session
from clusterctl.transport.base import Result
from tests.clusterctl.localcluster import LocalCluster, cluster

__all__ = ["cluster"]

NODES = (
    ExpectedNode("gpu01", "10.0.0.1", "head", "cpu", 2),
    ExpectedNode("gpu02", "10.0.0.2", "worker", "cpu", 1),
    ExpectedNode("gpu03", "10.0.0.3", "worker", "cpu", 1),
)


def ok(rank: int, step: str = "bandwidth", speed: float | None = 1.5) -> RankVerdict:
    return RankVerdict(rank, step, True, 0.1, speed, "", (), ())


def bad(rank: int, step: str, detail: str, missing: tuple[int, ...] = ()) -> RankVerdict:
    return RankVerdict(rank, step, False, 5.0, None, detail, missing, ())


def said(*verdicts: RankVerdict) -> Done[Result]:
    lines = "\n".join(json.dumps(asdict(verdict)) for verdict in verdicts)
    return Done("", Result(("python3",), 0, lines, ""))


def outcomes(*each: Outcome[Result]) -> dict[str, Outcome[Result]]:
    return dict(zip([node.name for node in NODES], each, strict=True))


def blame(*each: Outcome[Result]) -> ClusterctlError:
    found = gather(NODES, outcomes(*each))
    assert not found.passed
    return failure(found)


def test_all_ranks_through_is_a_pass_with_the_slowest_speed() -> None:
    last = replace(ok(3, speed=0.5), transports=("NET/Socket",))
    found = gather(NODES, outcomes(said(ok(0), ok(1)), said(ok(2)), said(last)))
    assert found.passed
    assert found.hosts == ("gpu01", "gpu01", "gpu02", "gpu03")
    assert found.summary() == "4 ranks, 0.50 GB/s, NET/Socket"


def test_a_rank_that_did_not_come_is_named_with_its_host() -> None:
    waiting = "rank 3 did not come within 5 s"
    error = blame(
        said(
            bad(0, "gloo all_reduce", waiting, (3,)),
            bad(1, "gloo all_reduce", waiting, (3,)),
        ),
        said(bad(2, "gloo all_reduce", waiting, (3,))),
        said(ok(3, "start")),
    )
    assert (error.host, error.message) == (
        "gpu03",
        'rank 3 (gpu03) did not reach "gloo all_reduce"; gpu01, gpu02 waited for it',
    )


def test_what_the_missing_rank_says_itself_comes_first() -> None:
    error = blame(
        said(bad(0, "gloo all_reduce", "rank 2 did not come", (2,))),
        said(bad(2, "rendezvous", "connection timed out")),
        said(bad(3, "gloo all_reduce", "rank 2 did not come", (2,))),
    )
    assert (error.host, error.message) == (
        "gpu02",
        'rank 2 (gpu02) failed in "rendezvous": connection timed out (2 more ranks failed)',
    )
    assert "reach each other on every TCP port" in str(error.hint)


def test_a_wrong_sum_blames_the_rank_that_saw_it() -> None:
    error = blame(said(ok(0), ok(1)), said(bad(2, "bandwidth", "wrong sum")), said(ok(3)))
    assert error.message == 'rank 2 (gpu02) failed in "bandwidth": wrong sum'
    assert "MTU" in str(error.hint)


def test_a_node_that_cannot_be_reached_comes_before_those_that_waited() -> None:
    error = blame(
        said(bad(0, "gloo all_reduce", "rank 3 did not come", (3,))),
        said(bad(2, "gloo all_reduce", "rank 3 did not come", (3,))),
        Failed("gpu03", Unreachable("connection lost", host="gpu03")),
    )
    assert (error.host, error.message) == (
        "gpu03",
        "the collective check did not end: connection lost",
    )


def test_a_launcher_that_fails_is_named_with_its_last_words() -> None:
    broken = Result(("python3",), 1, "", "Traceback\nModuleNotFoundError: no module engine\n")
    error = blame(said(ok(0), ok(1)), Done("gpu02", broken), said(ok(3)))
    assert (error.host, error.message) == (
        "gpu02",
        "the collective check did not end: the check exited 1: "
        "ModuleNotFoundError: no module engine",
    )


def test_a_rank_that_says_nothing_is_not_a_pass() -> None:
    error = blame(said(ok(0), ok(1)), said(ok(2)), said(ok(3, "gloo all_reduce")))
    assert error.message.startswith("rank 3 (gpu03) did not reach")


# --- over real processes -------------------------------------------------------------------------


def members_of(session: Session) -> Sequence[Member]:
    from clusterctl.members import members

    return members(session)


@pytest.fixture
def host_state(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The head's state directory, in memory."""
    kept: dict[str, bytes] = {}

    def read(_transport: object, _cluster: str, name: str) -> str | None:
        return kept[name].decode() if name in kept else None

    def write(_transport: object, _cluster: str, name: str, data: bytes) -> None:
        kept[name] = data

    def remove(_transport: object, _cluster: str, name: str) -> None:
        kept.pop(name, None)

    for verb in (read, write, remove):
        monkeypatch.setattr(f"clusterctl.hoststate.{verb.__name__}", verb)
    return kept


def test_two_nodes_pass_and_the_pass_is_recorded(
    cluster: LocalCluster, host_state: dict[str, bytes]
) -> None:
    events: list[Event] = []
    with cluster.session() as session:
        nodes = members_of(session)
        found = sanity.check(session, nodes, report=events.append, timeout=240)
        record = sanity.recorded(session)
    assert found.passed
    assert found.busbw_gb_s is not None
    assert record is not None
    assert record.covers(nodes)
    assert [event.kind for event in events] == ["begin", "done"]


def test_a_record_does_not_cover_a_restarted_container(
    cluster: LocalCluster, host_state: dict[str, bytes]
) -> None:
    with cluster.session() as session:
        nodes = members_of(session)
        record = sanity.Record("2 ranks", 1.0, sanity.identities(nodes))
        again = replace(nodes[1], container=replace(nodes[1].container, started_at="later"))
        assert record.covers(nodes)
        assert not record.covers([nodes[0], again])
        assert not record.covers(nodes[:1])
        assert sanity.recorded(session) is None


def test_a_failed_check_takes_an_old_pass_away(
    cluster: LocalCluster, host_state: dict[str, bytes]
) -> None:
    host_state[sanity.FILE] = b"{}"
    broken = EnginePackage((("engine/__init__.py", b""), ("engine/sanity.py", b"exit('broken')")))
    with cluster.session() as session, pytest.raises(NotReady, match="the check exited 1: broken"):
        sanity.check(session, members_of(session), package=broken)
    record = sanity.recorded(session)
    assert record is not None
    assert (record.summary, dict(record.containers)) == ("failed", {})


def test_a_failed_check_ends_with_its_diagnosis(
    cluster: LocalCluster, host_state: dict[str, bytes]
) -> None:
    """What NCCL warned of tells more than the step that broke."""
    warned = "h:1:2 [0] NCCL WARN Bootstrap : no socket interface found"
    line = json.dumps(asdict(bad(0, "NCCL all_reduce", f"internal error | NCCL: {warned}")))
    package = EnginePackage(
        (("engine/__init__.py", b""), ("engine/sanity.py", f"print({line!r})".encode()))
    )
    with (
        cluster.session() as session,
        pytest.raises(NotReady, match=r"diagnosis: .*\(nccl-socket-ifname-wrong\)") as raised,
    ):
        sanity.check(session, members_of(session), package=package)
    assert raised.value.cause == "nccl-socket-ifname-wrong"
    assert "NCCL_SOCKET_IFNAME" in (raised.value.hint or "")
