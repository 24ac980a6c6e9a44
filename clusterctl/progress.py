"""What a run looks like while it happens. PURE: Events in, the rows and stage times to show out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from clusterctl.events import Event, Stage

TELL_EVERY_S = 10.0

RowState = Literal["running", "done", "warned"]
_STATES: dict[str, RowState] = {"done": "done", "warn": "warned"}
_TIMED = ("begin", "progress", "done")


@dataclass(frozen=True)
class Row:
    """One host (None: the cluster) as it stands: its newest step, and how far that is."""

    host: str | None
    step: str
    message: str
    state: RowState
    since: float
    done: int | None = None
    total: int | None = None


@dataclass
class Board:
    """Rows by host in order of appearance; first and last moment of each step on each host, in
    seconds; when a host's progress was last told as a line."""

    rows: dict[str | None, Row] = field(default_factory=dict)
    spans: dict[str, dict[str | None, tuple[float, float]]] = field(default_factory=dict)
    told: dict[str | None, float] = field(default_factory=dict)

    def update(self, event: Event, now: float) -> None:
        if event.kind in _TIMED or event.step in self.spans:  # what is only remarked on is no step
            of_step = self.spans.setdefault(event.step, {})
            first, _ = of_step.get(event.host, (now, now))
            of_step[event.host] = (first, now)
        if event.kind in ("begin", "progress", "done", "warn"):
            self.rows[event.host] = self._row(event, now)

    def _row(self, event: Event, now: float) -> Row:
        before = self.rows.get(event.host)
        same = before is not None and before.step == event.step and before.state == "running"
        row = Row(
            host=event.host,
            step=event.step,
            message=event.message,
            state=_STATES.get(event.kind, "running"),
            since=before.since if before and same else now,
            done=event.done,
            total=event.total,
        )
        if not event.message and before and same:
            return replace(row, message=before.message)
        return row

    def due(self, event: Event, now: float) -> bool:
        """Whether a reader of plain lines should see it: of `progress` only now and then."""
        if event.kind != "progress":
            return True
        if now - self.told.get(event.host, now - TELL_EVERY_S) < TELL_EVERY_S:
            return False
        self.told[event.host] = now
        return True

    def shown(self, limit: int) -> tuple[list[Row], int]:
        """At most `limit` rows, those at work first, and how many were left out."""
        rows = sorted(self.rows.values(), key=lambda row: row.state == "done")
        return rows[:limit], max(0, len(rows) - limit)

    def stages(self) -> list[Stage]:
        """In the order they began. Steps that overlap each count in full."""
        return [_stage(step, spans) for step, spans in self.spans.items()]


def _stage(step: str, spans: Mapping[str | None, tuple[float, float]]) -> Stage:
    """A host of which nothing but the end was told began with the step."""
    begun = min(first for first, _ in spans.values())
    ended = max(last for _, last in spans.values())
    hosts = {
        host: round(last - (first if first < last else begun), 3)
        for host, (first, last) in spans.items()
        if host
    }
    return Stage(step, round(ended - begun, 3), hosts)
