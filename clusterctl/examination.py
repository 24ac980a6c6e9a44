"""`doctor`, the acting part: look at every host that can be reached, and judge what was seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from clusterctl import network, pairprobe
from clusterctl.doctor.check import Finding, run_checks
from clusterctl.doctor.pairs import PAIR_CHECKS, Pairs
from clusterctl.errors import ClusterctlError, PreflightFailed
from clusterctl.facts.types import HostFacts
from clusterctl.fanout import Done, Failed
from clusterctl.preflight import Candidate, preflight
from clusterctl.session import Session


def examine(session: Session, *, deep: bool = False) -> list[Finding]:
    """Every finding of every host, those in order included. A host that cannot be reached, or does
    not answer, is a finding too. `deep`: let the hosts try each other as well."""
    outcomes = session.each(session.facts_of)
    facts = {name: out.value for name, out in outcomes.items() if isinstance(out, Done)}
    silent = {name: out.error for name, out in outcomes.items() if isinstance(out, Failed)}
    candidates = (
        Candidate(session.spec, node, facts[node.name])
        for node in session.spec.nodes
        if node.name in facts
    )
    lost = {**session.failures, **silent}
    found = [*(unreached(name, error) for name, error in lost.items()), *preflight(candidates)]
    return [*found, *_try_each_other(session, facts)] if deep else found


def _try_each_other(session: Session, facts: Mapping[str, HostFacts]) -> list[Finding]:
    here = [node for node in session.spec.nodes if node.name in facts]
    if len(here) < 2:
        return list(run_checks(PAIR_CHECKS, [Pairs({})]))
    try:
        chosen = network.candidates(replace(session.spec, nodes=tuple(here)), facts)[0]
    except PreflightFailed as error:
        return [Finding("net.pairs-tried", None, error.host, "fail", error.message, fix=error.hint)]
    return list(run_checks(PAIR_CHECKS, [pairprobe.probe(session, facts, chosen)]))


def unreached(host: str, error: ClusterctlError) -> Finding:
    return Finding("ssh.reach", None, host, "fail", error.message, fix=error.hint)
