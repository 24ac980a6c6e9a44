"""What is written down of a run, on which hosts, and how it is read again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clusterctl import hoststate, runlog
from clusterctl.commands.audit import cells
from clusterctl.commands.timeline import newest, show
from clusterctl.errors import NotReady, Unreachable
from clusterctl.events import Event, Stage
from clusterctl.runlog import Recording, Run, parse, recorded
from clusterctl.session import Session
from tests.clusterctl.hosts import Bed, spec_of


class Watched:
    """A Report with fixed times."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.stages = [
            Stage("connect", 0.5, {"gpu01": 0.25, "gpu02": 0.5}),
            Stage("formation", 4.0),
        ]

    def __call__(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path, "gpu01", "gpu02")


@pytest.fixture
def session(bed: Bed) -> Session:
    made = bed.session(spec_of("gpu01", "gpu02"))
    for link in made.links.values():
        hoststate.write(link.transport, "test", "spec.json", b"{}")
    return made


@contextmanager
def run(session: Session, watched: Watched | None = None) -> Iterator[Recording]:
    with recorded(session, "up", watched or Watched()) as recording:
        recording.what = "create gpu01, create gpu02"
        yield recording


def test_each_host_has_its_own_seconds_and_the_head_all(session: Session) -> None:
    with run(session):
        pass
    found = runlog.read(session)
    (of_head,), (of_worker,) = found["gpu01"], found["gpu02"]
    assert of_head.stages == tuple(Watched().stages)
    assert of_worker.stages == (Stage("connect", 0.5, {"gpu02": 0.5}),)
    for one in (of_head, of_worker):
        assert (one.command, one.result) == ("up", "ok")
        assert one.what == "create gpu01, create gpu02"


def test_a_run_knows_the_one_before_it(session: Session) -> None:
    with run(session) as first:
        pass
    with pytest.raises(NotReady), run(session):
        raise NotReady("2/3 nodes")
    with run(session) as third:
        pass
    assert first.before is None
    assert third.before == runlog.read(session)["gpu01"][0]


def test_only_hosts_that_something_was_done_to(session: Session) -> None:
    with run(session) as recording:
        recording.hosts = ["gpu02"]
    with run(session) as recording:
        recording.hosts = []
    assert [len(runs) for runs in runlog.read(session).values()] == [0, 1]


@pytest.mark.parametrize(
    ("error", "result", "detail"),
    [
        (Unreachable("timed out", host="gpu02"), "unreachable", "timed out"),
        (KeyboardInterrupt(), "interrupted", ""),
    ],
)
def test_a_run_that_fails_is_on_record_too(
    session: Session, error: BaseException, result: str, detail: str
) -> None:
    with pytest.raises(type(error)), run(session):
        raise error
    for runs in runlog.read(session).values():
        assert [(one.result, one.detail) for one in runs] == [(result, detail)]


def test_a_host_without_a_directory_gets_none(bed: Bed) -> None:
    """A first `up` that was undone leaves nothing behind, no record either."""
    session = bed.session(spec_of("gpu01", "gpu02"))
    with run(session):
        pass
    assert runlog.read(session) == {"gpu01": [], "gpu02": []}
    assert not bed.transports["gpu01"].state.exists()


def test_a_host_that_cannot_be_written_to_is_told_of(session: Session, bed: Bed) -> None:
    watched = Watched()
    with run(session, watched) as recording:
        (bed.transports["gpu02"].state / "test/audit.log").mkdir()
    assert [(one.kind, one.host) for one in watched.events] == [("warn", "gpu02")]
    assert recording.before is None


def test_the_record_does_not_grow_for_ever(session: Session) -> None:
    link = session.link("gpu02")
    for number in range(3):
        lines = "\n".join(f"{number}-{n}" for n in range(400))
        hoststate.append(link.transport, "test", "audit.log", lines)
    kept = (hoststate.read(link.transport, "test", "audit.log") or "").splitlines()
    assert (len(kept), kept[-1]) == (500, "2-399")


def test_a_line_cut_off_is_left_out() -> None:
    one = Run(1.0, "up", "ann", "laptop", "create gpu01", "ok", 12.5)
    assert parse(f"{one.line}\n{one.line[:20]}") == [one]
    assert json.loads(one.line)["stages"] == []


def test_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    old = Run(0.0, "up", "ann", "laptop", "", "ok", 9.0, stages=(Stage("facts", 3.0),))
    bad = Run(60.0, "up", "ann", "laptop", "", "not_ready", 8.0, "2/3 nodes\n  log")
    new = Run(120.0, "up", "bob", "desk", "create gpu01", "ok", 7.5, stages=(Stage("facts", 1.0),))
    assert cells("gpu01", bad) == (
        *("1970-01-01 00:01:00", "gpu01", "ann@laptop", "up", "not_ready", "8.0 s", "2/3 nodes"),
    )
    assert newest([old, bad, new], "up") == [new, old]
    show([new, old], by_host=False)
    assert capsys.readouterr().out == (
        "up, 1970-01-01 00:02:00 UTC: 7.5 s, -1.5 s to the run before\n"
        "STAGE  TIME   LAST   SLOWEST HOST\n"
        "facts  1.0 s  3.0 s                ━━━━━━━━━━━━━━━━━━━━━━━━\n"
    )
