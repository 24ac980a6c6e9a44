"""Lines that speak of a failure whose cause nobody has described yet."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from clusterctl.doctor.check import Evidence, Finding
from clusterctl.doctor.logs.reading import Source, said

SHOWN = 3
LINE_CHARS = 300
_FATAL = re.compile(
    r"^(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Failed|Interrupt)\b(?::|$)|^[\w. -]+: error:"
    r"|^(?:FATAL|CRITICAL|Fatal|fatal)\b|Segmentation fault|core dumped|NCCL WARN|NVRM: Xid"
    r"|^rank \d+: "
)
_ECHO = re.compile(
    r"ActorDied|ActorHandleNotFound|EngineDead|EngineGenerateError|See (?:root cause|stack trace)"
    r"|Engine core initialization failed|WorkerProc initialization failed|KeyboardInterrupt"
    r"|CancelledError|SystemExit|leaked (?:semaphore|shared_memory)|RayTaskError\(|NotFoundError'"
    r"|died unexpectedly|Executor failed|resource_tracker|GeneratorExit"
    r"|BadRequest|maximum context length"  # what a client did wrong
)
# "(RankActor pid=71, ip=10.0.0.2) ": Ray writes it before what its actors print.
_ACTOR = re.compile(r"^(?:\x1b\[\d+m)?\((?P<who>\w+ pid=\d+(?:, ip=[\d.]+)?)\)(?:\x1b\[0m)? ?")
_ERROR = re.compile(
    r"^(?:ERROR\b|CRITICAL\b|[\w. -]+: error:"
    r"|(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Failed|Exit)\b(?::|$))"
)
# vLLM logs a traceback line by line, each as an error: its frames say nothing by themselves.
_FRAME = re.compile(r"^ERROR [\d-]+ [\d:]+ \[[\w./]+:\d+\](?: (?:\s|Traceback )|$)")
_ASSERTED = re.compile(r"(?:^|\]) +(assert .+)$")
_COLOR = re.compile(r"\x1b\[[\d;]*m")
_WARNED = re.compile(r"\b(?:INFO|WARNING|DEBUG)\b")


def unknown(sources: Sequence[Source], ready: Mapping[int, int]) -> list[Finding]:
    """One finding with the first lines that look like a failure; none where none does."""
    lines = [
        found for order, one in enumerate(sources) for found in _lines(one, ready.get(order, 0))
    ]
    first = lines[:SHOWN]
    if not first:
        return []
    source, number, text = first[0]
    values = {f"line {n}": f"{s.name}:{at}: {t}" for n, (s, at, t) in enumerate(first, 1)}
    said_so = "\n".join(f"  {s.name}:{at}: {t}" for s, at, t in first)
    return [
        Finding(
            check=None,
            cause=None,
            host=source.host,
            verdict="unknown",
            message=f"the cause is not known; the most suspicious lines:\n{said_so}",
            confidence=0.0,
            evidence=Evidence(text, source.name, number),
            values=values,
        )
    ]


def _lines(source: Source, after: int) -> Iterator[tuple[Source, int, str]]:
    seen: set[str] = set()
    for block in source.blocks():
        own = block.lines[: block.data.count(b"\n") + (not block.data.endswith(b"\n"))]
        for number, line in enumerate(own, block.number):
            text = said(line)[:LINE_CHARS].strip()
            if number <= after or text in seen or not _FATAL.search(text):
                continue
            if not _ECHO.search(text) and not _WARNED.search(line[:120]):
                seen.add(text)
                yield source, number, text
            if len(seen) == SHOWN:
                return


def earliest_errors(lines: Iterable[str], limit: int = 3) -> list[str]:
    """The first distinct error lines over all ranks; later ones are mostly consequences. To a bare
    AssertionError belongs what was asserted, which stands above it."""
    found: dict[str, None] = {}
    asserted = ""
    for line in lines:
        plain = _COLOR.sub("", line).rstrip()
        actor = _ACTOR.match(plain)
        said = plain[actor.end() :] if actor else plain
        if match := _ASSERTED.search(said):
            asserted = match[1]
        if _ERROR.match(said) and not _FRAME.match(said):
            if said.endswith("AssertionError") and asserted:
                said = f"{said}: {asserted}"
            found[f"{said} ({actor['who']})" if actor else said] = None
        if len(found) == limit:
            break
    return list(found)
