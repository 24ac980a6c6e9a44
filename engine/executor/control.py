"""The driver's end of ranks in other processes, whoever started them."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from engine.executor.base import RankFailed
from engine.executor.wire import Call, Door, Joined, Reply

logger = logging.getLogger(__name__)

# How often a wait looks whether a rank has died without its connection breaking.
LOOK_S = 0.5
# After one rank failed: how long the others may take to show that one of them was the cause.
SETTLE_S = 1.0
# How long a rank may take to end by itself before it is killed.
GRACE_S = 5.0


class Carrier(Protocol):
    """Who started the rank processes: knows which have ended, and can end them."""

    def ended(self) -> dict[int, str]:
        """How each rank that has ended did so. Does not wait."""
        ...

    def end(self, grace_s: float) -> None:
        """Return when every rank process is gone: killed, if it is still there after `grace_s`."""
        ...


class ControlledExecutor:
    """base.Executor over one control connection a rank.

    Raises RankFailed when a rank does not join or start within `timeout_s`; nothing is left
    running then.
    """

    def __init__(self, world_size: int, door: Door, carrier: Carrier, timeout_s: float) -> None:
        self.world_size = world_size
        self.devices: tuple[str, ...] = ()
        self._carrier = carrier
        self._connections: dict[int, Connection] = {}
        self._failure: RankFailed | None = None
        self._unanswered: deque[ControlAnswers] = deque()
        try:
            joined = self._join(door, time.monotonic() + timeout_s)
            meet = joined[0].host, joined[0].port
            self.devices = tuple(self.collective("start", *meet, timeout=timeout_s))
        except BaseException:  # an interrupt too: the ranks do not outlive a failed start
            self._end(0.0)
            raise
        finally:
            door.close()

    def submit(self, method: str, *args: Any) -> ControlAnswers:
        self.check_health()
        try:
            self._send(Call(method, args))
        except RankFailed as failure:
            self._fail(failure)
            raise
        self._unanswered.append(ControlAnswers(self, method))
        return self._unanswered[-1]

    def collective(self, method: str, *args: Any, timeout: float | None = None) -> list[Any]:
        return self.submit(method, *args).result(timeout)

    def receive(self, answers: ControlAnswers, timeout: float | None) -> list[Any]:
        """What all ranks answer to the oldest call, which must be that of `answers`."""
        if self._failure is not None:
            raise self._failure
        assert answers is self._unanswered.popleft()
        try:
            return self._receive(answers.method, timeout)
        except RankFailed as failure:
            self._fail(failure)
            raise

    def check_health(self) -> None:
        if self._failure is None and (ended := self._carrier.ended()):
            self._fail(_first(ended))
        if self._failure is not None:
            raise self._failure

    def shutdown(self) -> None:
        if self._failure is not None:
            return
        self._failure = RankFailed(0, "the executor has been shut down")
        for connection in self._connections.values():
            _post(connection, None)
        self._end(GRACE_S)

    def _join(self, door: Door, deadline: float) -> dict[int, Joined]:
        joined: dict[int, Joined] = {}
        while len(joined) < self.world_size:
            if ended := self._carrier.ended():
                raise _first(ended)
            if time.monotonic() > deadline:
                raise _absent(set(range(self.world_size)) - set(joined), "did not join in time")
            if connection := door.admit(LOOK_S):
                hello: Joined = connection.recv()
                joined[hello.rank] = hello
                self._connections[hello.rank] = connection
        return joined

    def _send(self, call: Call) -> None:
        lost = [rank for rank, end in self._connections.items() if not _post(end, call)]
        if lost:
            raise self._blame(dict.fromkeys(lost, "the connection is lost"))

    def _receive(self, method: str, timeout: float | None) -> list[Any]:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        waiting = {end: rank for rank, end in self._connections.items()}
        answers: dict[int, Any] = {}
        while waiting:
            failures = _collect(waiting, answers, min(LOOK_S, deadline - time.monotonic()))
            failures |= self._carrier.ended()
            if failures:
                raise self._blame(failures)
            if waiting and time.monotonic() > deadline:
                absent = set(waiting.values())
                raise _absent(absent, f"did not answer {method} within {timeout:g} s")
        return [answers[rank] for rank in range(self.world_size)]

    def _blame(self, failures: dict[int, str]) -> RankFailed:
        """A rank that died makes its peers raise, often before its own death shows: wait a moment
        for it. Else the first that was noticed."""
        deadline = time.monotonic() + SETTLE_S
        while not (ended := self._carrier.ended()) and time.monotonic() < deadline:
            time.sleep(SETTLE_S / 20)
        return _first(ended or failures)

    def _fail(self, failure: RankFailed) -> None:
        logger.error("%s", failure)
        self._failure = failure
        self._end(0.0)

    def _end(self, grace_s: float) -> None:
        self._carrier.end(grace_s)
        for connection in self._connections.values():
            connection.close()


@dataclass(frozen=True, eq=False)
class ControlAnswers:
    executor: ControlledExecutor
    method: str

    def result(self, timeout: float | None = None) -> list[Any]:
        return self.executor.receive(self, timeout)


def _collect(
    waiting: dict[Connection, int], answers: dict[int, Any], timeout: float
) -> dict[int, str]:
    """Move the answers that have come from `waiting` to `answers`; what failed, by rank."""
    failures: dict[int, str] = {}
    for ready in wait(list(waiting), max(timeout, 0.0)):
        assert isinstance(ready, Connection)
        rank = waiting.pop(ready)
        reply = _read(ready)
        if reply.error is None:
            answers[rank] = reply.value
        else:
            failures[rank] = reply.error
    return failures


def _read(connection: Connection) -> Reply:
    try:
        reply: Reply = connection.recv()
    except (EOFError, OSError):
        return Reply(error="the connection is lost")
    return reply


def _post(connection: Connection, message: Call | None) -> bool:
    """False when nobody is at the other end any more."""
    try:
        connection.send(message)
    except OSError:
        return False
    return True


def _first(failures: dict[int, str]) -> RankFailed:
    rank = next(iter(failures))
    return RankFailed(rank, failures[rank])


def _absent(ranks: set[int], what: str) -> RankFailed:
    others = ", ".join(str(rank) for rank in sorted(ranks)[1:])
    return RankFailed(min(ranks), f"{what} (nor did rank {others})" if others else what)
