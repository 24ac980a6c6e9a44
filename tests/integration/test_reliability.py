"""What happens to a served model when something breaks under it, and how long it takes to come back
without a human: one cluster, struck again and again.

After each fault: a token comes back, the request that was in flight has ended, and no process,
container, port or lock is left over; in the end the hosts are what they were.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .bed import Cluster
from .conftest import RunningTestbed
from .keeping import KEY, NAME, NATIVE, PATIENCE_S, Clock, InFlight, Service, record, until

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]

KEPT = "INFERCLUSTER_RELIABILITY_KEEP"  # 1: the cluster stays, for the next part of the matrix
RANK = "ray:[:]RankActor"


@dataclass(frozen=True)
class Case:
    """`restarts`: whether the ranks must begin anew."""

    fault: str
    inflict: Callable[[Service], None]
    restarts: bool = True


CASES = (
    Case("kill -9 of rank 0", lambda s: s.kill(s.head, RANK)),
    Case("kill -9 of rank 1", lambda s: s.kill(s.worker, RANK)),
    Case("kill -9 of the engine's driver", lambda s: s.kill(s.head, "engine[ ]serve")),
    Case("SIGSTOP of rank 1", lambda s: s.kill(s.worker, RANK, "STOP")),
    Case("kill -9 of the worker's raylet", lambda s: s.kill(s.worker, "raylet/[r]aylet ")),
    Case("kill -9 of the GCS", lambda s: s.kill(s.head, "[g]cs_server")),
    Case("kill -9 of the worker's container", lambda s: s.kill_container(s.worker)),
    Case("kill -9 of the head's container", lambda s: s.kill_container(s.head)),
    Case("kill -9 of the worker's dockerd", lambda s: s.kill_on_host(s.worker, "dockerd")),
    Case("kill -9 of the head's dockerd", lambda s: s.kill_on_host(s.head, "dockerd")),
    Case("kill -9 of the head's sshd", lambda s: s.kill_on_host(s.head, "sshd"), restarts=False),
    Case("worker's link cut 10 s", lambda s: s.cut(s.worker, 10), restarts=False),
    Case("worker's link cut 90 s", lambda s: s.cut(s.worker, 90)),
    Case("worker rebooted", lambda s: s.fault(s.worker, "reboot")),
    Case("head rebooted", lambda s: s.fault(s.head, "reboot")),
    Case("worker's Docker disk full 60 s", lambda s: s.fault(s.worker, "docker-disk-full", 60)),
)


@pytest.fixture(scope="module")
def service(
    testbed: RunningTestbed, smollm2: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("reliability")
    made = Service(Cluster(testbed, directory, "rel", testbed.hosts[:2]), smollm2)
    made.cluster.write()
    before = made.cluster.snapshots()
    made.cluster.ok("up", "--no-sanity", "--yes")
    if (now := made.kept()) is None or now["state"] in ("failed", "stopped"):
        clock = Clock()
        made.serve()
        clock.stop()
        record("none: `serve`, to compare with", clock, ends="ready")
    made.until_ready()
    yield made
    if os.environ.get(KEPT) != "1":
        made.cluster.ok("down", "--purge")
        assert made.cluster.snapshots() == before


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.fault)
def test_the_service_comes_back(service: Service, case: Case) -> None:
    before = service.until_kept(lambda now: now["state"] == "running", "running")
    in_flight = InFlight(service)
    clock = Clock()
    case.inflict(service)
    inflicted = time.monotonic() - clock.began
    seen = service.until_ready(before["epoch"] + case.restarts)
    assert service.complete()
    clock.stop()
    ended = in_flight.ended()
    service.nothing_is_left_over()
    restarts = seen["restarts"] - before["restarts"]
    record(
        case.fault,
        clock,
        inflicted=inflicted,
        in_flight=ended,
        restarts=restarts,
        cause=seen["cause"] if restarts else "",
    )


def test_a_container_stopped_by_hand_is_left_to_us(service: Service) -> None:
    """Docker does not start it; who is missing is said, and `up` starts it."""
    before = service.until_ready()
    in_flight = InFlight(service)
    clock = Clock()
    service.on(service.worker, f"docker stop {service.cluster.container(service.worker)}")
    waiting = service.until_kept(lambda now: service.worker in now["waiting_for"], "who is missing")
    assert service.cluster.run("status").returncode == 5
    service.cluster.ok("up", "--no-sanity", "--yes")
    seen = service.until_ready(before["restarts"] + 2)
    assert service.complete()
    clock.stop()
    ended = in_flight.ended()
    service.nothing_is_left_over()
    record(
        "docker stop of the worker's container",
        clock,
        ends=f"waits, {waiting['waiting_for']}; `status` exits 5; back by `clusterctl up`",
        in_flight=ended,
        restarts=seen["restarts"] - before["restarts"],
        cause=seen["cause"],
    )


def test_a_rank_dies_while_the_disk_is_full(service: Service) -> None:
    """No record can be written, so only clients and `ps` can tell; the records are right after."""
    before, said = service.until_ready(), refusals(service)
    with service.full_disk(service.head):
        in_flight = InFlight(service)
        clock = Clock()
        service.kill(service.worker, RANK)
        ended = in_flight.ended()
        until(service.answers, bool, "an answer")
        clock.stop()
        assert refusals(service) == said + 1  # not one a look
    seen = service.until_ready(before["restarts"] + 2)
    service.nothing_is_left_over()
    record(
        "kill -9 of rank 1 while the head's records and crashes have no room",
        clock,
        in_flight=ended,
        restarts=seen["restarts"] - before["restarts"],
        cause=seen["cause"],
    )


def refusals(service: Service) -> int:
    log = f"docker logs {service.cluster.container(service.head)} 2>&1"
    count = service.on(service.head, f"{log} | grep -c 'state.json: No space left' || true")
    return int(count)


# --- the laptop is killed ------------------------------------------------------------------------


def killed_at(process: subprocess.Popen[str], stage: str) -> None:
    """As the lid is closed: no handler runs."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if stage in line:
            break
    else:
        raise AssertionError(f"{stage} was not seen:\n{''.join(lines)}")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


@pytest.mark.parametrize("stage", ["check", "start", "loading"])
def test_a_laptop_killed_during_serve(service: Service, stage: str) -> None:
    service.stop()
    clock = Clock()
    argv = ["serve", service.model, *NATIVE, "--name", NAME]
    killed_at(service.cluster.start(*argv, INFERCLUSTER_API_KEY=KEY), f"| {stage}")
    if stage == "check":
        now = service.kept()
        assert now is not None
        assert now["state"] == "stopped"  # nothing was started
        service.serve()
        ends = "by the next `serve`"
    else:
        service.until_ready()
        ends = "ready all the same"
    assert service.complete()
    clock.stop()
    service.allow(100)
    service.nothing_is_left_over()
    record(f"laptop killed in `serve`, at {stage}", clock, ends=ends)


def test_a_node_lost_while_the_model_loads(service: Service) -> None:
    """What ends an engine before its first token is final, unless it was a node that ended."""
    service.stop()
    service.serve("--detach")
    loads = service.until_kept(
        lambda now: any(rank["node"] == service.worker for rank in now["ranks"]), "a rank"
    )
    assert loads["state"] == "starting"
    clock = Clock()
    service.kill_container(service.worker)
    seen = service.until_ready(2)
    assert service.complete()
    clock.stop()
    assert service.worker in seen["cause"]
    service.nothing_is_left_over()
    record(
        "kill -9 of the worker's container while the model loads",
        clock,
        restarts=seen["restarts"],
        cause=seen["cause"],
    )


def test_restarts_end_in_failed_with_the_cause(service: Service) -> None:
    before = service.until_ready()
    in_flight = InFlight(service)
    service.allow(0)
    clock = Clock()
    service.kill(service.worker, RANK)
    seen = service.until_told(lambda now: now["state"] == "failed", "failed")
    clock.stop()
    ended = in_flight.ended()
    assert "given up after" in seen["cause"]
    assert "rank 1" in seen["cause"]
    assert before["restarts"] == seen["restarts"]
    assert service.cluster.run("status").returncode == 5
    assert not seen["ranks"]
    assert service.listeners() == 0
    service.no_lock_and_one_container()
    record(
        "a rank that dies once more than is allowed",
        clock,
        ends="failed, `status` exits 5",
        in_flight=ended,
        cause=seen["cause"],
    )


# --- `up`, on a third host -----------------------------------------------------------------------


@pytest.fixture
def lone(testbed: RunningTestbed, tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(testbed, tmp_path, "lone", testbed.hosts[2:3])
    made.write()
    before = made.snapshots()
    yield made
    made.ok("down", "--purge")
    assert made.snapshots() == before


def no_lock(cluster: Cluster) -> bool:
    lock = f"/var/lib/clusterctl/{cluster.name}/lock"
    return not cluster.testbed.ssh(cluster.hosts[0], f"ls -d {lock} 2>/dev/null || true")


@pytest.mark.parametrize("stage", ["facts", "image", "create", "formation"])
def test_a_laptop_killed_during_up(lone: Cluster, stage: str) -> None:
    killed_at(lone.start("up", "--no-sanity"), f"{stage}: ")
    clock = Clock()
    lone.ok("up", "--no-sanity")
    clock.stop()
    assert lone.states() == {lone.hosts[0]: "ready"}
    assert no_lock(lone)
    record(f"laptop killed in `up`, at {stage}", clock, ends="by the next `up`")


def test_two_ups_at_once(lone: Cluster) -> None:
    clock = Clock()
    both = [lone.start("up", "--no-sanity") for _ in range(2)]
    for process in both:
        process.communicate(timeout=PATIENCE_S)
    clock.stop()
    assert sorted(process.returncode for process in both) == [0, 6]
    assert lone.states() == {lone.hosts[0]: "ready"}
    assert no_lock(lone)
    record("two `up`s at once", clock, ends="one done, one exit code 6")
