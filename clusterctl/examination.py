"""`doctor`, the acting part: look at every host that can be reached, and judge what was seen."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain

from clusterctl import autopsy, collectives, formation, hoststate, images, pairprobe, status
from clusterctl.containers import LABEL_CLUSTER
from clusterctl.doctor.bundle import bundle
from clusterctl.doctor.check import Finding, run_checks
from clusterctl.doctor.collectives import COLLECTIVE_CHECKS
from clusterctl.doctor.devicespeed import SPEED_CHECKS
from clusterctl.doctor.formed import FORMED_CHECKS, Formed
from clusterctl.doctor.image import judge_images
from clusterctl.doctor.pairs import PAIR_CHECKS, Pairs
from clusterctl.doctor.redaction import secret_values
from clusterctl.doctor.snapshot import Snapshot
from clusterctl.doctor.subject import Plan
from clusterctl.errors import ClusterctlError
from clusterctl.events import Event, Report
from clusterctl.facts.types import HostFacts
from clusterctl.fanout import Done, Failed, fan_out
from clusterctl.planning import choose_addresses
from clusterctl.session import Session, results


def examine(
    session: Session,
    report: Report,
    *,
    model: str | None = None,
    deep: bool = False,
    plan: Plan | None = None,
) -> Snapshot:
    """What is to be seen of every host; one that does not answer is a finding.

    `model`: a path or Hub id to look at on every host. `deep`: let the hosts try each other too,
    and the devices of the nodes that run compute together. `plan`: the split to judge.
    """
    report(Event("begin", "facts"))
    outcomes = session.each(lambda link: session.facts_of(link, model))
    facts = {name: out.value for name, out in outcomes.items() if isinstance(out, Done)}
    silent = {name: out.error for name, out in outcomes.items() if isinstance(out, Failed)}
    report(Event("done", "facts", f"{len(facts)} hosts"))
    lost = {**session.failures, **silent}
    asked: dict[str, Callable[[], list[Finding]]] = {
        "images": lambda: _images(session, facts),
        "ray": lambda: _formed(session, facts),
        "ways": lambda: _ways(session, facts, report, deep, plan),
    }
    found = results(fan_out(asked, lambda what: asked[what](), limit=len(asked)))
    told = (*(unreached(name, error) for name, error in lost.items()), *chain(*found.values()))
    return Snapshot(session.spec, facts, told, plan)


def packed(session: Session, snapshot: Snapshot) -> bytes:
    """The bundle: what was seen, and the logs of every node that answers."""
    logs = {_as_path(log.name): log.text() for log in autopsy.collect(session)}
    return bundle(snapshot, logs, list(_secrets(session)))


def _as_path(name: str) -> str:
    """`gpu01: /tmp/ray/x.err` -> gpu01/tmp/ray/x.err"""
    host, _, file = name.partition(": ")
    return f"{host}/{file.lstrip('/')}"


def _secrets(session: Session) -> Iterator[str]:
    """Those that are known here or lie on the head, whatever form they have."""
    spec = session.spec
    for environment in (os.environ, spec.env, *(node.env for node in spec.nodes)):
        yield from secret_values(environment)
    if spec.head in session.links:
        yield (
            hoststate.read(session.head.transport, spec.name, hoststate.TOKEN_FILE) or ""
        ).strip()


def unreached(host: str, error: ClusterctlError) -> Finding:
    return Finding("ssh.reach", error.cause, host, "fail", error.message, fix=error.hint)


def _images(session: Session, facts: Mapping[str, HostFacts]) -> list[Finding]:
    return judge_images(images.held(session, facts)) if session.spec.runtime == "docker" else []


def _formed(session: Session, facts: Mapping[str, HostFacts]) -> list[Finding]:
    """Ray is asked where a node of the cluster runs."""
    spec = session.spec
    if spec.runtime == "process" or not any(_has_node(spec.name, one) for one in facts.values()):
        return list(run_checks(FORMED_CHECKS, [Formed()]))
    expected = status.expected_nodes(session)
    seen = formation.once(session, expected, spec.ray.port)
    return list(run_checks(FORMED_CHECKS, [Formed(seen)]))


def _has_node(cluster: str, facts: HostFacts) -> bool:
    return any(
        one.state == "running" and one.labels.get(LABEL_CLUSTER) == cluster
        for one in facts.docker.containers or ()
    )


def _ways(
    session: Session,
    facts: Mapping[str, HostFacts],
    report: Report,
    deep: bool,
    plan: Plan | None,
) -> list[Finding]:
    """Between the hosts that answered. Without the head nobody knows where Ray's would lead."""
    spec = session.spec
    if spec.head not in facts:
        reason = "the ways between the hosts were not tried: the head does not answer"
        return [Finding("net.reach", None, None, "unknown", reason)] if len(facts) > 1 else []
    answered = tuple(node for node in spec.nodes if node.name in facts)
    links = {name: link for name, link in session.links.items() if name in facts}
    present = replace(session, spec=replace(spec, nodes=answered), links=links)
    said, chosen = choose_addresses(present, facts, report)
    if not deep:
        return said
    report(Event("begin", "pairs"))
    tried = pairprobe.probe(present, facts, chosen) if len(chosen) > 1 else Pairs({})
    report(Event("done", "pairs"))
    summed = collectives.collect(present, facts, chosen, report, plan)
    return [
        *said,
        *run_checks(PAIR_CHECKS, [tried]),
        *run_checks((*COLLECTIVE_CHECKS, *SPEED_CHECKS), [summed]),
    ]
