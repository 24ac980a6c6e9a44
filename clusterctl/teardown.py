"""`down`: end a cluster, and prove that nothing of it is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from clusterctl import gpumemory, hoststate, lock, release
from clusterctl.containers import LABEL_CLUSTER
from clusterctl.doctor.ray import ports_in_use
from clusterctl.errors import ClusterctlError, Unreachable
from clusterctl.events import Event, Report
from clusterctl.execution import take_down
from clusterctl.facts.types import HostFacts
from clusterctl.fanout import Done
from clusterctl.links import HostLink, Opener
from clusterctl.planning import left_behind
from clusterctl.release import Released
from clusterctl.session import Session, all_failures, results
from clusterctl.spec import ClusterSpec


@dataclass(frozen=True)
class Down:
    """`removed`: the containers' names by host. `ports`: what still listens on Ray's ports there,
    though no container of ours is left. `released`: their GPUs."""

    removed: Mapping[str, tuple[str, ...]]
    ports: Mapping[str, tuple[str, ...]]
    released: Released


def down(session: Session, *, purge: bool, report: Report, opener: Opener | None = None) -> Down:
    """On every host that can be reached; then raises Unreachable for those that cannot.

    `opener` reaches hosts that left the cluster (tests).
    """
    spec = session.spec
    removed: dict[str, tuple[str, ...]] = {}
    lost = dict(session.failures)
    with _locked(session, report), _former(session, report, opener) as former:
        before = _known(session)
        nodes = {host: gpumemory.nodes_of(spec.name, seen) for host, seen in before.items()}
        for one in (*former, session):
            lost |= one.failures
            removed |= results(one.each(lambda link: _remove_all(spec, link, report)))
            results(one.each(lambda link: _prove(spec, link)))
        after = session.facts()
        ports = _still_listening(spec, after)
        released = release.watch(session, nodes, before, after, report)
        for one in (*former, session) if purge else ():
            results(one.each(lambda link: hoststate.purge(link.transport, spec.name)))
    if lost:
        raise _out_of_reach(spec, lost)
    return Down(removed, ports, released)


def _known(session: Session) -> dict[str, HostFacts]:
    """Of the hosts that say so: what cannot be seen beforehand keeps nobody from clearing up."""
    outcomes = session.each(session.facts_of)
    return {host: out.value for host, out in outcomes.items() if isinstance(out, Done)}


@contextmanager
def _locked(session: Session, report: Report) -> Iterator[None]:
    """A head that is gone holds no lock: the other hosts are cleared all the same."""
    if session.spec.head in session.failures:
        report(Event("warn", "lock", "not taken: the head cannot be reached"))
        yield
        return
    spec = session.spec
    with lock.held(session.head, spec.name, report, wait=spec.limits.lock_wait):
        yield


@contextmanager
def _former(
    session: Session, report: Report, opener: Opener | None
) -> Iterator[tuple[Session, ...]]:
    """Hosts of the last `up` that the file no longer names: only the head knows them."""
    if session.spec.head in session.failures:
        yield ()
        return
    with left_behind(session, report, opener) as former:
        yield () if former is None else (former,)


def _remove_all(spec: ClusterSpec, link: HostLink, report: Report) -> tuple[str, ...]:
    seen = link.runtime.containers({LABEL_CLUSTER: spec.name})
    for container in seen:
        report(Event("begin", "remove", container.name, link.name))
        take_down(link, container.id)
    report(Event("done", "remove", f"{len(seen)} removed", link.name))
    return tuple(container.name for container in seen)


def _prove(spec: ClusterSpec, link: HostLink) -> None:
    left = link.runtime.containers({LABEL_CLUSTER: spec.name})
    if left:
        names = ", ".join(container.name for container in left)
        raise ClusterctlError(f"still there after its removal: {names}", host=link.name)


def _still_listening(
    spec: ClusterSpec, facts: Mapping[str, HostFacts]
) -> dict[str, tuple[str, ...]]:
    in_use = {
        node.name: ports_in_use(spec, node, facts[node.name])
        for node in spec.nodes
        if node.name in facts
    }
    return {name: ports for name, ports in in_use.items() if ports}


def _out_of_reach(spec: ClusterSpec, lost: Mapping[str, ClusterctlError]) -> ClusterctlError:
    cause = all_failures(lost)
    names = ", ".join(lost)
    return Unreachable(
        f"{cause.message}\nthe containers of {spec.name} on {names} may still run; "
        "all other hosts are clear",
        host=names,
        hint="clusterctl down again, once it can be reached",
    )
