"""Ranks in this process: one thread each, or none when there is only one rank."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from engine.communicators import PeerFailed, current, rank_device, thread_world
from engine.config import EngineConfig
from engine.executor.base import RUNNER, RankFailed
from engine.executor.worker import load_runner
from engine.shapes import ModelShape
from engine.step import Deferred

# After one rank failed the others are woken; this long they may take to say why.
SETTLE_S = 1.0


class InprocExecutor:
    """The ranks share this process's memory and one device.

    A single rank runs in the caller's own thread, so `timeout` cannot end it. A rank thread that
    hangs cannot be killed either: it is left behind as a daemon, and the executor is dead.
    """

    def __init__(
        self, config: EngineConfig, shape: ModelShape, runner: str = RUNNER, replica: int = 0
    ) -> None:
        tp, pp = config.tensor_parallel_size, config.pipeline_parallel_size
        device = rank_device(config.device, replica)
        self.world_size = config.world_size
        self._device = device
        self.devices = (str(device),) * self.world_size
        self._failure: RankFailed | None = None
        self._world = thread_world(tp, pp, device)
        self._carriers = [_carrier(self.world_size) for _ in range(self.world_size)]
        runner_class = load_runner(runner)
        self._runners: list[Any] = []
        starts = [_bind(runner_class, config, shape, context) for context in self._world.contexts]
        self._runners = self._call("start", starts).result(config.start_timeout_s)

    def submit(self, method: str, *args: Any) -> ThreadAnswers:
        self.check_health()
        return self._call(method, [_bind(getattr(one, method), *args) for one in self._runners])

    def collective(self, method: str, *args: Any, timeout: float | None = None) -> list[Any]:
        return self.submit(method, *args).result(timeout)

    def check_health(self) -> None:
        if self._failure is not None:
            raise self._failure

    def shutdown(self) -> None:
        self._failure = self._failure or RankFailed(0, "the executor has been shut down")
        for carrier in self._carriers:
            carrier.close()
        self._runners = []

    def _call(self, method: str, calls: list[Callable[[], Any]]) -> ThreadAnswers:
        carried = zip(self._carriers, calls, strict=True)
        answers = [carrier.submit(_bind(self._here, call)) for carrier, call in carried]
        return ThreadAnswers(self, method, answers)

    def _here(self, call: Callable[[], Any]) -> Any:
        with current(self._device):
            return call()

    def fail(self, method: str, answers: list[Future[Any]], timeout: float | None) -> RankFailed:
        """From now on every call raises what is returned here."""
        self._failure = self._failure or self._blame(method, answers, timeout)
        return self._failure

    def _blame(self, method: str, answers: list[Future[Any]], timeout: float | None) -> RankFailed:
        """The rank that failed by itself: the others only fail because they wait for it."""
        hung = not any(answer.done() and answer.exception() for answer in answers)
        first_pending = next((r for r, answer in enumerate(answers) if not answer.done()), 0)
        self._world.abort()
        if hung:
            return RankFailed(first_pending, f"did not answer {method} within {timeout:g} s")
        wait(answers, SETTLE_S)
        errors = {r: a.exception() for r, a in enumerate(answers) if a.done() and a.exception()}
        rank = min(errors, key=lambda r: isinstance(errors[r], PeerFailed))
        failure = RankFailed(rank, f"{type(errors[rank]).__name__}: {errors[rank]}")
        failure.__cause__ = errors[rank]
        return failure


@dataclass(frozen=True)
class ThreadAnswers:
    executor: InprocExecutor
    method: str
    answers: list[Future[Any]]

    def result(self, timeout: float | None = None) -> list[Any]:
        done, pending = wait(self.answers, timeout, return_when=FIRST_EXCEPTION)
        if pending or any(answer.exception() for answer in done):
            raise self.executor.fail(self.method, self.answers, timeout)
        late = [_resolve(Future(), _bind(_waited, answer.result())) for answer in self.answers]
        if any(answer.exception() for answer in late):
            raise self.executor.fail(self.method, late, timeout)
        return [answer.result() for answer in late]


def _waited(value: Any) -> Any:
    return value.wait() if isinstance(value, Deferred) else value


class _Caller:
    """The only rank: runs where it is called."""

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        return _resolve(Future(), call)

    def close(self) -> None:
        pass


class _RankThread:
    """A daemon thread, unlike those of ThreadPoolExecutor: one that hangs must not keep the
    interpreter from exiting."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        answer: Future[Any] = Future()
        self._calls.put((answer, call))
        return answer

    def close(self) -> None:
        # Freeing a rank takes a moment: an interpreter that exits meanwhile is aborted by C++.
        self._calls.put(None)
        self._thread.join(SETTLE_S)

    def _serve(self) -> None:
        while (item := self._calls.get()) is not None:
            _resolve(*item)


def _carrier(world_size: int) -> _Caller | _RankThread:
    return _Caller() if world_size == 1 else _RankThread()


def _bind(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    return lambda: function(*args)


def _resolve(answer: Future[Any], call: Callable[[], Any]) -> Future[Any]:
    try:
        answer.set_result(call())
    except Exception as error:  # noqa: BLE001 - whatever a rank raises is its answer
        answer.set_exception(error)
    return answer
