"""What acting code says while it works. Values only: console decides how they look."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["begin", "progress", "done", "note", "warn", "line"]


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    `step` is the stage ("connect", "facts", "pull", "create", "ray", "formation", "sanity",
    "serve", ...); `host` the node's name or None for the cluster; `done`/`total` count units
    of `progress` (bytes for pulls, nodes for formation). `line` carries a log line of a node.
    """

    kind: Kind
    step: str
    message: str = ""
    host: str | None = None
    done: int | None = None
    total: int | None = None


@dataclass(frozen=True)
class Stage:
    """How many seconds a step took, over all and on each host that had a part in it."""

    step: str
    seconds: float
    hosts: Mapping[str, float] = field(default_factory=dict)


Report = Callable[[Event], None]


def silent(_: Event) -> None:
    """A Report for callers who do not watch."""
