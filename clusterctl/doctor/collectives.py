"""Checks of what all_reduce gave, over all devices and over those of each pair of hosts
(`doctor --deep`). PURE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from clusterctl.doctor.check import Answer, Check, Evidence, Said, check, fail, ok, skip, warn
from clusterctl.doctor.isolate import Way, isolate
from clusterctl.doctor.subject import Plan
from clusterctl.sanityreport import SanityReport, failure
from clusterctl.serving.transports import TCP

# What goes wrong in a step is told by it: what came before has worked.
_CAUSES = {
    "rendezvous": "firewall-blocks-port",
    "gloo all_reduce": "firewall-blocks-port",
    "NCCL all_reduce": "nccl-timeout-fabric-suspected",
    "bandwidth": "mtu-mismatch",
}

# Of the link's rate. NCCL fills most of an RDMA link, and through host memory half of it; a few
# sockets fill a part of a fast one; gloo is bound by the processor.
_SHARES = {"GDRDMA": 1 / 2, "RDMA": 1 / 4, "socket": 1 / 10, "gloo": 1 / 100}
SLOW_BESIDE_BEST = 1 / 20  # of the best pair, whatever the links: busy hosts differ less


@dataclass(frozen=True)
class HostLinks:
    """What a host's links carry, Gbit/s: its interface in use, and each RDMA port that is up. None:
    not known."""

    interface: float | None = None
    rdma: tuple[float | None, ...] = ()

    def rate(self, transport: str, devices: int) -> float | None:
        """Of what `devices` of this host can fill together: an RDMA port each."""
        if not _is_rdma(transport):
            return self.interface
        known = sorted((one for one in self.rdma if one is not None), reverse=True)
        return sum(known[:devices]) or None


@dataclass(frozen=True)
class Collectives:
    """`whole`: over every device; None: it was not run, because of `reason`. `pairs`: by the names
    of two hosts, over the devices of both. `busy`: what is being served, beside which no speed
    means anything. `refused`: why it could not even be started, on which host, and the fix."""

    whole: SanityReport | None = None
    reason: str = "no node of the cluster runs: clusterctl up"
    pairs: Mapping[Way, SanityReport] = field(default_factory=dict)
    links: Mapping[str, HostLinks] = field(default_factory=dict)
    plans: Sequence[Plan] = ()
    busy: str | None = None
    refused: tuple[str, str | None, str | None] | None = None
    name: str | None = None


# --- does it work? -------------------------------------------------------------------------------


@check(
    "collective.whole",
    "All devices compute one sum together",
    scope="cluster",
    tags=("deep",),
)
def whole(seen: Collectives) -> Iterator[Answer]:
    """A deployment is one collective after the other: what does not pass this check does not serve.
    Every step of every rank has a deadline, so that one that hangs is named and not waited for."""
    if seen.refused is not None:
        message, host, fix = seen.refused
        yield fail(message, fix, host=host)
    elif seen.whole is None:
        yield skip(seen.reason)
    elif seen.whole.passed:
        yield ok(_passed(seen.whole))
    else:
        yield from _failed(seen.whole)


def _passed(found: SanityReport) -> str:
    small = max((v.latency_us for v in found.verdicts if v.latency_us is not None), default=None)
    return found.summary() + (f", small messages {small:.0f} us" if small is not None else "")


def _failed(found: SanityReport) -> Iterator[Answer]:
    """One answer a host to blame."""
    error = failure(found)
    hosts = error.host.split(", ") if error.host else [None]
    for host in hosts:
        last = _last_words(found, host)
        yield fail(
            error.message,
            error.hint,
            host=host,
            cause=_cause(found, host),
            evidence=Evidence(last) if last else None,
            values={"rank": _ranks(found, host)},
        )


def _last_words(found: SanityReport, host: str | None) -> str | None:
    """What the host's own ranks said last of their failure."""
    if host is not None and host in found.lost:
        return found.lost[host]
    own = [v for v in found.verdicts if not v.ok and found.hosts[v.rank] == host]
    return f"rank {own[-1].rank}: {own[-1].detail}" if own and own[-1].detail else None


def _ranks(found: SanityReport, host: str | None) -> str:
    bad = {v.rank for v in found.verdicts if not v.ok} | found.unfinished
    return " ".join(str(rank) for rank in sorted(bad) if found.hosts[rank] == host)


def _cause(found: SanityReport, host: str | None) -> str:
    if host in found.lost:
        return "ranks-never-started"
    own = [v for v in found.verdicts if not v.ok and found.hosts[v.rank] == host]
    if any("was killed" in v.detail for v in own):
        return "rank-hung"
    step = next((v.step for v in found.verdicts if not v.ok), "rendezvous")
    return _CAUSES.get(step, "gpu-bad-or-still-held")


@check(
    "collective.pairs",
    "Every pair of hosts computes a sum by itself",
    scope="pair",
    tags=("deep",),
)
def pairs(seen: Collectives) -> Iterator[Answer]:
    """One bad host or cable breaks the collective of all. Which one it is, pairs tell: a host that
    fails with every other is to blame, a pair that fails alone is the way between the two."""
    if not seen.pairs or seen.whole in seen.pairs.values():
        yield skip(seen.reason if seen.whole is None else "there are no two pairs of hosts")
        return
    failed = {way: report for way, report in seen.pairs.items() if not report.passed}
    blame = isolate(_both(failed), _both(seen.pairs))
    for host in blame.hosts:
        first = next(report for way, report in failed.items() if host in way)
        yield _bad(first, host, f"it fails with every other host: {failure(first).message}")
    for way in blame.ways:
        if way in failed:
            words = f"it fails with {way[1]} alone: {failure(failed[way]).message}"
            yield _bad(failed[way], way[0], words, {"from": way[0], "to": way[1]})
    if not failed:
        yield ok(f"{len(seen.pairs)} pairs")


def _both(ways: Mapping[Way, object]) -> set[Way]:
    return {*ways, *((b, a) for a, b in ways)}


def _bad(
    report: SanityReport, host: str, message: str, values: Mapping[str, str] | None = None
) -> Answer:
    error = failure(report)
    blamed = error.host if error.host in report.hosts else host
    return fail(message, error.hint, host=host, cause=_cause(report, blamed), values=values or {})


# --- how fast? -----------------------------------------------------------------------------------


@check(
    "collective.speed",
    "All_reduce fills the links between hosts",
    cause="slow-link",
    scope="pair",
    tags=("deep",),
)
def speed(seen: Collectives) -> Iterator[Answer]:
    """A collective runs at the pace of its slowest link. The bus bandwidth of a pair of hosts is
    what each direction of their link carried: held against what the link is rated for."""
    if reason := _no_speed(seen):
        yield skip(reason)
        return
    speeds = {way: gbit for way, report in seen.pairs.items() if (gbit := _gbit(report))}
    best = max(speeds.values(), default=0.0)
    slow = {way: gbit for way, gbit in speeds.items() if gbit < _floor(seen, way, best)}
    blame = isolate(_both(slow), _both(speeds))
    for host in blame.hosts:
        way = max((w for w in slow if host in w), key=slow.__getitem__)
        yield _slow(seen, host, "at most with every other host", way, slow[way])
    for way in blame.ways:
        if way in slow:
            yield _slow(seen, way[0], f"with {way[1]}", way, slow[way])
    if speeds and not slow:
        yield ok(f"{_bits(min(speeds.values()))} or more between any two hosts")


def _no_speed(seen: Collectives) -> str | None:
    if not seen.pairs:
        return seen.reason if seen.whole is None else "there is no pair of hosts"
    return f"{seen.busy} is being served: its traffic would be measured too" if seen.busy else None


def _gbit(report: SanityReport) -> float | None:
    return report.busbw_gb_s * 8 if report.busbw_gb_s is not None else None


def _bits(gbit: float) -> str:
    return f"{gbit:.3g} Gbit/s" if gbit >= 1 else f"{gbit * 1000:.3g} Mbit/s"


def _floor(seen: Collectives, way: Way, best: float) -> float:
    rate = _rate(seen, way)
    return max(best * SLOW_BESIDE_BEST, _SHARES[_class(_between(seen.pairs[way]))] * (rate or 0.0))


def _rate(seen: Collectives, way: Way) -> float | None:
    """Of the slower end; None where one is not known."""
    report, transport = seen.pairs[way], _between(seen.pairs[way])
    rates = [
        seen.links[host].rate(transport, report.hosts.count(host)) if host in seen.links else None
        for host in way
    ]
    known = [rate for rate in rates if rate is not None]
    return min(known) if len(known) == len(rates) else None


def _slow(seen: Collectives, host: str, with_whom: str, way: Way, gbit: float) -> Answer:
    rate = _rate(seen, way)
    rated = _bits(rate) if rate is not None else "unknown"
    via = _between(seen.pairs[way]) or "gloo"
    return warn(
        f"all_reduce reaches {_bits(gbit)} {with_whom}, over {via}; the link's rate: {rated}",
        f"look at {host}'s link: ethtool IFACE | grep -E 'Speed|Duplex'; ibstat; "
        f"tc qdisc show; cable, switch port",
        host=host,
        values={"from": way[0], "to": way[1], "gbit": f"{gbit:.3f}", "rate": rated},
    )


# --- by which way? -------------------------------------------------------------------------------


def _between(report: SanityReport) -> str:
    """NCCL's transport between hosts, the first it named; "" for gloo."""
    return next((via for a, b, via in _ways(report) if a != b), "")


def _ways(report: SanityReport) -> Iterator[tuple[str, str, str]]:
    """(host, host, transport) of every channel."""
    for verdict in report.verdicts:
        for start, end, via in verdict.links:
            yield report.hosts[start], report.hosts[end], via


def _is_rdma(transport: str) -> bool:
    return transport.startswith("NET/") and transport not in TCP


def _class(transport: str) -> str:
    if not transport:
        return "gloo"
    if not _is_rdma(transport):
        return "socket"
    return "GDRDMA" if "GDRDMA" in transport else "RDMA"


@check(
    "collective.transport",
    "NCCL's ways suit the split",
    cause="nccl-fallback-tcp",
    scope="cluster",
    tags=("deep", "nvidia"),
)
def transport(seen: Collectives) -> Said:
    """NCCL falls back to slower ways without a word: GPUs without peer access exchange through host
    memory, hosts without working RDMA over TCP. Tensor parallelism exchanges twice a layer and does
    not bear that; between the stages of a pipeline it matters less."""
    if seen.whole is None:
        return skip(seen.reason)
    ways = list(_ways(seen.whole))
    if not ways:
        return skip("no NCCL channel: CPU slots use gloo, and a single device has no peer")
    said = [answer for plan in seen.plans for answer in _fits(seen, seen.whole, plan)]
    said = said or [*_fell_back(seen, _between(seen.whole))]
    return said or [ok(", ".join(seen.whole.transports) + _planned(seen.plans))]


def _planned(plans: Sequence[Plan]) -> str:
    return "".join(f"; tp={p.tp} pp={p.pp} ({p.whence})" for p in plans) or (
        "; no split is planned (--tp, --pp)"
    )


def _fits(seen: Collectives, found: SanityReport, plan: Plan) -> Iterator[Answer]:
    """Ranks are packed: tensor-parallel groups one after the other, over the hosts in their
    order."""
    if plan.tp * plan.pp > len(found.hosts):
        yield fail(
            f"tp={plan.tp} x pp={plan.pp} needs {plan.tp * plan.pp} devices; the cluster has "
            f"{len(found.hosts)}",
            f"choose tp x pp of at most {len(found.hosts)}",
            cause="ray-infeasible-gpu-count",
        )
        return
    groups = [
        found.hosts[start : start + plan.tp] for start in range(0, plan.tp * plan.pp, plan.tp)
    ]
    inside = {via for a, b, via in _ways(found) if a == b}
    if any(group.count(host) > 1 for group in groups for host in group):
        yield from _inside(inside, plan)
    if any(len(set(group)) > 1 for group in groups):
        yield from _across(seen, found, plan)
    elif len({host for group in groups for host in group}) > 1:
        yield from _fell_back(seen, _between(found))


def _inside(ways: set[str], plan: Plan) -> Iterator[Answer]:
    slow = sorted(via for via in ways if not via.startswith("P2P/"))
    if slow:
        yield warn(
            f"GPUs of one host exchange over {', '.join(slow)}, not directly: tp={plan.tp} "
            f"({plan.whence}) is slow there",
            "clusterctl doctor --only gpu.paths,gpu.acs,net.env-leftover; without peer access "
            "prefer --pp to --tp",
            cause="nccl-p2p-unsupported",
            values={"transport": " ".join(slow), "tp": str(plan.tp)},
        )


def _across(seen: Collectives, found: SanityReport, plan: Plan) -> Iterator[Answer]:
    via = _between(found)
    per_host = min(found.hosts.count(host) for host in found.hosts)
    stages = max(1, plan.tp * plan.pp // per_host)
    values = {"transport": via, "tp": str(plan.tp)}
    if via in TCP:
        yield fail(
            f"tp={plan.tp} ({plan.whence}) spans hosts, and NCCL goes over TCP between them "
            f"({via}): every layer waits for the network twice",
            f"--tp {per_host} --pp {stages} keeps tensor parallelism inside hosts"
            + _rdma_hint(seen),
            values=values,
        )
    elif via and "GDRDMA" not in via:
        yield warn(
            f"tp={plan.tp} ({plan.whence}) spans hosts over {via}: RDMA is staged through host "
            f"memory",
            "clusterctl doctor --only rdma.gpudirect; sudo modprobe nvidia_peermem",
            cause="gdr-peermem-error",
            values=values,
        )


def _fell_back(seen: Collectives, via: str) -> Iterator[Answer]:
    """TCP between hosts that have RDMA."""
    if via in TCP and any(one.rdma for one in seen.links.values()):
        yield warn(
            f"NCCL goes over TCP between hosts ({via}), though they have RDMA ports that are up",
            _RDMA_HINT,
            values={"transport": via},
        )


def _rdma_hint(seen: Collectives) -> str:
    return f"; or: {_RDMA_HINT}" if any(one.rdma for one in seen.links.values()) else ""


_RDMA_HINT = (
    "clusterctl doctor --only 'rdma.*,net.env-leftover'; the image needs libibverbs, on EFA "
    "aws-ofi-nccl; NCCL_NET=IB (or 'AWS Libfabric') in `env:` makes NCCL say why not"
)

COLLECTIVE_CHECKS: tuple[Check[Collectives], ...] = (whole, pairs, speed, transport)
