"""Ranks as Ray actors. Ray places them and watches them; it carries no call and no tensor."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

import engine
from engine import logs
from engine.config import EngineConfig
from engine.executor import placement, worker
from engine.executor.base import RUNNER, RankFailed
from engine.executor.control import ControlledExecutor
from engine.executor.placement import PlacementError, RayNode, Slot
from engine.executor.wire import Door
from engine.shapes import ModelShape

logger = logging.getLogger(__name__)

cluster: Any = ray  # the functions that report its state are untyped

CPU_SLOT = "cpu_slot"
# Whose rank a process is, for whoever looks at a node's processes; whether NCCL tells what it does.
CARRIED = ("ENGINE_DEPLOYMENT", "NCCL_DEBUG", "NCCL_DEBUG_SUBSYS")
CONNECT_S = 60.0  # how long the cluster may take to answer
# How many executors of this process live on the one connection to Ray that it may have.
_holders = 0
_joining = threading.Lock()
WATCH_S = 0.5  # how often the watching thread looks whether it should stop


class RankActor:
    """One rank, in the process that Ray made for it."""

    def host(self) -> str:
        """Where the other ranks reach this one."""
        return node_host()

    def run(self, spec: worker.RankSpec) -> None:
        """Be the rank; returns when the driver ends it."""
        logs.configure(rank=spec.rank)
        worker.run(spec)


def node_host() -> str:
    """This node's address: what its own environment says, else what Ray knows it by."""
    return os.environ.get("VLLM_HOST_IP") or str(cluster.util.get_node_ip_address())


def start_ray(config: EngineConfig, shape: ModelShape, runner: str = RUNNER) -> ControlledExecutor:
    """Place one actor a rank on this host's Ray cluster and start the ranks in them.

    Raises PlacementError when there is no cluster, or no room in it within `start_timeout_s`.
    """
    deadline = time.monotonic() + config.start_timeout_s
    actors = RankActors(holds_ray=_connect())
    try:
        hosts = actors.place(config, deadline)
        door = Door(socket.create_server((node_host(), 0)), secrets.token_bytes(32))
        for rank, host in enumerate(hosts):
            actors.run(
                worker.RankSpec(
                    rank=rank,
                    local_rank=0,  # Ray shows an actor its own devices only
                    host=host,
                    config=config,
                    shape=shape,
                    runner=runner,
                    driver=door.address,
                    authkey=door.authkey,
                )
            )
        actors.watch()
    except BaseException:
        actors.end(0.0)
        raise
    return ControlledExecutor(config.world_size, door, actors, config.start_timeout_s)


class RankActors:
    """control.Carrier of the actors and of the placement group that they live in."""

    def __init__(self, holds_ray: bool) -> None:
        self._holds_ray = holds_ray
        self._group: PlacementGroup | None = None
        self._actors: list[Any] = []
        self._runs: dict[Any, int] = {}
        self._ended: dict[int, str] = {}
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def place(self, config: EngineConfig, deadline: float) -> list[str]:
        """Make the actors, in rank order; the address of each one's node."""
        resource = _resource(config.device)
        nodes = placement.slots_of(cluster.nodes(), resource)
        tp, pp = config.tensor_parallel_size, config.pipeline_parallel_size
        bundles = placement.plan_bundles([node.slots for node in nodes], tp, pp)
        shortage = placement.too_few(f"tp={tp} x pp={pp} needs {tp * pp}", resource, nodes)
        if sum(node.slots for node in nodes) < tp * pp:
            raise PlacementError(shortage)
        self._group = placement_group([{resource: float(size)} for size in bundles], "PACK")
        if not self._group.wait(_left(deadline)):
            free = int(cluster.available_resources().get(resource, 0))
            raise PlacementError(f"{shortage}, of which {free} are free")
        slots = _slots(self._group, bundles, nodes)
        order = placement.order_ranks(slots, tp, str(cluster.util.get_node_ip_address()))
        self._actors = [_actor(self._group, bundle, resource) for bundle in order]
        return self._hosts(deadline)

    def run(self, spec: worker.RankSpec) -> None:
        self._runs[self._actors[spec.rank].run.remote(spec)] = spec.rank

    def watch(self) -> None:
        """From now on `ended` knows which actors are gone."""
        self._watcher.start()

    def ended(self) -> dict[int, str]:
        return dict(self._ended)

    def end(self, grace_s: float) -> None:
        deadline = time.monotonic() + grace_s
        while len(self._ended) < len(self._runs) and time.monotonic() < deadline:
            time.sleep(grace_s / 100)
        self._stop.set()
        if self._watcher.is_alive():  # Ray must not be shut down under it
            self._watcher.join()
        for actor in self._actors:
            ray.kill(actor)
        if self._group is not None:
            remove_placement_group(self._group)
        if self._holds_ray:
            _leave()
        self._actors, self._group, self._holds_ray = [], None, False

    def _hosts(self, deadline: float) -> list[str]:
        hosts: list[str] = []
        for rank, actor in enumerate(self._actors):
            try:
                hosts.append(ray.get(actor.host.remote(), timeout=_left(deadline)))
            except GetTimeoutError as error:
                raise RankFailed(rank, "its actor did not start in time") from error
            except RayError as error:
                raise RankFailed(rank, f"its actor did not start: {error}") from error
        return hosts

    def _watch(self) -> None:
        runs = dict(self._runs)
        while runs and not self._stop.is_set():
            done, _ = ray.wait(list(runs), timeout=WATCH_S)
            for reference in done:
                self._ended[runs.pop(reference)] = _how(reference)


def _actor(group: PlacementGroup, bundle: int, resource: str) -> Any:
    device = {"num_gpus": 1} if resource == "GPU" else {"resources": {resource: 1}}
    options = ray.remote(RankActor).options(
        num_cpus=0,
        max_restarts=0,
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, bundle),
        runtime_env={"env_vars": rank_env(os.environ)},
        **device,
    )
    return options.remote()


def rank_env(driver: Mapping[str, str]) -> dict[str, str]:
    """The little that an actor takes from the driver's environment; its own node says the rest.
    The engine's directory is first on the path: it may have been delivered as a plain one."""
    mine = str(Path(engine.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [mine, driver.get("PYTHONPATH")]))
    carried = {name: driver[name] for name in CARRIED if name in driver}
    return {"PYTHONPATH": path, **carried}


def _connect() -> bool:
    """Join the cluster of this host, once for all replicas of this process; false when the process
    had joined one by itself. Who got true must `_leave`."""
    global _holders
    with _joining:
        if _holders == 0 and ray.is_initialized():
            return False
        if _holders == 0:
            _join()
        _holders += 1
        return True


def _leave() -> None:
    global _holders
    with _joining:
        _holders -= 1
        if _holders == 0:
            ray.shutdown()


def _join() -> None:
    attempt: Future[None] = Future()
    threading.Thread(target=_join_cluster, args=(attempt,), daemon=True).start()
    try:
        attempt.result(CONNECT_S)
    except ConnectionError as error:
        raise PlacementError(
            "no Ray cluster runs on this host: start one (`ray start --head`), or choose "
            "another --distributed-executor-backend"
        ) from error
    except FutureTimeout as error:
        address = os.environ.get("RAY_ADDRESS", "this host")
        raise PlacementError(
            f"the Ray cluster at {address} did not answer within {CONNECT_S:g} s"
        ) from error


def _join_cluster(attempt: Future[None]) -> None:
    """In a thread: Ray waits for ever for a cluster that does not answer, and in the main thread
    it would take SIGTERM away from us."""
    try:
        ray.init(address="auto", logging_level=logging.ERROR)
    except Exception as error:  # noqa: BLE001 - for whoever waits
        attempt.set_exception(error)
    else:
        attempt.set_result(None)


def _resource(device: str) -> str:
    """GPUs where the cluster has any, unless the CPU was asked for."""
    return "GPU" if device != "cpu" and "GPU" in cluster.cluster_resources() else CPU_SLOT


def _slots(group: PlacementGroup, bundles: Sequence[int], nodes: Sequence[RayNode]) -> list[Slot]:
    homes = placement_group_table(group)["bundles_to_node_id"]
    addresses = {node.node_id: node.address for node in nodes}
    return [
        Slot(index, addresses[homes[index]])
        for index, size in enumerate(bundles)
        for _ in range(size)
    ]


def _how(reference: Any) -> str:
    try:
        ray.get(reference)
    except RayError as error:
        return f"its actor died: {error}"
    return "its actor ended"


def _left(deadline: float) -> float:
    return max(1.0, deadline - time.monotonic())
