"""The lock and the state directory, by the very scripts that run on hosts."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from clusterctl import hoststate, lock
from clusterctl.errors import LockHeld
from clusterctl.events import Event
from clusterctl.links import HostLink
from clusterctl.spec import NodeSpec
from tests.clusterctl.hosts import StateTransport
from tests.fakes import FakeRuntime

DEAD_PID = 2**22 + 1  # above every pid that Linux gives out


@pytest.fixture
def transport(tmp_path: Path) -> StateTransport:
    return StateTransport("gpu01", "10.0.0.1", tmp_path)


@pytest.fixture
def head(transport: StateTransport) -> HostLink:
    return HostLink(NodeSpec("gpu01", "gpu01"), transport, FakeRuntime())


def hold(transport: StateTransport, **changes: object) -> lock.Owner:
    owner = lock.Owner(**{**asdict(lock.this_run()), **changes})  # type: ignore[arg-type]
    hoststate.lock(transport, "c", json.dumps(asdict(owner)).encode())
    return owner


def test_held_while_the_block_runs_and_gone_after(
    head: HostLink, transport: StateTransport
) -> None:
    with lock.held(head, "c") as fresh:
        assert fresh
        assert (transport.state / "c/lock/owner").exists()
    assert not transport.state.exists()


def test_a_directory_that_was_there_stays(head: HostLink, transport: StateTransport) -> None:
    hoststate.write(transport, "c", "spec.json", b"{}")
    with lock.held(head, "c") as fresh:
        assert not fresh
    assert hoststate.read(transport, "c", "spec.json") == "{}"


def test_a_second_run_is_refused_and_told_who_holds_it(
    head: HostLink, transport: StateTransport
) -> None:
    owner = hold(transport, owner="ann", host="laptop")
    with pytest.raises(LockHeld) as raised, lock.held(head, "c"):
        pass
    assert raised.value.exit_code == 6
    assert raised.value.host == "gpu01"
    assert f"ann on laptop, process {owner.pid}, since " in raised.value.message
    assert (transport.state / "c/lock/owner").exists()


def test_a_run_of_this_machine_that_is_gone_is_taken_over(
    head: HostLink, transport: StateTransport
) -> None:
    hold(transport, pid=DEAD_PID)
    events: list[Event] = []
    with lock.held(head, "c", events.append):
        written = json.loads((transport.state / "c/lock/owner").read_text())
        assert written["pid"] == os.getpid()
    assert [event.kind for event in events] == ["warn"]


def test_a_lock_that_is_not_signed_yet_is_somebodys(
    head: HostLink, transport: StateTransport
) -> None:
    (transport.state / "c/lock").mkdir(parents=True)
    with pytest.raises(LockHeld, match="somebody"), lock.held(head, "c"):
        pass


def test_files_are_private_and_whole(transport: StateTransport) -> None:
    assert hoststate.read(transport, "c", "ray_token") is None
    hoststate.write(transport, "c", "ray_token", b"secret")
    path = transport.state / "c/ray_token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert hoststate.read(transport, "c", "ray_token") == "secret"
    assert all("secret" not in word for argv in transport.ran for word in argv)
    hoststate.remove(transport, "c", "ray_token")
    assert list(path.parent.iterdir()) == []


def test_purge_takes_what_was_made_and_leaves_what_others_put_there(
    transport: StateTransport,
) -> None:
    home = transport.root / "root"
    home.mkdir()
    hoststate.ensure_directories(transport, "c", ["/root/.cache/huggingface", "/data/hf"])
    hoststate.ensure_directories(transport, "c", ["/root/.cache/huggingface"])
    (transport.root / "data/hf/model.bin").touch()
    hoststate.purge(transport, "c")
    assert sorted(path.name for path in transport.root.iterdir()) == ["data", "root", "var"]
    assert list(home.iterdir()) == []
    assert (transport.root / "data/hf/model.bin").exists()
    assert not transport.state.exists()


def test_survey(transport: StateTransport) -> None:
    (transport.root / "models").mkdir()
    assert hoststate.survey(transport, "c", ["/models", "/no such"]) == hoststate.Survey(
        exists=False, missing=(f"{transport.root}/no such",)
    )
    hoststate.write(transport, "c", "x", b"")
    assert hoststate.survey(transport, "c", []) == hoststate.Survey(exists=True, missing=())
