"""What one run made, so that exactly this can be undone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from clusterctl.errors import ClusterctlError

SETTLE_S = 30.0


@dataclass(frozen=True)
class Made:
    """One container that this run `created`, or `started` when it was there and stopped."""

    what: Literal["created", "started"]
    host: str
    container_id: str
    name: str


@dataclass
class Journal:
    """Written by many threads at once. After `close` nothing more is begun."""

    made: list[Made] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)  # nodes whose former container is gone
    _state: threading.Condition = field(default_factory=threading.Condition)
    _acting: int = 0
    _closed: bool = False

    @contextmanager
    def acting(self, host: str) -> Iterator[None]:
        """Around each change of a host, so that undoing starts when none is under way."""
        with self._state:
            if self._closed:
                raise ClusterctlError("this run was ended", host=host)
            self._acting += 1
        try:
            yield
        finally:
            with self._state:
                self._acting -= 1
                self._state.notify_all()

    def write(self, made: Made) -> None:
        with self._state:
            self.made.append(made)

    def close(self) -> bool:
        """Begin nothing more, and wait for what is under way. Whether all of it has ended."""
        with self._state:
            self._closed = True
            return self._state.wait_for(lambda: self._acting == 0, timeout=SETTLE_S)
