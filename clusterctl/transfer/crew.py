"""The hosts of a cluster with a depot on each, ready to work on models or images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from clusterctl import network, planning
from clusterctl.errors import ClusterctlError, Unreachable
from clusterctl.events import Event, Report
from clusterctl.facts.types import HostFacts
from clusterctl.fanout import Done, Failed
from clusterctl.launch import proxy_environment
from clusterctl.links import HostLink
from clusterctl.session import Session, results
from clusterctl.spec import ClusterSpec, MountSpec
from clusterctl.transfer.depot import Depot
from clusterctl.transfer.depots import Depots, opened

T = TypeVar("T")

_DIRECTORIES = 'for path; do [ ! -d "$path" ] || echo "$path"; done'


@dataclass(frozen=True)
class Crew:
    """`depots` by node; `lost`: nodes that could not be reached; `depots_of` opens more, such as
    one on this machine."""

    session: Session
    facts: Mapping[str, HostFacts]
    depots: Mapping[str, Depot]
    lost: Mapping[str, ClusterctlError]
    opener: Depots

    @property
    def spec(self) -> ClusterSpec:
        """Without the nodes that are lost."""
        return present(self.session)

    def each(self, call: Callable[[str, Depot], T]) -> dict[str, T]:
        """On all nodes at once; one error for all that fail."""
        depots = self.depots
        return results(
            self.session.each(lambda link: call(link.name, depots[link.name]), [*depots])
        )


def present(session: Session) -> ClusterSpec:
    """The cluster as far as it could be reached. Raises what the connections failed with when
    nobody could."""
    nodes = tuple(node for node in session.spec.nodes if node.name in session.links)
    if not nodes:
        raise next(iter(session.failures.values()))
    head = session.spec.head if session.spec.head in session.links else nodes[0].name
    return replace(session.spec, nodes=nodes, head=head)


def homes(facts: Mapping[str, HostFacts]) -> dict[str, str]:
    return {name: one.host.home for name, one in facts.items()}


@contextmanager
def assembled(
    session: Session,
    facts: Mapping[str, HostFacts],
    mounts: Mapping[str, Sequence[MountSpec]],
    *,
    image: str,
    report: Report,
) -> Iterator[Crew]:
    """A depot on every linked host that has mounts. A host that is lost meanwhile is left out."""
    with opened(image, proxy_environment(session.spec)) as depots:
        report(Event("begin", "helpers"))
        outcomes = session.each(lambda link: depots.on_host(link, mounts[link.name]), [*mounts])
        lost = {
            name: out.error
            for name, out in outcomes.items()
            if isinstance(out, Failed) and isinstance(out.error, Unreachable)
        }
        results({name: out for name, out in outcomes.items() if name not in lost})
        crew = {name: out.value for name, out in outcomes.items() if isinstance(out, Done)}
        report(Event("done", "helpers", f"{len(crew)} hosts"))
        yield Crew(session, facts, crew, {**session.failures, **lost}, depots)


def existing(session: Session, wanted: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Which of these directories are on each host."""

    def look(link: HostLink) -> list[str]:
        argv = ["sh", "-c", _DIRECTORIES, "sh", *wanted[link.name]]
        return link.transport.run(argv).stdout.splitlines()

    return results(session.each(look, [*wanted]))


def addresses(
    session: Session, facts: Mapping[str, HostFacts], report: Report
) -> dict[str, network.ChosenAddress]:
    """The private addresses on which the hosts reach each other."""
    spec = present(session)
    known = {node.name: facts[node.name] for node in spec.nodes}
    return {**planning.addresses(replace(session, spec=spec), known, report).chosen}


def speeds(
    facts: Mapping[str, HostFacts], chosen: Mapping[str, network.ChosenAddress]
) -> dict[str, int]:
    """Mbit/s of the interface that each host uses; 0 where it is not known."""
    found = {}
    for name, one in chosen.items():
        interfaces = {interface.name: interface for interface in facts[name].interfaces}
        found[name] = interfaces[one.interface].speed_mbit or 0
    return found
