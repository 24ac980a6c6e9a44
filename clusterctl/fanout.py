"""One function over many hosts at once."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from clusterctl.errors import ClusterctlError

T = TypeVar("T")


@dataclass(frozen=True)
class Done(Generic[T]):
    host: str
    value: T


@dataclass(frozen=True)
class Failed:
    host: str
    error: ClusterctlError


Outcome = Done[T] | Failed


class _Work(Generic[T]):
    """What the threads share: the names still to do and the answers so far."""

    def __init__(self, names: Iterable[str], call: Callable[[str], T]) -> None:
        self.pending = deque(names)
        self.call = call
        self.answers: queue.SimpleQueue[tuple[str, Outcome[T] | BaseException]] = (
            queue.SimpleQueue()
        )

    def run(self) -> None:
        while self.pending:
            try:
                name = self.pending.popleft()
            except IndexError:
                return
            self.answers.put((name, self._answer(name)))

    def _answer(self, name: str) -> Outcome[T] | BaseException:
        try:
            return Done(name, self.call(name))
        except ClusterctlError as error:
            return Failed(name, error)
        except BaseException as error:  # noqa: BLE001  (raised again where the caller waits)
            self.pending.clear()
            return error


def fan_out(names: Iterable[str], call: Callable[[str], T], *, limit: int) -> dict[str, Outcome[T]]:
    """`call(name)` for every name, at most `limit` at once; the outcomes in the names' order.

    A ClusterctlError becomes that host's Failed. Anything else is a fault of ours: it is raised
    here, and nothing more is started. Ctrl-C likewise ends the wait at once: the threads are
    daemons, and what they still do ends when their transports are closed.
    """
    order = list(names)
    work = _Work(order, call)
    try:
        for _ in range(min(limit, len(order))):
            threading.Thread(target=work.run, daemon=True).start()
        outcomes = dict(_collect(work, len(order)))
    finally:
        work.pending.clear()
    return {name: outcomes[name] for name in order}


def _collect(work: _Work[T], count: int) -> Iterable[tuple[str, Outcome[T]]]:
    for _ in range(count):
        name, answer = work.answers.get()
        if isinstance(answer, BaseException):
            raise answer
        yield name, answer
