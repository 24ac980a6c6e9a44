"""After a failure: the logs of all nodes, and what they say of its cause."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

from clusterctl.containers import LABEL_CLUSTER, LABEL_NODE
from clusterctl.doctor.check import Finding
from clusterctl.doctor.logs import diagnose_sources
from clusterctl.doctor.logs.ranking import LIKELY
from clusterctl.doctor.logs.reading import Source
from clusterctl.errors import NotReady, PreflightFailed
from clusterctl.fanout import Done
from clusterctl.links import HostLink
from clusterctl.session import Session

Error = TypeVar("Error", PreflightFailed, NotReady)

TAIL_LINES = 2000
RAY_LOGS_S = 20.0
# What Ray's processes and workers wrote lately, each file behind tail's own heading.
RAY_LOGS = (
    "find /tmp/ray/session_latest/logs -type f -mmin -15 "
    r"\( -name '*.err' -o -name '*.out' -o -name '*.log' \) -exec tail -v -c 65536 {} + 2>/dev/null"
)
_HEADING = re.compile(r"^==> (.+) <==$", re.MULTILINE)


def root_cause(session: Session, own: Sequence[Source] = ()) -> Finding | None:
    """The likeliest cause; None where no log names one.

    `own`: the logs of what failed. The nodes are asked for theirs only where they do not tell,
    for they also remember what went wrong before.
    """
    first = list(own)
    if (found := _cause(first)) is not None and found.confidence >= LIKELY:
        return found
    return _cause([*first, *collect(session)]) or found


def diagnosed(error: Error, logs: Sequence[Source]) -> Error:
    """The error with the cause that these logs tell, and its fix. What only follows from a failure
    is left out: the error says that much itself."""
    found = _cause(list(logs))
    if found is None or found.confidence < LIKELY:
        return error
    message, hint = f"{error.message}\n{told(found)}", found.fix or error.hint
    return type(error)(message, host=error.host, hint=hint, cause=found.cause)


def told(finding: Finding) -> str:
    """The diagnosis for people: the cause, and the line that proves it."""
    sure = f"confidence {finding.confidence:g}"
    text = f"diagnosis: {finding.message} ({finding.cause}), {sure}"
    if (seen := finding.evidence) is not None:
        text += f"\n  {seen.file}:{seen.line}: {seen.text}"
    return text


def collect(session: Session) -> list[Source]:
    """Container logs and Ray's session logs of every node that answers."""
    outcomes = session.each(lambda link: list(_of_host(link, session.spec.name)))
    return [log for done in outcomes.values() if isinstance(done, Done) for log in done.value]


def _cause(logs: list[Source]) -> Finding | None:
    found = diagnose_sources(logs)
    return found[0] if found and found[0].cause is not None else None


def _of_host(link: HostLink, cluster: str) -> Iterator[Source]:
    for container in link.runtime.containers({LABEL_CLUSTER: cluster, LABEL_NODE: link.name}):
        lines = "\n".join(link.runtime.logs(container.id, tail=TAIL_LINES))
        yield Source(f"{link.name}: container", lines.encode(), link.name)
        if container.state == "running":
            said = link.runtime.exec(
                container.id, ["sh", "-c", RAY_LOGS], timeout=RAY_LOGS_S, check=False
            )
            yield from _files(link.name, said.stdout)


def _files(host: str, text: str) -> Iterator[Source]:
    """PURE: tail's output, file by file."""
    _, *parts = _HEADING.split(text)
    for name, content in zip(parts[::2], parts[1::2], strict=True):
        yield Source(f"{host}: {name}", content.lstrip("\n").encode(), host)
