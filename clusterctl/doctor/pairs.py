"""Checks of what the hosts found when they tried each other (`doctor --deep`). PURE.

A bad host among good ones, and a bad way between two good hosts, are told apart by pairs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from clusterctl.doctor.check import Answer, Check, check, fail, ok, skip, unknown, warn
from clusterctl.doctor.isolate import Way, isolate

LOST_WARN, LOST_FAIL = 2, 5  # of 100 packets there and back: TCP's rate falls with the root of loss
SLOW_BESIDE_OTHERS = 1 / 10  # of the median way: noise of busy hosts stays well above
SLOW_FOR_ITS_LINK = 1 / 100  # one TCP stream fills some per cent of a 400 Gbit link


@dataclass(frozen=True)
class Tried:
    """What one host saw of one peer. `tcp`: port -> "ok", "other NAME" (another machine answered)
    or the system's word. `came` of `sent` small UDP packets came back. `largest`: bytes of the
    largest IPv4 packet that came through (None: not even small ones do); `announced`: the path's
    MTU as a router told it. `mbit`: one TCP stream, megabits a second."""

    tcp: Mapping[int, str]
    sent: int
    came: int
    largest: int | None
    announced: int | None
    mbit: float | None


@dataclass(frozen=True)
class Pairs:
    """`tried`: (from, to) -> what was seen. `uses`: port -> what needs it. `mtu`: of the interface
    that each host uses. `speed_mbit`: its link rate, where known. `silent`: hosts that could not
    try, and why. `left_out`: how many of all ways were not tried."""

    tried: Mapping[Way, Tried]
    uses: Mapping[int, str] = field(default_factory=dict)
    mtu: Mapping[str, int] = field(default_factory=dict)
    speed_mbit: Mapping[str, int | None] = field(default_factory=dict)
    silent: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    left_out: int = 0
    name: str | None = None


def _each(pairs: Pairs, bad: Collection[Way]) -> Iterator[tuple[str, str, Way]]:
    """Whom to blame: host, words for which ways, one of them."""
    blame = isolate(bad, pairs.tried)
    for host in blame.hosts:
        yield host, "to and from all others", next(w for w in sorted(bad) if host in w)
    for host in blame.receivers:
        yield host, "from all others to it", next(w for w in sorted(bad) if w[1] == host)
    for host in blame.senders:
        yield host, "from it to all others", next(w for w in sorted(bad) if w[0] == host)
    for way in blame.ways:
        yield way[0], f"from it to {way[1]}", way


def _sample(pairs: Pairs) -> str:
    left = f"; {pairs.left_out} more were left out, too many to try all" if pairs.left_out else ""
    return f"{len(pairs.tried)} ways between hosts tried{left}"


@check(
    "net.pairs-tried",
    "Every host can try the others",
    scope="cluster",
    tags=("deep",),
)
def tried_at_all(pairs: Pairs) -> Iterator[Answer]:
    """A host that could not try its peers is not known to reach them."""
    for host, (why, fix) in pairs.silent.items():
        yield unknown(f"the ways from it could not be tried: {why}", host=host, fix=fix)
    if pairs.tried:
        yield ok(_sample(pairs))
    elif not pairs.silent:
        yield skip("one host alone has nobody to try")


@check(
    "net.pair-tcp",
    "Every host reaches every other on the ports in use",
    cause="firewall-blocks-port",
    scope="pair",
    tags=("deep",),
)
def tcp(pairs: Pairs) -> Iterator[Answer]:
    """Ray's workers, vLLM and torch connect in both directions, and on ports the system chooses:
    a firewall that lets only the head's port pass shows as a hang or as a node that dies."""
    blocked = {
        way: ports
        for way, seen in pairs.tried.items()
        if (ports := [p for p, said in seen.tcp.items() if said != "ok" and not _other(said)])
    }
    for host, where, way in _each(pairs, blocked):
        named = ", ".join(f"{p} ({pairs.uses.get(p, 'any free port')})" for p in blocked[way])
        why = pairs.tried[way].tcp[blocked[way][0]]
        yield fail(
            f"TCP does not pass {where}: ports {named}: {why}",
            f"let all TCP between the cluster's private addresses pass the firewall of {host} "
            f"(sudo iptables -S, nft list ruleset): NCCL and gloo use ports the system chooses",
            host=host,
            values={"from": way[0], "to": way[1], "port": str(blocked[way][0])},
        )
    if pairs.tried and not blocked:
        yield ok("every port answers on every way tried")


@check(
    "net.address-taken",
    "An address belongs to one machine",
    cause="duplicate-address",
    scope="pair",
    tags=("deep",),
)
def answered_by_another(pairs: Pairs) -> Iterator[Answer]:
    """Two machines with one address answer in turn: connections break at random."""
    found: dict[str, str] = {}
    for (_, peer), seen in pairs.tried.items():
        for said in filter(_other, seen.tcp.values()):
            found.setdefault(peer, said.removeprefix("other ").strip() or "an unknown service")
    for peer, other in found.items():
        yield fail(
            f"{other} answers at its address",
            "give every host an address of its own (ip -br addr), then: ip neigh flush all",
            host=peer,
            values={"answers": other},
        )
    if pairs.tried and not found:
        yield ok("every address was answered by its own host")


def _other(said: str) -> bool:
    return said.startswith("other ")


@check(
    "net.pair-loss",
    "No packets are lost",
    cause="packet-loss",
    scope="pair",
    tags=("deep",),
)
def loss(pairs: Pairs) -> Iterator[Answer]:
    """A few per cent of lost packets stall collectives for seconds, and look like a slow model."""
    lost = {way: one.sent - one.came for way, one in pairs.tried.items() if one.came}
    bad = {way for way, count in lost.items() if count >= LOST_WARN}
    for host, where, way in _each(pairs, bad):
        say = fail if lost[way] >= LOST_FAIL else warn
        yield say(
            f"{lost[way]} of {pairs.tried[way].sent} small packets were lost {where}",
            f"look for errors on {host}'s link: ip -s link; ethtool -S IFACE | grep -i err; cable, "
            f"switch port",
            host=host,
            values={"from": way[0], "to": way[1], "lost": str(lost[way])},
        )
    if lost and not bad:
        yield ok("small packets come back on every way tried")
    if any(one.came == 0 for one in pairs.tried.values()):
        yield unknown("UDP does not pass on some ways: loss and path MTU cannot be told there")


@check(
    "net.path-mtu",
    "Packets as large as the interfaces send come through",
    cause="mtu-mismatch",
    scope="pair",
    tags=("deep",),
)
def path_mtu(pairs: Pairs) -> Iterator[Answer]:
    """Small messages pass and large ones vanish: collectives form and then hang at the first large
    tensor. RDMA has no way to learn of a smaller MTU at all."""
    small = {
        way: one.largest
        for way, one in pairs.tried.items()
        if one.largest is not None and one.largest < pairs.mtu[way[0]]
    }
    for host, where, way in _each(pairs, small):
        largest, own = small[way], pairs.mtu[way[0]]
        values = {"from": way[0], "to": way[1], "mtu": str(own), "largest": str(largest)}
        fix = f"give all interfaces and switches on the way one MTU: ip link set IFACE mtu {own}"
        if pairs.tried[way].announced == largest:
            text = f"the path takes {largest} bytes, the interface {own}: TCP adapts, RDMA does not"
            yield warn(f"{text} ({where})", fix, host=host, values=values)
        else:
            text = f"packets of more than {largest} bytes vanish {where}; the interface sends {own}"
            yield fail(text, fix, host=host, values=values)
    if not small and any(one.largest for one in pairs.tried.values()):
        yield ok("full-sized packets come through on every way tried")


@check(
    "net.pair-speed",
    "No way between hosts is far slower than the others",
    cause="slow-link",
    scope="pair",
    tags=("deep",),
)
def speed(pairs: Pairs) -> Iterator[Answer]:
    """A collective runs at the pace of its slowest link."""
    speeds = {way: one.mbit for way, one in pairs.tried.items() if one.mbit is not None}
    if not speeds:
        return
    middle = median(speeds.values())
    bad = {way for way, mbit in speeds.items() if mbit < _floor(pairs, way, middle)}
    for host, where, way in _each(pairs, bad):
        yield warn(
            f"{speeds[way]:.0f} Mbit/s {where}; {_expected(pairs, way, middle)}",
            f"look at {host}'s link: ethtool IFACE | grep -E 'Speed|Duplex'; tc qdisc show dev "
            f"IFACE; cable, switch port",
            host=host,
            values={"from": way[0], "to": way[1], "mbit": f"{speeds[way]:.0f}"},
        )
    if not bad:
        yield ok(f"{min(speeds.values()):.0f} Mbit/s or more in one TCP stream on every way tried")


def _floor(pairs: Pairs, way: Way, middle: float) -> float:
    rates = [rate for end in way if (rate := pairs.speed_mbit.get(end))]
    by_rate = min(rates) * SLOW_FOR_ITS_LINK if rates else 0.0
    return max(middle * SLOW_BESIDE_OTHERS, by_rate)


def _expected(pairs: Pairs, way: Way, middle: float) -> str:
    """Against what it is slow."""
    rate = min((rate for end in way if (rate := pairs.speed_mbit.get(end))), default=None)
    beside = f"half of the ways do {middle:.0f} or more"
    return f"the link is of {rate} Mbit/s" if rate is not None and middle < rate / 10 else beside


PAIR_CHECKS: Sequence[Check[Pairs]] = (
    tried_at_all,
    tcp,
    answered_by_another,
    loss,
    path_mtu,
    speed,
)
