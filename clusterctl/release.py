"""After nodes went away: watch their GPUs until the memory is back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from clusterctl import gpumemory
from clusterctl.events import Event, Report
from clusterctl.facts.types import HostFacts
from clusterctl.fanout import Done
from clusterctl.gpumemory import GpuMemory, Holder, Nodes
from clusterctl.session import Session

BACK_S = 30.0  # the driver takes back what dead processes held, some GiB a second
LOOK_S = 1.0


@dataclass(frozen=True)
class Released:
    """What became of the GPUs that the nodes had; `others`: who holds GPUs of these hosts and was
    never of the cluster."""

    gpus: tuple[GpuMemory, ...] = ()
    others: tuple[Holder, ...] = ()

    @property
    def held(self) -> tuple[GpuMemory, ...]:
        return tuple(one for one in self.gpus if one.back is False)

    @property
    def unknown(self) -> tuple[GpuMemory, ...]:
        return tuple(one for one in self.gpus if one.back is None)

    @property
    def back_mib(self) -> int:
        pairs = ((one.before_mib, one.after_mib) for one in self.gpus)
        return sum(max(0, was - now) for was, now in pairs if was is not None and now is not None)

    def __str__(self) -> str:
        """For people; empty where the nodes had no GPU."""
        if not self.gpus:
            return ""
        if self.held or self.unknown:
            worst = (self.held or self.unknown)[0]
            return f"GPU memory {'still held' if self.held else 'unknown'} ({worst})"
        return f"memory of {len(self.gpus)} GPUs back ({self.back_mib:,} MiB)"


def watch(
    session: Session,
    nodes: Mapping[str, Nodes],
    before: Mapping[str, HostFacts],
    after: Mapping[str, HostFacts],
    report: Report,
) -> Released:
    """All by host. `after` is looked at again until all memory is back, at most BACK_S seconds."""
    after, deadline = dict(after), time.monotonic() + BACK_S
    while True:
        known = [host for host in nodes if host in before and host in after]
        found = [
            one
            for host in known
            for one in gpumemory.compare(nodes[host], before[host], after[host])
        ]
        held = sorted({one.host for one in found if one.back is False})
        if not held or time.monotonic() > deadline:
            break
        report(Event("progress", "gpus", f"waiting for the memory of {', '.join(held)}"))
        time.sleep(LOOK_S)
        looks = session.each(session.facts_of, held)
        after |= {host: out.value for host, out in looks.items() if isinstance(out, Done)}
    holders = [one for host in known for one in gpumemory.others(nodes[host], after[host])]
    return Released(tuple(found), tuple(holders))
