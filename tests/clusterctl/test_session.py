from pathlib import Path

import pytest

from clusterctl.errors import ClusterctlError, CommandFailed, NotReady, Unreachable
from clusterctl.events import Event
from clusterctl.fanout import Done, Failed
from clusterctl.links import HostLink
from clusterctl.session import Session, all_failures, results
from clusterctl.spec import ClusterSpec, NodeSpec
from clusterctl.trace import TRACE_FILE, traced
from clusterctl.transport.base import Result
from tests.clusterctl.sshd import Sshd
from tests.fakes import FakeOpener, FakeRuntime, ScriptedTransport, fake_session

NODES = tuple(NodeSpec(name, name) for name in ("gpu01", "gpu02", "gpu03"))
SPEC = ClusterSpec("test", NODES, "gpu01")


def link(node: NodeSpec) -> HostLink:
    return HostLink(node, ScriptedTransport(node.name), FakeRuntime(node.name))


def opener(**fails: ClusterctlError) -> FakeOpener:
    return FakeOpener({node.name: link(node) for node in NODES}, fails)


def test_all_hosts_are_connected_and_reported() -> None:
    events: list[Event] = []
    with Session.connect(SPEC, opener=opener(), report=events.append) as session:
        assert list(session.links) == ["gpu01", "gpu02", "gpu03"]
        assert session.head.name == "gpu01"
        assert session.failures == {}
    for kind in ("begin", "done"):
        assert {e.host for e in events if e.kind == kind} == {"gpu01", "gpu02", "gpu03"}


def test_only_the_named_hosts_are_connected() -> None:
    with Session.connect(SPEC, names=["gpu03", "gpu02"], opener=opener()) as session:
        assert list(session.links) == ["gpu02", "gpu03"]


def test_leaving_closes_every_connection() -> None:
    doors = opener()
    with Session.connect(SPEC, opener=doors) as session:
        transports = [link.transport for link in session.links.values()]
    assert doors.closed
    assert all(isinstance(t, ScriptedTransport) and t.closed for t in transports)


def test_every_host_that_failed_is_named_and_the_rest_is_closed() -> None:
    doors = opener(
        gpu01=Unreachable("no route", host="gpu01", hint="plug it in"),
        gpu03=Unreachable("no login", host="gpu03", hint="ssh-add"),
    )
    with pytest.raises(Unreachable) as caught:
        Session.connect(SPEC, opener=doors)
    assert caught.value.message == "2 hosts failed:\n  gpu01: no route\n  gpu03: no login"
    assert caught.value.host == "gpu01, gpu03"
    assert caught.value.hint == "plug it in\nssh-add"
    assert doors.closed


def test_a_partial_session_keeps_the_failures_beside_the_links() -> None:
    lost = Unreachable("no route", host="gpu02")
    with Session.connect(SPEC, opener=opener(gpu02=lost), partial=True) as session:
        assert list(session.links) == ["gpu01", "gpu03"]
        assert session.failures == {"gpu02": lost}
        with pytest.raises(Unreachable, match="no route"):
            session.link("gpu02")


def test_each_calls_on_the_chosen_hosts() -> None:
    with fake_session(SPEC) as session:
        outcomes = session.each(lambda link: link.name.upper(), ["gpu02", "gpu01"])
    assert outcomes == {"gpu01": Done("gpu01", "GPU01"), "gpu02": Done("gpu02", "GPU02")}


def test_results_are_values_or_one_error() -> None:
    assert results({"a": Done("a", 1), "b": Done("b", 2)}) == {"a": 1, "b": 2}
    with pytest.raises(NotReady, match="late"):
        results({"a": Done("a", 1), "b": Failed("b", NotReady("late", host="b"))})


def test_several_errors_are_one_of_the_gravest_kind() -> None:
    failed = CommandFailed(Result(("x",), 1, "", "no"), host="c")
    late, gone = NotReady("late", host="a"), Unreachable("gone", host="b")
    assert type(all_failures({"a": late, "b": gone})) is Unreachable
    assert type(all_failures({"a": late, "c": failed})) is NotReady
    assert type(all_failures({"c": failed, "d": failed})) is ClusterctlError
    assert all_failures({"c": failed}) is failed


def test_real_hosts_are_connected_at_once_and_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sshd = Sshd(tmp_path, listen="0.0.0.0").start()
    trace = tmp_path / "trace"
    monkeypatch.setenv(TRACE_FILE, str(trace))
    hosts = [f"127.0.1.{n}" for n in range(1, 6)]
    known = "".join(sshd.known_hosts_line(host) for host in hosts)
    nodes = tuple(sshd.node(f"n{n}", host) for n, host in enumerate(hosts))
    spec = ClusterSpec("test", nodes, "n0", ssh=sshd.spec(known))
    lines: list[str] = []
    try:
        with Session.connect(spec, trace=lines.append) as session:
            said = results(session.each(lambda link: link.transport.run(["echo", link.name])))
        with pytest.raises(Unreachable):
            session.links["n0"].transport.run(["true"])
    finally:
        sshd.stop()
    assert {name: result.stdout for name, result in said.items()} == {
        name: f"{name}\n" for name in ("n0", "n1", "n2", "n3", "n4")
    }
    assert sorted(lines) == [f"n{n}\trun echo n{n}" for n in range(5)]
    assert sorted(trace.read_text().splitlines()) == sorted(lines)


def test_without_a_trace_file_only_the_watcher_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRACE_FILE, raising=False)
    lines: list[str] = []
    traced(lines.append)("a line")
    assert lines == ["a line"]
