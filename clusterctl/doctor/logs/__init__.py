"""From the logs of one failure to its root cause. PURE but for reading the files."""

from __future__ import annotations

from collections.abc import Sequence

from clusterctl.doctor.check import Finding
from clusterctl.doctor.logs.ranking import findings
from clusterctl.doctor.logs.reading import Source, sources
from clusterctl.doctor.logs.scan import scan
from clusterctl.doctor.logs.signature import signatures
from clusterctl.doctor.logs.suspicion import unknown


def diagnose(paths: Sequence[str]) -> list[Finding]:
    """The findings, likeliest first; none for healthy logs. `paths`: files, directories, `-`.

    Several logs are those of the ranks and nodes of one failure. Raises ConfigError for a path
    that is not there.
    """
    return diagnose_sources(sources(paths))


def diagnose_sources(logs: Sequence[Source]) -> list[Finding]:
    known = signatures()
    found = scan(logs, known.values())
    return findings(found.hits, known) if found.hits else unknown(logs, found.ready)
