"""This node's part in every deployment: it obeys orders, and says what it sees."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .files import Json, write_json
from .local import Local, Order
from .ranks import Ranks, kill

LOOK_S = 2.0  # reading the environment of every process costs

Orders = Mapping[str, Order]
# node, boot, deployments by name, ranks by owner; where it arrives: heard, by time.monotonic()
Report = dict[str, Any]


class Node:
    def __init__(self, name: str, boot: str, root: Path, stop_grace: float) -> None:
        self.name = name
        self.root = root
        self._boot = boot
        self._stop_grace = stop_grace
        self._locals: dict[str, Local] = {}
        self._cleared: dict[str, tuple[int, int]] = {}
        self._ranks = Ranks()
        self._looked_at = 0.0
        self._written: dict[str, Json] = {}

    def obey(self, orders: Orders) -> None:
        for name, order in orders.items():
            local = self._local(name)
            local.obey(order)
            if order.act == "clear" and local.group is None:
                self._clear(name, order)

    def report(self) -> Report:
        for spec in self.root.glob("*/spec.json"):
            self._local(spec.parent.name)
        if time.monotonic() - self._looked_at > LOOK_S:
            self._ranks.look()
            self._looked_at = time.monotonic()
        return {
            "node": self.name,
            "boot": self._boot,
            "deployments": {
                name: {**local.report(), "cleared": self._cleared.get(name)}
                for name, local in self._locals.items()
            },
            "ranks": self._ranks.by_owner,
        }

    def write_states(self) -> None:
        for name, local in self._locals.items():
            state = local.state()
            if state and state != self._written.get(name):
                write_json(self.root / name / "state.json", state)
                self._written[name] = state

    def end(self, grace: float) -> None:
        """All of it, asked at once."""
        running = [local for local in self._locals.values() if local.group is not None]
        for local in running:
            if local.group is not None:
                local.group.ask_to_end(grace)
        for local in running:
            local.end(grace)

    def _local(self, name: str) -> Local:
        if name not in self._locals:
            self._locals[name] = Local(self.root / name, self._stop_grace)
        return self._locals[name]

    def _clear(self, name: str, order: Order) -> None:
        """Done when a look finds nothing: what was just killed may take a moment to go."""
        if self._cleared.get(name) != order.life and not (order.owner and kill(order.owner)):
            self._cleared[name] = order.life
