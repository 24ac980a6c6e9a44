"""One rank of the model: weights, KV memory, forward, sample."""

from __future__ import annotations

from engine.config import EngineConfig
from engine.parallel import ParallelContext
from engine.shapes import ModelShape
from engine.step import Step, StepResult


class Runner:
    """The rank's side of `Executor.collective`. Order of calls: load_weights, measure_kv_blocks,
    allocate_kv (with the minimum over all ranks), then execute once a step, the same Step on
    every rank."""

    def __init__(self, config: EngineConfig, shape: ModelShape, parallel: ParallelContext) -> None:
        raise NotImplementedError

    def load_weights(self) -> None:
        """Read this rank's shard from the checkpoint. Raises WeightsError naming tensors."""
        raise NotImplementedError

    def kv_block_bytes(self) -> int:
        """Bytes that one KV block takes on this rank, all its layers together."""
        raise NotImplementedError

    def measure_kv_blocks(self) -> int:
        """How many KV blocks this rank has memory for. Call it after load_weights."""
        raise NotImplementedError

    def allocate_kv(self, num_blocks: int) -> None:
        """Take the KV memory. Every rank must be given the same number."""
        raise NotImplementedError

    def execute(self, step: Step) -> StepResult | None:
        """One step. The result on the one rank that samples (last stage, tp rank 0), else None."""
        raise NotImplementedError

    def ping(self) -> int:
        """The rank, as a sign of life."""
        raise NotImplementedError
