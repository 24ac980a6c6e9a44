"""Look at all hosts and say what `up` would do: facts, findings, plan. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from clusterctl import fabric, hoststate, network, reach
from clusterctl.config import spec_from_dict
from clusterctl.containers import LABEL_CLUSTER
from clusterctl.doctor.check import Finding
from clusterctl.errors import PreflightFailed
from clusterctl.events import Event, Report
from clusterctl.facts.types import HostFacts
from clusterctl.launch import LaunchPlan, Place, expected_nodes, plan
from clusterctl.links import HostLink, Opener
from clusterctl.preflight import preflight, refuse
from clusterctl.raycluster import ExpectedNode
from clusterctl.runtime import SeenContainer
from clusterctl.session import Session, results
from clusterctl.spec import ClusterSpec

SPEC_FILE = "spec.json"


@dataclass(frozen=True)
class Prospect:
    """What `up` would do. `links` reaches every host of the plan; `fresh` are the hosts that have
    no directory for this cluster yet."""

    plan: LaunchPlan
    expected: tuple[ExpectedNode, ...]
    findings: tuple[Finding, ...]
    links: Mapping[str, HostLink]
    places: Mapping[str, Place]
    fresh: frozenset[str]


@dataclass(frozen=True)
class _Host:
    has_state: bool
    containers: tuple[SeenContainer, ...] = ()
    image_id: str | None = None


def prospect(session: Session, report: Report, leaving: Session | None) -> Prospect:
    """Raises PreflightFailed with every failure of every host."""
    spec = session.spec
    report(Event("begin", "facts"))
    facts = session.facts()
    hosts = results(session.each(lambda link: _look(spec, link, facts[link.name])))
    report(Event("done", "facts", f"{len(facts)} hosts"))
    said, chosen = choose_addresses(session, facts, report)
    runs = {name: bool(host.containers) for name, host in hosts.items()}
    findings = [*preflight(spec, facts, runs), *said]
    refuse(findings)
    fabrics = _fabrics(spec, facts)
    places = {
        node.name: replace(
            _place(spec, session.link(node.name), facts[node.name], hosts, chosen),
            fabric=fabrics.get(node.name, {}),
        )
        for node in spec.nodes
    }
    return Prospect(
        plan=plan(spec, places, _left(spec, leaving)),
        expected=expected_nodes(spec, places),
        findings=tuple(findings),
        links={**session.links, **(leaving.links if leaving else {})},
        places=places,
        fresh=frozenset(name for name, host in hosts.items() if not host.has_state),
    )


def _look(spec: ClusterSpec, link: HostLink, facts: HostFacts) -> _Host:
    has_state = hoststate.exists(link.transport, spec.name)
    if spec.runtime == "docker" and facts.docker.error is not None:
        return _Host(has_state)
    return _Host(
        has_state,
        tuple(link.runtime.containers({LABEL_CLUSTER: spec.name})),
        link.runtime.image_id(spec.image),
    )


def choose_addresses(
    session: Session, facts: Mapping[str, HostFacts], report: Report
) -> tuple[list[Finding], network.Chosen]:
    """What is to be said of the ways between the hosts, and the addresses to use; none where there
    is nothing to choose."""
    try:
        reached = addresses(session, facts, report)
    except PreflightFailed as error:
        failed = Finding(
            "net.address", "no-common-network", error.host, "fail", error.message, fix=error.hint
        )
        return [failed], {}
    return list(reached.findings), reached.chosen


def addresses(session: Session, facts: Mapping[str, HostFacts], report: Report) -> reach.Reached:
    """The best addresses on which all hosts reach each other. One host has nobody to try."""
    spec = session.spec
    if spec.runtime == "process":
        return reach.Reached(_loopback(spec))
    candidates = network.candidates(spec, facts)
    if len(spec.nodes) == 1:
        return reach.Reached(candidates[0])
    report(Event("begin", "network"))
    tried = reach.targets(spec, candidates)
    answers = results(session.each(lambda link: _try(link, tried[link.name], spec)))
    reached = reach.choose(spec, candidates, answers)
    report(Event("done", "network", reached.chosen[spec.head].reason))
    return reached


def _loopback(spec: ClusterSpec) -> network.Chosen:
    return {
        node.name: network.ChosenAddress(node.cluster_address or "127.0.0.1", "lo", "this machine")
        for node in spec.nodes
    }


def _try(
    link: HostLink, tried: Sequence[reach.Target], spec: ClusterSpec
) -> dict[reach.Target, reach.Answer]:
    answer = link.transport.run(
        ["sh", "-s"], stdin=reach.script(tried).encode(), timeout=spec.limits.command_timeout
    )
    return reach.parse(answer.stdout, tried, host=link.name)


def _fabrics(spec: ClusterSpec, facts: Mapping[str, HostFacts]) -> dict[str, fabric.Variables]:
    """RDMA is between GPUs of several hosts; ranks on CPU slots speak gloo."""
    on_cpus = any(spec.devices_of(node).kind == "cpu" for node in spec.nodes)
    return {} if on_cpus or len(spec.nodes) == 1 else fabric.derive(facts)


def _place(
    spec: ClusterSpec,
    link: HostLink,
    facts: HostFacts,
    hosts: Mapping[str, _Host],
    chosen: network.Chosen,
) -> Place:
    host = hosts[link.name]
    return Place(
        facts=facts,
        address=chosen[link.name].address,
        interface=chosen[link.name].interface,
        home=link.runtime.home,
        state_dir=hoststate.path_for(facts.host, spec.name),
        containers=host.containers,
        image_present=host.image_id is not None,
        image_id=host.image_id,
    )


# --- nodes that left the cluster's file ----------------------------------------------------------


@contextmanager
def left_behind(
    session: Session, report: Report, opener: Opener | None = None
) -> Iterator[Session | None]:
    """Links to the hosts that the last `up` used and the spec does not name any more.

    `opener` replaces how they are reached (tests).
    """
    spec = session.spec
    said = hoststate.read(session.head.transport, spec.name, SPEC_FILE)
    gone = _gone(spec, spec_from_dict(json.loads(said))) if said else None
    if gone is None or spec.runtime == "process":
        yield None
        return
    names = [node.name for node in gone.nodes if node.name not in {n.name for n in spec.nodes}]
    with Session.connect(gone, names=names, report=report, partial=True, opener=opener) as leaving:
        for name, error in leaving.failures.items():
            text = f"left the cluster, but its container may still run: {error.message}"
            report(Event("warn", "connect", text, name))
        yield leaving


def _gone(spec: ClusterSpec, former: ClusterSpec) -> ClusterSpec | None:
    """The former spec, reached by what is said of ssh now, if nodes of it are gone."""
    named = {node.name for node in spec.nodes}
    if all(node.name in named for node in former.nodes):
        return None
    return replace(former, ssh=spec.ssh, limits=spec.limits)


def _left(spec: ClusterSpec, leaving: Session | None) -> dict[str, Sequence[SeenContainer]]:
    if leaving is None:
        return {}
    labels = {LABEL_CLUSTER: spec.name}
    return {**results(leaving.each(lambda link: link.runtime.containers(labels)))}
