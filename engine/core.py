"""The engine without a front: requests in, tokens out, one step at a time."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from engine.checkpoint import checkpoint_directory
from engine.config import EngineConfig
from engine.executor import start_executor
from engine.executor.base import RUNNER, Answers, RankFailed
from engine.kv_cache import KVCache
from engine.request import Output, Request
from engine.scheduler import Scheduler
from engine.shapes import ModelShape, read_shape
from engine.step import StepResult

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class EngineDead(RuntimeError):
    """A rank failed: every request in flight is lost, and the engine takes no more."""


@dataclass(frozen=True)
class Load:
    """How busy an engine is. `kv_free` counts the blocks that no request holds."""

    running: int
    waiting: int
    kv_blocks: int
    kv_free: int

    @property
    def kv_usage(self) -> float:
        return 1 - self.kv_free / self.kv_blocks


class EngineCore:
    """Starts the ranks, loads the model, and steps. Not thread-safe: one thread drives it.
    `replica` counts the engines that share this host's devices.

    Raises ShapeError, ValueError or RankFailed when it cannot start; no rank is left then.
    """

    def __init__(self, config: EngineConfig, runner: str = RUNNER, replica: int = 0) -> None:
        config = self.config = config.completed(os.environ)
        self.shape = read_shape(checkpoint_directory(config.model))
        self.shape.check_split(
            config.tensor_parallel_size,
            config.pipeline_parallel_size,
            config.enable_expert_parallel,
        )
        self.shape.partition(config.pipeline_parallel_size, config.pipeline_partition)
        self.max_model_len = _max_model_len(config, self.shape)
        self.dead: EngineDead | None = None
        self._in_flight: deque[Answers] = deque()
        self._executor = start_executor(config, self.shape, runner, replica)
        try:
            self._scheduler = self._load()
        except BaseException:  # an interrupt too: the ranks do not outlive a failed start
            self._executor.shutdown()
            raise

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work or bool(self._in_flight)

    def add(self, request: Request) -> None:
        """Raises ValueError when it can never run, QueueFull when it cannot now, EngineDead when
        nothing can any more."""
        self._check_alive()
        self._check_ids("the prompt", request.prompt_token_ids)
        self._check_ids("stop_token_ids", request.sampling.stop_token_ids)
        self._check_ids("logit_bias", [token_id for token_id, _ in request.sampling.logit_bias])
        self._scheduler.add(request)

    def abort(self, request_ids: Iterable[str]) -> list[Output]:
        """End these requests now. Those that had already ended are passed over."""
        ended = [self._scheduler.abort(request_id) for request_id in request_ids]
        return [output for output in ended if output is not None]

    def step(self) -> list[Output]:
        """Start as many steps as may be in flight, and take over the oldest of them. Raises
        EngineDead when a rank fails."""
        self._check_alive()
        while len(self._in_flight) < self._depth and (step := self._scheduler.schedule()):
            self._in_flight.append(self._guarded(self._executor.submit, "execute", step))
        if not self._in_flight:
            return []
        oldest = self._in_flight.popleft()
        answers = self._guarded(oldest.result, self.config.step_timeout_s)
        result: StepResult = answers[-self.config.tensor_parallel_size]  # last stage, tp rank 0
        return self._scheduler.commit(result)

    def load(self) -> Load:
        """Safe to call from any thread."""
        scheduler, cache = self._scheduler, self._scheduler.kv_cache
        return Load(scheduler.num_running, scheduler.num_waiting, cache.num_blocks, cache.num_free)

    def check_health(self) -> None:
        """Raises EngineDead when a rank is known to be dead. Does not wait."""
        self._check_alive()
        try:
            self._executor.check_health()
        except RankFailed as failure:
            raise self._die(failure) from failure

    def shutdown(self) -> None:
        """End the ranks. Idempotent."""
        self._executor.shutdown()

    def _guarded(self, call: Callable[..., Result], *args: Any) -> Result:
        try:
            return call(*args)
        except RankFailed as failure:
            raise self._die(failure) from failure
        except BaseException:
            # Ctrl-C: the late answers of this step would be taken for the next one's.
            self.dead = EngineDead("it was interrupted in the middle of a step")
            self._in_flight.clear()
            self._executor.shutdown()
            raise

    def _die(self, failure: RankFailed) -> EngineDead:
        self.dead = EngineDead(str(failure))
        self._in_flight.clear()
        return self.dead

    def _check_alive(self) -> None:
        if self.dead is not None:
            raise self.dead

    def _check_ids(self, what: str, ids: Iterable[int]) -> None:
        vocab = self.shape.vocab_size
        if foreign := [one for one in ids if not 0 <= one < vocab]:
            raise ValueError(f"{what}: token id {foreign[0]} is not in 0 to {vocab - 1}")

    def _load(self) -> Scheduler:
        began = time.monotonic()
        logger.info("Loading weights: %s", self.config.model)
        self._executor.collective("load_weights")
        logger.info("Loading weights took %.1f s", time.monotonic() - began)
        num_blocks = self._kv_blocks()
        lookahead, self._depth = self._overlap()
        scheduler = Scheduler(
            KVCache(num_blocks, self.config.block_size, self.config.enable_prefix_caching),
            max_num_seqs=self.config.max_num_seqs,
            max_num_batched_tokens=self.config.max_num_batched_tokens,
            max_model_len=self.max_model_len,
            eos_token_ids=self.shape.eos_token_ids,
            lookahead=lookahead,
            microbatches=self.config.pipeline_parallel_size,
            max_queued=self.config.max_queued_requests,
        )
        self._executor.collective("allocate_kv", num_blocks)
        self._report(num_blocks)
        return scheduler

    def _overlap(self) -> tuple[bool, int]:
        """Whether tokens are computed before the one they follow is known here, and how many
        steps are in flight: one a stage of a pipeline, else one that runs and one that follows.

        Only the last stage knows what was sampled, so that a pipeline cannot look ahead.
        """
        if self.config.pipeline_parallel_size > 1:
            return False, self.config.pipeline_parallel_size
        wanted = self.config.async_scheduling
        ahead = self._executor.devices[0] != "cpu" if wanted is None else wanted
        return ahead, 2 if ahead else 1

    def _kv_blocks(self) -> int:
        """The minimum over the ranks: block numbers mean the same on each of them."""
        return int(min(self._executor.collective("measure_kv_blocks")))

    def _report(self, num_blocks: int) -> None:
        tokens = num_blocks * self.config.block_size
        device = "CPU" if self._executor.devices[0] == "cpu" else "GPU"  # that holds the cache
        logger.info("# %s blocks: %d", device, num_blocks)
        logger.info("%s KV cache size: %s tokens", device, f"{tokens:,}")
        logger.info(
            "Maximum concurrency for %s tokens per request: %.2fx",
            f"{self.max_model_len:,}",
            tokens / self.max_model_len,
        )


def _max_model_len(config: EngineConfig, shape: ModelShape) -> int:
    if config.max_model_len is None:
        return shape.max_position
    if config.max_model_len > shape.max_position:
        raise ValueError(
            f"max_model_len ({config.max_model_len}) is more than the {shape.max_position} "
            f"positions that the model was made for"
        )
    return config.max_model_len
