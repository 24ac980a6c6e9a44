"""`doctor`, the acting part: look at every host that can be reached, and judge what was seen."""

from __future__ import annotations

from clusterctl.doctor.check import Finding
from clusterctl.errors import ClusterctlError
from clusterctl.fanout import Done, Failed
from clusterctl.preflight import Candidate, preflight
from clusterctl.session import Session


def examine(session: Session) -> list[Finding]:
    """Every finding of every host, those in order included. A host that cannot be reached, or does
    not answer, is a finding too."""
    outcomes = session.each(session.facts_of)
    facts = {name: out.value for name, out in outcomes.items() if isinstance(out, Done)}
    silent = {name: out.error for name, out in outcomes.items() if isinstance(out, Failed)}
    candidates = (
        Candidate(session.spec, node, facts[node.name])
        for node in session.spec.nodes
        if node.name in facts
    )
    lost = {**session.failures, **silent}
    return [*(unreached(name, error) for name, error in lost.items()), *preflight(candidates)]


def unreached(host: str, error: ClusterctlError) -> Finding:
    return Finding("ssh.reach", None, host, "fail", error.message, fix=error.hint)
