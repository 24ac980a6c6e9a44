"""Ranks as processes of this host."""

from __future__ import annotations

import os
import pickle
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from engine.config import EngineConfig
from engine.executor.base import RUNNER
from engine.executor.control import ControlledExecutor
from engine.executor.wire import Door, unix_server
from engine.executor.worker import RankSpec
from engine.shapes import ModelShape

LOOPBACK = "127.0.0.1"


def start_processes(
    config: EngineConfig, shape: ModelShape, runner: str = RUNNER, replica: int = 0
) -> ControlledExecutor:
    """One fresh interpreter a rank. (Not multiprocessing's spawn: that runs the caller's script
    again in every rank, and breaks on a script without a `__main__` guard.)"""
    authkey = secrets.token_bytes(32)
    with tempfile.TemporaryDirectory(prefix="engine-") as private:
        path = str(Path(private) / "control")
        door = Door(unix_server(path), authkey)
        specs = [
            RankSpec(
                rank=rank,
                local_rank=replica * config.world_size + rank,
                host=LOOPBACK,
                config=config,
                shape=shape,
                runner=runner,
                driver=path,
                authkey=authkey,
            )
            for rank in range(config.world_size)
        ]
        processes = LocalProcesses(specs, rank_environment(os.environ, config.total_ranks))
        return ControlledExecutor(config.world_size, door, processes, config.start_timeout_s)


def rank_environment(environment: Mapping[str, str], ranks: int) -> dict[str, str]:
    """What the ranks of one host get: this interpreter's import path, gloo on the loopback, and a
    fair share of the cores. What the operator has set stays."""
    cores = max(1, len(os.sched_getaffinity(0)) // ranks)
    defaults = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": str(cores)}
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {**defaults, **environment, "PYTHONPATH": path}


class LocalProcesses:
    """control.Carrier of child processes, ranked in order of `specs`."""

    def __init__(self, specs: list[RankSpec], environment: Mapping[str, str]) -> None:
        self._children = [_start(spec, environment) for spec in specs]

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(child.pid for child in self._children)

    def ended(self) -> dict[int, str]:
        codes = {rank: child.poll() for rank, child in enumerate(self._children)}
        return {rank: _how(code) for rank, code in codes.items() if code is not None}

    def end(self, grace_s: float) -> None:
        deadline = time.monotonic() + grace_s
        for child in self._children:
            _end(child, max(0.0, deadline - time.monotonic()))


def _start(spec: RankSpec, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-m", "engine.executor.worker"],
        stdin=subprocess.PIPE,
        env=dict(environment),
    )
    assert child.stdin is not None
    with child.stdin:
        pickle.dump(spec, child.stdin)
    return child


def _end(child: subprocess.Popen[bytes], grace_s: float) -> None:
    try:
        child.wait(grace_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _how(code: int) -> str:
    if code < 0:
        return f"its process was killed by {signal.Signals(-code).name}"
    return f"its process exited with code {code}"
