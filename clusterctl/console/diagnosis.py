"""What doctor found."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from clusterctl.console.drawing import console_on, styled
from clusterctl.console.output import table

if TYPE_CHECKING:
    from rich.text import Text

    from clusterctl.doctor.check import Finding


def findings(findings: Iterable[Finding]) -> None:
    """One row a finding, and below them every fix once, with the hosts it is for."""
    shown = list(findings)
    rows = [(styled(one.verdict), one.host or "-", _id(one), _said(one)) for one in shown]
    if rows:
        kind = "CHECK" if any(one.check for one in shown) else "CAUSE"
        table(("VERDICT", "HOST", kind, "FINDING"), rows)
    fixes: dict[str, dict[str, None]] = {}
    for one in shown:
        if one.fix:
            fixes.setdefault(one.fix, {})[one.host or "cluster"] = None
    for fix, hosts in fixes.items():
        console_on(sys.stdout).print(_fix(", ".join(hosts), fix), soft_wrap=True)


def _id(finding: Finding) -> str:
    return finding.check or finding.cause or "-"


def _said(finding: Finding) -> str:
    """The message and where the proof of it stands; of a log, what stands there, too."""
    seen = finding.evidence
    if seen is None or seen.file is None or finding.verdict == "unknown":
        return finding.message
    where = seen.file if seen.line is None else f"{seen.file}:{seen.line}"
    if finding.check is not None:
        return f"{finding.message} [{where}]"
    return f"{finding.message} (confidence {finding.confidence:g})\n{where}: {seen.text}"


def _fix(hosts: str, text: str) -> Text:
    from rich.text import Text

    return Text.assemble(("fix", "bold green"), f" ({hosts}): {text}")
