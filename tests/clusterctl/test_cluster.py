"""`up`, `status` and `down` over hosts in memory: what they leave on them, and what they say."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from clusterctl import cluster, clusters, console, hoststate, images, lock, sanity, status, teardown
from clusterctl.commands.up import approval, show
from clusterctl.console import asking
from clusterctl.errors import (
    ClusterctlError,
    LockHeld,
    NotReady,
    PreflightFailed,
    Unreachable,
)
from clusterctl.events import Event, silent
from clusterctl.images import PullPolicy
from clusterctl.journal import Journal
from clusterctl.launch import RAY_TOKEN, LaunchPlan
from clusterctl.serving.records import Deployment
from clusterctl.session import Session
from clusterctl.spec import ClusterSpec, LimitsSpec
from clusterctl.transport.base import Result
from tests.clusterctl.hosts import IMAGE, VERSIONS, Bed, spec_of
from tests.fakes import FakeOpener, writes

SERVED = {
    "name": "m",
    "generation": 1,
    "stop": False,
    "state": {"state": "running", "exit_code": None, "generation": 1},
    "info": {
        "model": "/models/m",
        "engine": "native",
        "tp": 1,
        "pp": 3,
        "url": "http://10.0.0.1:8000",
        "executor": "ray",
        "address": "10.0.0.1",
        "port": 8000,
        "kv_cache_tokens": None,
        "ready_generation": 1,
    },
    "listening": True,
    "token": None,
    "detail": "",
}
NAMES = ("gpu01", "gpu02", "gpu03")
SPEC = spec_of(*NAMES, limits=LimitsSpec(formation_timeout=2.0))


@pytest.fixture(autouse=True)
def _own_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path / "hosts", *NAMES)


def approve_all(plan: LaunchPlan, running: Sequence[Deployment]) -> None:
    """Nobody minds."""


def up(
    bed: Bed,
    spec: ClusterSpec = SPEC,
    report: list[Event] | None = None,
    pull: PullPolicy = "missing",
) -> cluster.Up:
    return cluster.up(
        bed.session(spec),
        report=silent if report is None else report.append,
        approve=approve_all,
        check_sanity=False,
        pull=pull,
    )


def nothing_left(bed: Bed) -> bool:
    states = [transport.state.exists() for transport in bed.transports.values()]
    return not any(states) and not any(bed.containers().values())


def test_up_makes_every_node_and_remembers(bed: Bed) -> None:
    done = up(bed)
    assert done.formation.complete
    assert [(node.name, node.role, node.address) for node in done.formation.nodes] == [
        ("gpu01", "head", "10.0.0.1"),
        ("gpu02", "worker", "10.0.0.2"),
        ("gpu03", "worker", "10.0.0.3"),
    ]
    head = bed.transports["gpu01"]
    assert json.loads(hoststate.read(head, "test", "spec.json") or "")["name"] == "test"
    assert [one.name for one in clusters.saved() if one.current] == ["test"]
    assert not (head.state / "test/lock").exists()


def test_every_node_carries_the_same_secret_token_and_no_line_shows_it(bed: Bed) -> None:
    up(bed)
    boxes = [box for one in bed.runtimes.values() for box in one.boxes.values()]
    files = [box.files[f"/opt/clusterctl/{RAY_TOKEN}"] for box in boxes]
    (token,) = {file.data.decode() for file in files}
    assert len(token) == 64
    assert {file.mode for file in files} == {0o600}
    shown = [
        word for transport in bed.transports.values() for argv in transport.ran for word in argv
    ]
    shown += [word for box in boxes for word in (*box.spec.command, *box.spec.env.values())]
    assert not any(token in word for word in shown)


def test_a_second_up_writes_nothing(bed: Bed) -> None:
    up(bed)
    before = bed.containers()
    for runtime in bed.runtimes.values():
        runtime.calls.clear()
    assert up(bed).plan.changes == ()
    assert bed.containers() == before
    assert [writes(runtime) for runtime in bed.runtimes.values()] == [[], [], []]


def test_a_new_worker_gets_the_old_token(bed: Bed) -> None:
    up(bed, spec_of("gpu01", "gpu02", limits=SPEC.limits))
    up(bed)
    tokens = {
        box.files[f"/opt/clusterctl/{RAY_TOKEN}"].data
        for one in bed.runtimes.values()
        for box in one.boxes.values()
    }
    assert len(tokens) == 1


def test_a_token_that_the_head_lost_is_taken_from_a_node_that_stays(bed: Bed) -> None:
    up(bed, spec_of("gpu01", "gpu02", limits=SPEC.limits))
    hoststate.remove(bed.transports["gpu01"], "test", "ray_token")
    test_tokens = f"/opt/clusterctl/{RAY_TOKEN}"
    up(bed)
    boxes = [box for one in bed.runtimes.values() for box in one.boxes.values()]
    assert len({box.files[test_tokens].data for box in boxes}) == 1


def test_a_node_that_left_is_removed_from_its_host(bed: Bed) -> None:
    up(bed)
    two = spec_of("gpu01", "gpu02", limits=SPEC.limits)
    gone = bed.session(SPEC).links
    cluster.up(
        bed.session(two),
        report=silent,
        approve=approve_all,
        check_sanity=False,
        opener=FakeOpener(gone),
    )
    assert {name: len(found) for name, found in bed.containers().items()} == {
        "gpu01": 1,
        "gpu02": 1,
        "gpu03": 0,
    }


def test_a_dry_run_changes_nothing(bed: Bed) -> None:
    plan = cluster.plan_up(bed.session(SPEC), silent)
    assert [node.action for node in plan.nodes] == ["create", "create", "create"]
    assert nothing_left(bed)
    assert [writes(runtime) for runtime in bed.runtimes.values()] == [[], [], []]


def test_a_node_that_ends_at_once_fails_the_run_and_all_of_it_is_undone(bed: Bed) -> None:
    bed.runtimes["gpu03"].breaks = (127, "ray: No such file or directory")
    events: list[Event] = []
    with pytest.raises(NotReady) as raised:
        up(bed, report=events)
    assert raised.value.message == (
        "2/3 nodes; missing gpu03 10.0.0.3: container exited 127: ray: No such file or directory\n"
        "last lines of gpu03:\n"
        "  gpu03 | ray: No such file or directory"
    )
    assert raised.value.host == "gpu03"
    assert raised.value.exit_code == 5
    undone = sorted((event.host, event.message) for event in events if event.step == "undo")
    assert undone == [
        (name, said)
        for name in NAMES
        for said in (
            f"container clusterctl-test-{name} was removed again",
            "seen: nothing of it runs, its ports are free",
        )
    ]
    assert nothing_left(bed)


def test_a_node_that_never_joins_is_named_at_the_timeout(bed: Bed) -> None:
    bed.runtimes["gpu02"].joins = False
    with pytest.raises(NotReady, match=r"not formed within 2 s: .*missing gpu02 10\.0\.0\.2"):
        up(bed)
    assert nothing_left(bed)


def test_undo_leaves_what_was_kept(bed: Bed) -> None:
    two = spec_of("gpu01", "gpu02", limits=SPEC.limits)
    up(bed, two)
    before = bed.containers()
    bed.runtimes["gpu03"].breaks = (1, "boom")
    with pytest.raises(NotReady):
        up(bed)
    assert bed.containers() == before
    assert hoststate.read(bed.transports["gpu01"], "test", "ray_token") is not None
    assert not bed.transports["gpu03"].state.exists()


def test_an_image_without_ray_is_found_before_any_container(bed: Bed) -> None:
    bed.runtimes["gpu02"].holds[1] = None
    with pytest.raises(PreflightFailed, match="has no ray"):
        up(bed)
    made = [call for one in bed.runtimes.values() for call in one.calls if call[0] == "create"]
    assert made == []
    assert nothing_left(bed)


def test_an_image_that_cannot_be_pulled(bed: Bed) -> None:
    bed.runtimes["gpu02"].images.clear()
    bed.runtimes["gpu02"].registry.clear()
    with pytest.raises(PreflightFailed, match="no image registry.example") as raised:
        up(bed)
    assert (raised.value.host, raised.value.exit_code) == ("gpu02", 4)
    assert nothing_left(bed)


def test_a_pull_that_fails_ends_with_its_diagnosis(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = "failed to register layer: write /usr/lib/libtorch.so: no space left on device"

    def pull(reference: str, on_progress: object) -> str:
        raise ClusterctlError(f"pulling {reference}: {full}", host="gpu02")

    bed.runtimes["gpu02"].images.clear()
    monkeypatch.setattr(bed.runtimes["gpu02"], "pull", pull)
    with pytest.raises(PreflightFailed, match=r"diagnosis: .*\(docker-no-space\)") as raised:
        up(bed)
    assert (raised.value.host, raised.value.cause) == ("gpu02", "docker-no-space")
    assert nothing_left(bed)


def test_an_undo_waits_for_a_look_into_the_image(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, settled = Journal(), []

    def ended_meanwhile(image: str, argv: Sequence[str]) -> Result:
        settled.append(journal.close())
        return Result(tuple(argv), 0, json.dumps({"python": VERSIONS[0]}), "")

    monkeypatch.setattr("clusterctl.journal.SETTLE_S", 0)
    monkeypatch.setattr(bed.runtimes["gpu01"], "run_once", ended_meanwhile)
    images.contents(bed.session(SPEC), IMAGE, ["gpu01"], journal)
    assert settled == [False]
    assert journal.close()


def test_an_absent_image_is_pulled_with_progress(bed: Bed) -> None:
    bed.runtimes["gpu02"].images.clear()
    events: list[Event] = []
    up(bed, report=events)
    pulled = [(e.host, e.done, e.total) for e in events if e.kind == "progress"]
    assert pulled == [("gpu02", 0, 100), ("gpu02", 100, 100)]


def pulls(bed: Bed) -> dict[str, int]:
    return {
        name: sum(call[0] == "pull" for call in one.calls) for name, one in bed.runtimes.items()
    }


def test_pull_never_names_the_host_that_would_have_to(bed: Bed) -> None:
    bed.runtimes["gpu02"].images.clear()
    with pytest.raises(PreflightFailed, match="is not there, and --pull never") as raised:
        up(bed, pull="never")
    assert raised.value.host == "gpu02"
    assert set(pulls(bed).values()) == {0}
    assert nothing_left(bed)


def test_pull_always_remakes_the_nodes_whose_image_is_older(bed: Bed) -> None:
    up(bed)
    assert up(bed, pull="always").plan.changes == ()
    assert set(pulls(bed).values()) == {1}
    for name in ("gpu01", "gpu02", "gpu03"):
        bed.runtimes[name].images[IMAGE] = "sha256:newer"
    reasons = {node.reason for node in up(bed).plan.changes}
    assert reasons == {"its image has been pulled or built anew since"}


def test_a_name_that_means_two_images_is_refused(bed: Bed) -> None:
    bed.runtimes["gpu02"].images[IMAGE] = "sha256:yesterdays"
    with pytest.raises(PreflightFailed, match="is not the same on all hosts: .*gpu02 yesterdays"):
        up(bed)
    assert nothing_left(bed)


def test_interrupted_while_it_acts_it_undoes_and_says_so(bed: Bed) -> None:
    class Interrupting(type(bed.runtimes["gpu01"])):  # type: ignore[misc]
        def start(self, container_id: str) -> None:
            raise KeyboardInterrupt

    bed.runtimes["gpu01"].__class__ = Interrupting
    events: list[Event] = []
    with pytest.raises(KeyboardInterrupt):
        up(bed, report=events)
    assert nothing_left(bed)
    assert {event.host for event in events if event.step == "undo"} == set(NAMES)


def test_what_cannot_be_undone_is_said(bed: Bed) -> None:
    bed.runtimes["gpu03"].breaks = (1, "boom")
    bed.runtimes["gpu02"].fails["remove"] = Unreachable("no route to host", host="gpu02")
    events: list[Event] = []
    with pytest.raises(NotReady):
        up(bed, report=events)
    said, seen = [e.message for e in events if e.step == "undo" and e.host == "gpu02"]
    assert seen == "not proven undone: container clusterctl-test-gpu02 is still there"
    assert said == (
        "container clusterctl-test-gpu02 could not be removed and may still run: no route to host"
    )


def test_an_environment_that_did_not_arrive(bed: Bed) -> None:
    bed.runtimes["gpu02"].overrides["VLLM_HOST_IP"] = "127.0.0.1"
    with pytest.raises(NotReady, match=r"its Ray runs with VLLM_HOST_IP=127\.0\.0\.1"):
        up(bed)


def test_a_lock_that_is_held_stops_the_run_before_it_looks(bed: Bed) -> None:
    owner = {"owner": "ann", "host": "laptop", "pid": 1, "time": 0.0}
    hoststate.lock(bed.transports["gpu01"], "test", json.dumps(owner).encode())
    with pytest.raises(LockHeld):
        up(bed)
    assert [runtime.calls for runtime in bed.runtimes.values()] == [[], [], []]


def test_a_running_deployment_is_asked_about_before_its_node_is_replaced(bed: Bed) -> None:
    up(bed)
    before = bed.containers()
    bed.runtimes["gpu01"].deployments = [SERVED]

    def refuse(plan: LaunchPlan, running: Sequence[Deployment]) -> None:
        raise cluster.refusal(plan, running)

    changed = replace(SPEC, env={"NCCL_DEBUG": "INFO"})
    with pytest.raises(ClusterctlError) as raised:
        cluster.up(bed.session(changed), report=silent, approve=refuse, check_sanity=False)
    assert raised.value.message.startswith("this would end deployment m: gpu01 (")
    assert bed.containers() == before


def test_only_a_plan_that_changes_something_is_asked_about(bed: Bed) -> None:
    asked: list[tuple[int, int]] = []

    def approve(plan: LaunchPlan, running: Sequence[Deployment]) -> None:
        asked.append((len(plan.changes), len(running)))

    for _ in range(2):
        cluster.up(bed.session(SPEC), report=silent, approve=approve, check_sanity=False)
    assert asked == [(3, 0)]


def test_a_plan_that_is_declined_changes_nothing(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    for asks in (console, asking):
        monkeypatch.setattr(asks, "can_ask", lambda: True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    with pytest.raises(ClusterctlError, match="not confirmed: nothing was changed"):
        cluster.up(bed.session(SPEC), report=silent, approve=approval(yes=False))
    assert nothing_left(bed)


def test_without_the_check_nothing_is_called_verified(
    bed: Bed, capsys: pytest.CaptureFixture[str]
) -> None:
    done = up(bed)
    show(SPEC, done, as_json=False)
    assert capsys.readouterr().out.endswith("\ntest: 3/3 nodes formed, sanity skipped\n")
    show(SPEC, done, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert (document["verified"], document["sanity"]) == (None, None)
    show(SPEC, replace(done, sanity="3 ranks"), as_json=True)
    assert json.loads(capsys.readouterr().out)["verified"] is True


def seen(bed: Bed, session: Session | None = None) -> status.Status:
    return status.status(session or bed.session(SPEC))


def record_sanity(bed: Bed) -> None:
    now = {
        name: (box.seen.id, box.seen.started_at)
        for name, one in bed.runtimes.items()
        for box in one.boxes.values()
    }
    content = {"schema_version": 1, "summary": "3 ranks", "at": 0.0, "containers": now}
    hoststate.write(bed.transports["gpu01"], "test", sanity.FILE, json.dumps(content).encode())


def test_status_says_what_is_verified_and_what_is_not(bed: Bed) -> None:
    up(bed)
    assert (seen(bed).verified, seen(bed).exit_code) == (None, 0)
    record_sanity(bed)
    assert (seen(bed).verified, seen(bed).exit_code) == (True, 0)
    assert seen(bed).document()["nodes"][1] == {
        "name": "gpu02",
        "address": "10.0.0.2",
        "role": "worker",
        "state": "ready",
        "devices_expected": 1,
        "devices_seen": 1,
        "detail": "",
    }
    runtime = bed.runtimes["gpu02"]
    (container_id,) = runtime.boxes
    runtime.stop(container_id)
    stopped = seen(bed)
    assert (stopped.verified, stopped.exit_code) == (False, 5)
    assert stopped.formation.nodes[1].detail == "container exited 0"
    runtime.start(container_id)  # formed again, but not the container that was checked
    assert (seen(bed).verified, seen(bed).exit_code) == (None, 0)


def test_status_shows_a_host_that_cannot_be_reached(bed: Bed) -> None:
    up(bed)
    record_sanity(bed)
    session = bed.session(SPEC)
    links = {name: link for name, link in session.links.items() if name != "gpu03"}
    lost = Unreachable("no route to host", host="gpu03")
    partial = seen(bed, Session(SPEC, links, {"gpu03": lost}))
    assert (partial.verified, partial.exit_code) == (False, 3)
    row = partial.formation.nodes[2]
    assert (row.state, row.address, row.detail) == ("unreachable", "10.0.0.3", "no route to host")


def test_status_says_what_the_probe_of_ray_died_of(bed: Bed) -> None:
    up(bed)
    bed.runtimes["gpu01"].probe_breaks = "Killed: out of memory"
    found = seen(bed)
    assert found.verified is False
    assert {node.detail for node in found.formation.nodes} == {
        "Ray on the head does not answer yet: Killed: out of memory"
    }


def test_status_where_nothing_was_ever_brought_up(bed: Bed) -> None:
    nothing = seen(bed)
    assert nothing.verified is False
    assert {node.state for node in nothing.formation.nodes} == {"missing"}


def test_down_removes_everything_and_purge_the_directories_too(bed: Bed) -> None:
    up(bed)
    done = teardown.down(bed.session(SPEC), purge=False, report=silent)
    assert {name: len(names) for name, names in done.removed.items()} == dict.fromkeys(NAMES, 1)
    assert not any(bed.containers().values())
    assert hoststate.read(bed.transports["gpu01"], "test", "ray_token") is not None
    teardown.down(bed.session(SPEC), purge=True, report=silent)
    assert nothing_left(bed)


def test_down_does_the_others_when_a_host_is_lost(bed: Bed) -> None:
    up(bed)
    session = bed.session(SPEC)
    links = {name: link for name, link in session.links.items() if name != "gpu03"}
    lost = Unreachable("no route to host", host="gpu03")
    with pytest.raises(Unreachable) as raised:
        teardown.down(Session(SPEC, links, {"gpu03": lost}), purge=True, report=silent)
    assert raised.value.message == (
        "no route to host\nthe containers of test on gpu03 may still run; all other hosts are clear"
    )
    assert [len(found) for found in bed.containers().values()] == [0, 0, 1]


TWO = spec_of("gpu01", "gpu02", limits=SPEC.limits)


def test_down_clears_hosts_that_left_the_file(bed: Bed) -> None:
    up(bed)
    done = teardown.down(
        bed.session(TWO), purge=True, report=silent, opener=FakeOpener(bed.session(SPEC).links)
    )
    assert done.removed == {name: (f"clusterctl-test-{name}",) for name in NAMES}
    assert nothing_left(bed)


def test_down_names_a_lost_host_that_left_the_file(bed: Bed) -> None:
    up(bed)
    lost = Unreachable("no route to host", host="gpu03")
    with pytest.raises(Unreachable) as raised:
        teardown.down(
            bed.session(TWO), purge=False, report=silent, opener=FakeOpener({}, {"gpu03": lost})
        )
    assert raised.value.host == "gpu03"
    assert raised.value.message == (
        "no route to host\nthe containers of test on gpu03 may still run; all other hosts are clear"
    )
    assert [len(found) for found in bed.containers().values()] == [0, 0, 1]


def test_down_holds_the_lock(bed: Bed) -> None:
    up(bed)
    with (
        lock.held(bed.session(SPEC).head, "test"),
        pytest.raises(LockHeld),
    ):
        teardown.down(bed.session(SPEC), purge=False, report=silent)
    assert all(len(found) == 1 for found in bed.containers().values())
