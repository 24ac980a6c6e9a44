"""What every rank said in the collective check, and who is to blame. PURE."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clusterctl.errors import NotReady
from clusterctl.fanout import Failed, Outcome
from clusterctl.raycluster import ExpectedNode
from clusterctl.transport.base import Result


@dataclass(frozen=True)
class RankVerdict:
    """One line of engine.sanity. `busbw_gb_s` in 1e9 bytes a second; `links`: the ways that NCCL's
    channels take, as (from rank, to rank, transport)."""

    rank: int
    step: str
    ok: bool
    seconds: float
    busbw_gb_s: float | None
    detail: str
    missing: tuple[int, ...]
    transports: tuple[str, ...]
    device: str = ""
    tflops: float | None = None
    memory_gb_s: float | None = None
    links: tuple[tuple[int, int, str], ...] = ()
    latency_us: float | None = None


@dataclass(frozen=True)
class SanityReport:
    """What all ranks said. `hosts` holds the node of each rank, in rank order."""

    hosts: tuple[str, ...]
    verdicts: tuple[RankVerdict, ...]
    lost: Mapping[str, str]  # nodes whose launcher did not answer, and why

    @property
    def passed(self) -> bool:
        all_ok = all(verdict.ok for verdict in self.verdicts)
        return all_ok and not self.lost and not self.unfinished

    @property
    def unfinished(self) -> set[int]:
        """Ranks that did not come to the last step."""
        done = {verdict.rank for verdict in self.verdicts if verdict.step == "bandwidth"}
        return set(range(len(self.hosts))) - done

    @property
    def busbw_gb_s(self) -> float | None:
        """Of the slowest rank; None for a single one."""
        speeds = [v.busbw_gb_s for v in self.verdicts if v.busbw_gb_s is not None]
        return min(speeds, default=None)

    @property
    def transports(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for v in self.verdicts for name in v.transports))

    def summary(self) -> str:
        speed = self.busbw_gb_s
        parts = [f"{len(self.hosts)} ranks", f"{speed:.2f} GB/s" if speed is not None else ""]
        return ", ".join(filter(None, [*parts, *self.transports]))


def gather(nodes: Sequence[ExpectedNode], outcomes: Mapping[str, Outcome[Result]]) -> SanityReport:
    hosts = tuple(node.name for node in nodes for _ in range(node.devices))
    verdicts: list[RankVerdict] = []
    lost: dict[str, str] = {}
    for name, outcome in outcomes.items():
        if isinstance(outcome, Failed):
            lost[name] = outcome.error.message
            continue
        said = parse_verdicts(outcome.value.stdout)
        verdicts.extend(said)
        if not said:
            words = (outcome.value.stderr or outcome.value.stdout).strip().splitlines()
            code = outcome.value.exit_code
            lost[name] = f"the check exited {code}: {words[-1] if words else 'no output'}"
    return SanityReport(hosts, tuple(verdicts), lost)


def parse_verdicts(output: str) -> list[RankVerdict]:
    lines = (line for line in output.splitlines() if line.startswith("{"))
    return [_verdict(json.loads(line)) for line in lines]


def _verdict(said: Mapping[str, Any]) -> RankVerdict:
    lists = {name: tuple(said[name]) for name in ("missing", "transports")}
    links = tuple((start, end, via) for start, end, via in said["links"])
    return RankVerdict(**{**said, **lists, "links": links})


def failure(found: SanityReport) -> NotReady:
    """The earliest cause: a node that did not answer, a rank that others waited for, a rank that
    failed by itself. What peers say of a collective that broke under them comes last."""
    for name, why in found.lost.items():
        return NotReady(f"the collective check did not end: {why}", host=name, hint=_HINT_NODE)
    failed = [verdict for verdict in found.verdicts if not verdict.ok]
    absent = {rank for v in failed for rank in v.missing} if failed else found.unfinished
    own = [verdict for verdict in failed if not verdict.missing]
    blamed = [verdict for verdict in own if verdict.rank in absent] or ([] if absent else own)
    if blamed:
        return _rank_failed(found, blamed[0])
    return _rank_missing(found, sorted(absent), [v for v in failed if v.missing])


def _rank_failed(found: SanityReport, verdict: RankVerdict) -> NotReady:
    host = found.hosts[verdict.rank]
    others = len({v.rank for v in found.verdicts if not v.ok}) - 1
    also = f" ({others} more ranks failed)" if others else ""
    return NotReady(
        f'rank {verdict.rank} ({host}) failed in "{verdict.step}": {verdict.detail}{also}',
        host=host,
        hint=_HINTS.get(verdict.step, _HINT_NODE),
    )


def _rank_missing(
    found: SanityReport, absent: Sequence[int], waiting: Sequence[RankVerdict]
) -> NotReady:
    names = ", ".join(f"{rank} ({found.hosts[rank]})" for rank in absent)
    step = waiting[0].step if waiting else "rendezvous"
    waited = ", ".join(sorted({found.hosts[verdict.rank] for verdict in waiting}))
    return NotReady(
        f'rank {names} did not reach "{step}"; {waited or "nobody"} waited for it',
        host=", ".join(dict.fromkeys(found.hosts[rank] for rank in absent)) or None,
        hint=_HINTS.get(step, _HINT_NODE),
    )


_HINT_NODE = "clusterctl logs shows what the node's container printed"
_HINT_TCP = (
    "the nodes must reach each other on every TCP port of their private addresses: "
    "check firewalls between them, and that `network.interface` names the right NIC"
)
_HINTS = {
    "rendezvous": _HINT_TCP,
    "gloo all_reduce": _HINT_TCP,
    "NCCL all_reduce": "check the NIC that NCCL chose (NCCL_SOCKET_IFNAME, NCCL_IB_HCA in `env:`), "
    "and that driver and NCCL are of one version on all hosts",
    "bandwidth": "small messages pass and large ones do not: compare the MTU of all NICs",
}
