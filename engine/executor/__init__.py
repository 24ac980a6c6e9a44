"""The ranks, behind one verb (base.Executor), and their three carriers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from engine.executor.base import RUNNER, Executor

if TYPE_CHECKING:
    from engine.config import EngineConfig
    from engine.shapes import ModelShape


def start_executor(
    config: EngineConfig, shape: ModelShape, runner: str = RUNNER, replica: int = 0
) -> Executor:
    """Start the ranks of `config` and wait for all of them. On this host the devices that
    replicas before this one have taken are left to them.

    Each carrier is imported when it is asked for: only one of them needs Ray, and only one
    brings torch into this process. Raises RankFailed when a rank does not come up.
    """
    if config.backend == "ray":
        # Every rank's progress is a line of its own. Ray reads this while it is imported.
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")
        from engine.executor.ray_actors import start_ray

        return start_ray(config, shape, runner)
    if config.backend == "mp":
        from engine.executor.mp import start_processes

        return start_processes(config, shape, runner, replica)
    from engine.executor.inproc import InprocExecutor

    return InprocExecutor(config, shape, runner, replica)
