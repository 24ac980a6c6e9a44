"""The lock and the state directory, by the very scripts that run on hosts."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from clusterctl import hoststate, lock
from clusterctl.errors import LockHeld, NotReady, Unreachable
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


def test_a_second_run_waits_as_long_as_it_is_told_to(
    head: HostLink, transport: StateTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(transport, owner="ann", host="laptop")
    told: list[Event] = []

    def release(_: float) -> None:
        hoststate.unlock(transport, "c")

    monkeypatch.setattr("clusterctl.lock.time.sleep", release)
    with lock.held(head, "c", told.append, wait=60):
        assert (transport.state / "c/lock/owner").exists()
    assert [event.message.partition(",")[0] for event in told] == [
        "waiting up to 60 s for ann on laptop"
    ]


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


def test_a_lost_head_does_not_hide_why_the_run_ended(
    head: HostLink, transport: StateTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise Unreachable("no route to host", host="gpu01")

    def run() -> None:
        with lock.held(head, "c", events.append):
            monkeypatch.setattr(transport, "run", lost)
            raise NotReady("2/3 nodes")

    events: list[Event] = []
    with pytest.raises(NotReady, match="2/3 nodes"):
        run()
    assert [(event.kind, event.host, event.message) for event in events] == [
        (
            "warn",
            "gpu01",
            "not released: no route to host; the next run from this machine takes it over",
        )
    ]


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


def owned_by_root(commands: Path, *names: str) -> None:
    """Commands that fail unless sudo runs them, as on files that a container's root made."""
    commands.mkdir()
    scripts = {"sudo": '[ "$1" = -n ] && shift && AS_ROOT=1 exec "$@"'}
    for name in names:
        scripts[name] = f'[ "$AS_ROOT" = 1 ] && exec {shutil.which(name)} "$@"'
    for name, script in scripts.items():
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)


def test_purge_without_root_takes_what_the_containers_root_wrote(
    transport: StateTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport.is_root = False
    home = transport.root / "root"
    home.mkdir()
    hoststate.ensure_directories(transport, "c", ["/root/.cache/huggingface", "/data/hf"])
    (transport.root / "data/hf/model.bin").touch()
    (transport.state / "c/cache").mkdir()
    owned_by_root(tmp_path / "bin", "find", "rm")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    hoststate.purge(transport, "c")
    assert [path.name for path in home.rglob("*")] == [".local", "state"]
    assert (transport.root / "data/hf/model.bin").exists()


def test_whether_the_directory_is_there(transport: StateTransport) -> None:
    assert not hoststate.exists(transport, "c")
    hoststate.write(transport, "c", "x", b"")
    assert hoststate.exists(transport, "c")
