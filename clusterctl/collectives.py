"""The collectives of `doctor --deep`: engine.sanity over all nodes that run, then over each pair of
them. What they say is judged in doctor/collectives.py and doctor/devicespeed.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from clusterctl import deployments, enginepackage, sanity
from clusterctl.containers import LABEL_CLUSTER
from clusterctl.doctor.collectives import Collectives, HostLinks
from clusterctl.doctor.isolate import Way
from clusterctl.doctor.subject import Plan
from clusterctl.errors import ClusterctlError
from clusterctl.events import Event, Report
from clusterctl.facts.types import HostFacts
from clusterctl.fanout import Done, fan_out
from clusterctl.members import Member, member_on
from clusterctl.network import Chosen
from clusterctl.sanityreport import SanityReport
from clusterctl.serving.records import Deployment
from clusterctl.session import Session

EVERY_PAIR_UP_TO = 8  # hosts; a round of pairs takes some ten seconds
RING = 2
WHOLE_TIMEOUT_S = 120.0  # at most: a rank that hangs is named after two thirds of it
PAIR_TIMEOUT_S = 60.0  # of one pair: its torch is in the page cache by then


def collect(
    session: Session,
    facts: Mapping[str, HostFacts],
    chosen: Chosen,
    report: Report,
    plan: Plan | None = None,
) -> Collectives:
    """Where no node runs, nothing is started. `plan`: the split to judge; what is being served, by
    default."""
    nodes = _running(session, facts)
    if not nodes:
        return Collectives()
    try:
        served = _served(nodes)
        busy = ", ".join(one.name for one in served) or None
        whole, pairs = _measure(session, nodes, busy, report)
    except ClusterctlError as error:
        refused = (error.message, error.host, error.hint)
        return Collectives(reason="it could not be started", refused=refused)
    plans = [plan] if plan else [Plan(one.tp, one.pp, f"served as {one.name}") for one in served]
    links = {
        node.name: links_of(facts[node.name], chosen[node.name].interface)
        for node in nodes
        if node.name in chosen
    }
    return Collectives(whole, "", pairs, links, plans, busy)


def _running(session: Session, facts: Mapping[str, HostFacts]) -> list[Member]:
    """The nodes whose container runs, the head first."""
    cluster = session.spec.name
    names = [
        name
        for name, one in facts.items()
        if session.spec.runtime == "process"
        or any(c.labels.get(LABEL_CLUSTER) == cluster for c in one.docker.containers or ())
    ]
    outcomes = session.each(lambda link: member_on(link, cluster), names)
    found = [one.value for one in outcomes.values() if isinstance(one, Done)]
    return sorted(found, key=lambda member: member.node.role != "head")


def _served(nodes: Sequence[Member]) -> list[Deployment]:
    head = nodes[0]
    if head.node.role != "head":
        return []
    return [one for one in deployments.on_head(head, probe=0) if not one.ended]


def _measure(
    session: Session, nodes: Sequence[Member], busy: str | None, report: Report
) -> tuple[SanityReport, dict[Way, SanityReport]]:
    report(Event("begin", "collectives", f"{sanity.world_size(nodes)} ranks"))
    directories = sanity.deliver(session, nodes, enginepackage.load())
    speed = busy is None and any(node.node.device_kind == "gpu" for node in nodes)
    timeout = min(WHOLE_TIMEOUT_S, session.spec.limits.sanity_timeout)
    whole = sanity.run(nodes, directories, timeout, speed=speed)
    by_name = {node.name: node for node in nodes}
    pairs: dict[Way, SanityReport] = {}
    if len(nodes) == 2:  # that was the pair
        pairs[nodes[0].name, nodes[1].name] = whole
    else:
        for disjoint in rounds(pairs_of(list(by_name))):
            report(Event("progress", "collectives", ", ".join(f"{a}-{b}" for a, b in disjoint)))
            pairs |= _at_once(by_name, disjoint, directories)
    report(Event("done", "collectives", f"{len(pairs)} pairs"))
    return whole, pairs


def _at_once(
    by_name: Mapping[str, Member], ways: Sequence[Way], directories: Mapping[str, str]
) -> dict[Way, SanityReport]:
    """Pairs that have no host in common. One that could not be started is a report of that."""
    named = {f"{a} {b}": (by_name[a], by_name[b]) for a, b in ways}
    outcomes = fan_out(
        named, lambda pair: sanity.run(named[pair], directories, PAIR_TIMEOUT_S), limit=len(named)
    )
    return {
        way: one.value
        if isinstance(one, Done)
        else SanityReport(way, (), {one.error.host or way[0]: one.error.message})
        for way, one in zip(ways, outcomes.values(), strict=True)
    }


def pairs_of(names: Sequence[str]) -> list[Way]:
    """All pairs of a few hosts; of many, each with the next RING of the list, round its end."""
    if len(names) <= EVERY_PAIR_UP_TO:
        return list(combinations(names, 2))
    ring = [*names, *names[:RING]]
    return [(name, ring[at + step]) for at, name in enumerate(names) for step in range(1, RING + 1)]


def rounds(ways: Iterable[Way]) -> list[list[Way]]:
    """Each way in the first round in which both of its hosts are free."""
    found: list[list[Way]] = []
    for way in ways:
        free = (one for one in found if not any(set(way) & set(other) for other in one))
        into = next(free, None)
        if into is None:
            found.append(into := [])
        into.append(way)
    return found


def links_of(facts: HostFacts, interface: str) -> HostLinks:
    """What the host's links are rated for: its interface in use, and the RDMA ports that are up."""
    speeds = (one.speed_mbit for one in facts.interfaces if one.name == interface)
    mbit = next(speeds, None)
    up = (port for port in facts.rdma_ports or () if port.active)
    return HostLinks(mbit / 1000 if mbit is not None else None, tuple(p.rate_gbit for p in up))
