"""What must be true of the hosts before anything is made on them: the doctor's checks with that
tag. PURE: facts in, findings out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clusterctl.doctor.check import Finding
from clusterctl.doctor.checks import judge
from clusterctl.errors import PreflightFailed
from clusterctl.facts.types import HostFacts
from clusterctl.spec import ClusterSpec


def preflight(
    spec: ClusterSpec, facts: Mapping[str, HostFacts], runs: Mapping[str, bool] | None = None
) -> list[Finding]:
    """Every finding of every host, by node name. `runs`: which nodes of a local cluster run."""
    return judge(spec, facts, tag="preflight", runs=runs)


def refuse(findings: Sequence[Finding]) -> None:
    """Raises PreflightFailed with all failures at once, where there are any."""
    failed = [finding for finding in findings if finding.verdict == "fail"]
    if not failed:
        return
    hosts = list(dict.fromkeys(finding.host for finding in failed if finding.host))
    fixes = dict.fromkeys(finding.fix for finding in failed if finding.fix)
    raise PreflightFailed(
        _text(failed), host=", ".join(hosts) or None, hint="\n".join(fixes) or None
    )


def _text(failed: Sequence[Finding]) -> str:
    if len(failed) == 1:
        return failed[0].message
    lines = (f"  {finding.host or 'cluster'}: {finding.message}" for finding in failed)
    return "\n".join([f"{len(failed)} problems, nothing was changed", *lines])
