"""One contract for the three executors: what `collective` promises, and how ranks may fail."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.config import Backend, EngineConfig
from engine.executor import start_executor
from engine.executor.base import Executor, RankFailed
from engine.executor.mp import rank_environment
from engine.executor.placement import (
    PlacementError,
    RayNode,
    Slot,
    order_ranks,
    plan_bundles,
    slots_of,
    too_few,
)
from engine.shapes import ModelShape
from tests.engine.echo_runner import ECHO, STILLBORN

ROOT = str(Path(__file__).parents[2])
BACKENDS: list[Backend] = ["inproc", "mp", "ray"]
PROCESSES: list[Backend] = ["mp", "ray"]
# Where Ray's ranks go through the very code that mp's do, it is asked in the long run only.
RAY_IN_FULL = pytest.param("ray", marks=pytest.mark.full)
SHAPE = ModelShape(
    architecture="LlamaForCausalLM",
    num_layers=2,
    hidden_size=8,
    num_heads=2,
    num_kv_heads=2,
    head_dim=4,
    intermediate_size=8,
    vocab_size=16,
    max_position=32,
)
Start = Callable[..., Executor]


def config(backend: Backend, tp: int = 2, pp: int = 1, **more: Any) -> EngineConfig:
    return EngineConfig(
        model="none",
        device="cpu",
        tensor_parallel_size=tp,
        pipeline_parallel_size=pp,
        distributed_executor_backend=backend,
        **more,
    )


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[str]:
    """Its address."""
    import ray

    os.environ["PYTHONPATH"] = ROOT  # as a delivered engine directory: workers import tests too
    ray.init(address="local", num_cpus=2, resources={"cpu_slot": 4}, include_dashboard=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
    del os.environ["PYTHONPATH"]


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    started: list[Executor] = []

    def start(config: EngineConfig, runner: str = ECHO) -> Executor:
        if config.backend == "ray":
            request.getfixturevalue("ray_cluster")
        started.append(start_executor(config, SHAPE, runner))
        return started[-1]

    yield start
    for executor in started:
        executor.shutdown()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def wait_gone(pids: list[int]) -> None:
    """pytest's timeout ends it when one stays."""
    while not all(gone(pid) for pid in pids):
        time.sleep(0.05)


def check_health_until_it_fails(executor: Executor) -> None:
    while True:
        executor.check_health()
        time.sleep(0.05)


@pytest.mark.parametrize("backend", BACKENDS)
def test_contract(backend: Backend, start: Start) -> None:
    executor = start(config(backend))
    assert executor.world_size == 2
    assert executor.devices == ("cpu", "cpu")
    assert executor.collective("rank") == [0, 1]
    assert executor.collective("echo", {"a": (1, 2)}, "x") == [({"a": (1, 2)}, "x")] * 2
    assert executor.collective("sums", 10, timeout=60) == [(10, 0), (10, 10)]
    assert executor.collective("echo", b"x" * 3_000_000)[1] == (b"x" * 3_000_000,)
    executor.check_health()
    with pytest.raises(RankFailed, match="rank 1: ValueError: asked to fail at 1") as failed:
        executor.collective("fail", 1)
    assert failed.value.rank == 1
    for call in (executor.check_health, lambda: executor.collective("rank")):
        with pytest.raises(RankFailed, match="asked to fail at 1"):
            call()


@pytest.mark.parametrize("backend", ["inproc", "mp", RAY_IN_FULL])
def test_ranks_are_pp_rank_times_tp_plus_tp_rank(backend: Backend, start: Start) -> None:
    sums = start(config(backend, tp=2, pp=2)).collective("sums", 1)
    assert sums == [(1, 2), (1, 4), (5, 2), (5, 4)]


@pytest.mark.parametrize("backend", ["inproc", "mp", RAY_IN_FULL])
def test_a_rank_that_raises_is_named_though_the_others_wait_for_it(
    backend: Backend, start: Start
) -> None:
    executor = start(config(backend))
    with pytest.raises(RankFailed, match="rank 1: ValueError: asked to fail at 1"):
        executor.collective("fail_among_waiting", 1)


@pytest.mark.parametrize("backend", ["inproc", "mp", RAY_IN_FULL])
def test_a_hang_ends_at_the_deadline(backend: Backend, start: Start) -> None:
    executor = start(config(backend))
    with pytest.raises(RankFailed, match=r"rank 1: did not answer hang within 0\.5 s"):
        executor.collective("hang", 1, timeout=0.5)
    with pytest.raises(RankFailed, match="rank 1"):
        executor.check_health()


@pytest.mark.parametrize("backend", ["inproc", "mp", RAY_IN_FULL])
def test_shutdown_is_idempotent_and_final(backend: Backend, start: Start) -> None:
    executor = start(config(backend))
    pids = set(executor.collective("pid")) - {os.getpid()}
    executor.shutdown()
    executor.shutdown()
    wait_gone(list(pids))
    with pytest.raises(RankFailed, match="has been shut down"):
        executor.collective("rank")


@pytest.mark.parametrize("backend", ["inproc", "mp", RAY_IN_FULL])
def test_a_rank_that_cannot_be_built_fails_the_start(backend: Backend, start: Start) -> None:
    with pytest.raises(RankFailed, match="rank 1: RuntimeError: no memory at birth"):
        start(config(backend), STILLBORN)


@pytest.mark.parametrize("backend", PROCESSES)
def test_a_killed_rank_is_named_and_the_others_are_ended(backend: Backend, start: Start) -> None:
    executor = start(config(backend))
    pids = executor.collective("pid")
    with pytest.raises(RankFailed, match="rank 1: its (process was killed by SIGKILL|actor died)"):
        executor.collective("die_among_waiting", 1, timeout=60)
    wait_gone(pids)


@pytest.mark.parametrize("backend", ["mp", RAY_IN_FULL])
def test_an_idle_rank_that_dies_is_noticed_by_check_health(backend: Backend, start: Start) -> None:
    executor = start(config(backend))
    pids = executor.collective("pid")
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(RankFailed, match="rank 0"):
        check_health_until_it_fails(executor)
    wait_gone(pids)


@pytest.mark.parametrize("backend", ["mp", RAY_IN_FULL])
def test_a_hanging_rank_is_gone_after_shutdown(backend: Backend, start: Start) -> None:
    executor = start(config(backend))
    pids = executor.collective("pid")
    with pytest.raises(RankFailed):
        executor.collective("hang", 0, timeout=0.5)
    executor.shutdown()
    wait_gone(pids)


DRIVER = """
import sys
from engine.executor import start_executor
from tests.engine.echo_runner import ECHO
from tests.engine.test_executors import SHAPE, config
executor = start_executor(config(sys.argv[1]), SHAPE, ECHO)
print("ranks", *executor.collective("pid"), flush=True)
executor.collective("hang", 0)
"""


@pytest.mark.parametrize("backend", PROCESSES)
def test_a_driver_needs_no_main_guard_and_leaves_no_orphan_when_it_is_killed(
    backend: Backend, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    environment = {**os.environ, "PYTHONPATH": ROOT}
    if backend == "ray":
        environment["RAY_ADDRESS"] = request.getfixturevalue("ray_cluster")
    command = [sys.executable, str(script), backend]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as driver:
        assert driver.stdout is not None
        line = next(line for line in driver.stdout if line.startswith("ranks"))
        pids = [int(pid) for pid in line.split()[1:]]
        assert len(pids) == 2
        driver.kill()
    wait_gone(pids)  # one of them hangs in a call that would never return


def test_mp_environment_keeps_what_the_operator_set() -> None:
    ours = rank_environment({"OMP_NUM_THREADS": "7", "HOME": "/h"}, ranks=1)
    assert ours["OMP_NUM_THREADS"] == "7"
    assert ours["GLOO_SOCKET_IFNAME"] == "lo"
    assert ours["HOME"] == "/h"


def test_ray_actors_take_little_from_the_driver() -> None:
    from engine.executor.ray_actors import rank_env

    driver = {
        "PYTHONPATH": "/more",
        "GLOO_SOCKET_IFNAME": "eth9",
        "VLLM_HOST_IP": "10.0.0.1",
        "ENGINE_DEPLOYMENT": "cluster/model",
    }
    assert rank_env(driver) == {
        "PYTHONPATH": f"{ROOT}:/more",
        "ENGINE_DEPLOYMENT": "cluster/model",
    }
    assert rank_env({}) == {"PYTHONPATH": ROOT}


UNANSWERED = """
from engine.executor import ray_actors
from tests.engine.test_executors import SHAPE, config
ray_actors.CONNECT_S = 1.0
try:
    ray_actors.start_ray(config("ray"), SHAPE)
except ray_actors.PlacementError as error:
    print(error)
"""


def test_ray_does_not_wait_for_ever_for_a_cluster_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        environment = {**os.environ, "PYTHONPATH": ROOT, "RAY_ADDRESS": address}
        command = [sys.executable, "-c", UNANSWERED]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == f"the Ray cluster at {address} did not answer within 1 s\n"


def test_ray_refuses_at_once_what_the_cluster_cannot_hold(start: Start) -> None:
    needs = r"tp=7 x pp=1 needs 7 cpu_slot slots; .* has 4 \(.*: 4"
    with pytest.raises(PlacementError, match=needs):
        start(config("ray", tp=7))


def test_ray_gives_up_at_the_deadline_when_the_slots_are_taken(start: Start) -> None:
    start(config("ray", tp=1))
    with pytest.raises(PlacementError, match=r"needs 4 .* has 4 \(.*\), of which 3 are free"):
        start(config("ray", tp=4, start_timeout_s=1.0))


def test_whole_stages_are_asked_for_where_nodes_can_hold_them() -> None:
    assert plan_bundles([4, 4], tp=3, pp=2) == [3, 3]
    assert plan_bundles([1, 1, 1], tp=3, pp=1) == [1, 1, 1]
    assert plan_bundles([3, 3], tp=2, pp=3) == [1] * 6


def slots(*addresses: str) -> list[Slot]:
    return [Slot(index, address) for index, address in enumerate(addresses)]


def test_a_tp_group_stays_on_its_node_and_stages_follow_the_nodes() -> None:
    a, b = "10.0.0.2", "10.0.0.10"
    assert order_ranks(slots(b, a, b, a), tp=2, first_address=a) == [1, 3, 0, 2]
    assert order_ranks(slots(a, a, b, b), tp=2, first_address=b) == [2, 3, 0, 1]


def test_addresses_are_ordered_as_numbers_after_the_drivers() -> None:
    assert order_ranks(slots("10.0.0.10", "10.0.0.9", "10.0.0.1"), 1, "10.0.0.9") == [1, 2, 0]


def test_what_no_node_holds_whole_is_made_of_leftovers() -> None:
    a, b = "10.0.0.1", "10.0.0.2"
    ranks = order_ranks(slots(a, b, a, b, a, b), tp=2, first_address=a)
    assert ranks == [0, 2, 4, 5, 1, 3]


def test_slots_are_those_of_live_nodes() -> None:
    nodes = [
        {"NodeID": "x", "NodeManagerAddress": "10.0.0.1", "Alive": True, "Resources": {"GPU": 2.0}},
        {"NodeID": "y", "NodeManagerAddress": "10.0.0.2", "Alive": False, "Resources": {"GPU": 2}},
        {"NodeID": "z", "NodeManagerAddress": "10.0.0.3", "Alive": True, "Resources": {"CPU": 9.0}},
    ]
    assert slots_of(nodes, "GPU") == [RayNode("x", "10.0.0.1", 2)]


def test_too_few_says_how_many_there_are_and_where() -> None:
    nodes = [RayNode("x", "10.0.0.1", 2), RayNode("y", "10.0.0.2", 1)]
    assert too_few("tp=2 x pp=2 needs 4", "GPU", nodes) == (
        "tp=2 x pp=2 needs 4 GPU slots; the cluster has 3 (10.0.0.1: 2, 10.0.0.2: 1)"
    )
