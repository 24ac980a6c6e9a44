"""Several engines of one model behind one server: a request goes to the one with the least work
waiting; one that dies is left out from then on, and the others go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from engine.config import EngineConfig
from engine.core import EngineCore, EngineDead
from engine.executor.base import RUNNER
from engine.outputs import Sample
from engine.scheduler import QueueFull
from engine.server.bridge import AsyncEngine, Generation, Watch


class Replicas:
    """What AsyncEngine is for one engine, for one or more. All is called in the event loop, except
    `stop`. `watches`: one for each core. `on_death` is called when the last engine has died."""

    def __init__(
        self,
        cores: Sequence[EngineCore],
        on_death: Callable[[], None] = lambda: None,
        watches: Sequence[Callable[[Sample], Watch]] | None = None,
    ) -> None:
        self._on_death = on_death
        watches = watches or [_unwatched] * len(cores)
        self._engines = [
            AsyncEngine(core, on_death=self._one_died, watch=watch)
            for core, watch in zip(cores, watches, strict=True)
        ]

    @property
    def dead(self) -> bool:
        return all(engine.dead for engine in self._engines)

    @property
    def busy(self) -> bool:
        return any(engine.busy for engine in self._engines)

    @property
    def max_model_len(self) -> int:
        return self._engines[0].max_model_len

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._engines[0].loop

    def start(self) -> None:
        for engine in self._engines:
            engine.start()

    def drain(self) -> None:
        for engine in self._engines:
            engine.drain()

    def stop(self) -> None:
        for engine in self._engines:
            engine.stop()

    async def close(self) -> None:
        await asyncio.gather(*(engine.close() for engine in self._engines))

    async def why_not_ready(self) -> list[str | None]:
        """Of each engine: None when it gives tokens now."""
        return await asyncio.gather(*(engine.why_not_ready() for engine in self._engines))

    async def submit(self, samples: Sequence[Sample]) -> Generation:
        """Where the least work waits; elsewhere, when that engine has no place or has just died.

        Raises ValueError, QueueFull, EngineDead or ShuttingDown, when every engine refuses.
        """
        refusal: Exception | None = None
        for engine in sorted(self._engines, key=lambda one: (one.dead, one.backlog())):
            try:
                return await engine.submit(samples)
            except (QueueFull, EngineDead) as error:
                refusal = refusal or error
        assert refusal is not None
        raise refusal

    def _one_died(self) -> None:
        if self.dead:
            self._on_death()


def _unwatched(_: Sample) -> Watch:
    return lambda *_: None


def start_replicas(config: EngineConfig, runner: str = RUNNER) -> list[EngineCore]:
    """The engines, all started at once. Raises what the first to fail raised; none is left then."""
    if config.data_parallel_size == 1:
        return [EngineCore(config, runner)]
    starting = [_start(config, runner, replica) for replica in range(config.data_parallel_size)]
    failures = [failure for one in starting if (failure := one.exception())]
    cores = [one.result() for one in starting if not one.exception()]
    if failures:
        for core in cores:
            core.shutdown()
        raise failures[0]
    return cores


def _start(config: EngineConfig, runner: str, replica: int) -> Future[EngineCore]:
    """In a daemon thread: an interrupt must not wait for it. Its ranks end with this process."""
    started: Future[EngineCore] = Future()

    def start() -> None:
        try:
            started.set_result(EngineCore(config, runner, replica))
        except Exception as error:  # noqa: BLE001 - for whoever waits
            started.set_exception(error)

    threading.Thread(target=start, daemon=True).start()
    return started
