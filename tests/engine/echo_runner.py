"""A Runner without a model: what the executors are tested with."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import torch

from engine.config import EngineConfig
from engine.parallel import ParallelContext
from engine.shapes import ModelShape

ECHO = "tests.engine.echo_runner:EchoRunner"
STILLBORN = "tests.engine.echo_runner:Stillborn"


class EchoRunner:
    def __init__(self, config: EngineConfig, shape: ModelShape, parallel: ParallelContext) -> None:
        self.config = config
        self.shape = shape
        self.parallel = parallel

    def echo(self, *values: Any) -> tuple[Any, ...]:
        return values

    def rank(self) -> int:
        return self.parallel.rank

    def pid(self) -> int:
        return os.getpid()

    def sums(self, value: int) -> tuple[int, int]:
        """rank * value, summed over the tp group and over the pp group."""
        mine = torch.tensor([self.parallel.rank * value])
        tp = self.parallel.tp.all_reduce(mine.clone())
        pp = self.parallel.pp.all_reduce(mine.clone())
        return int(tp), int(pp)

    def fail(self, rank: int) -> None:
        if self.parallel.rank == rank:
            raise ValueError(f"asked to fail at {rank}")

    def fail_among_waiting(self, rank: int) -> None:
        self.fail(rank)
        self.sums(1)

    def die_among_waiting(self, rank: int) -> None:
        if self.parallel.rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        self.sums(1)

    def hang(self, rank: int) -> None:
        if self.parallel.rank == rank:
            threading.Event().wait()


class Stillborn:
    def __init__(self, config: EngineConfig, shape: ModelShape, parallel: ParallelContext) -> None:
        if parallel.rank == 1:
            raise RuntimeError("no memory at birth")
