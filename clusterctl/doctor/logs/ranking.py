"""Which of the causes that were read is the root. PURE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clusterctl.doctor.check import Evidence, Finding
from clusterctl.doctor.logs.scan import Hit
from clusterctl.doctor.logs.signature import Signature

CAUSE, LIKELY = 0.8, 0.5
EVIDENCE_CHARS = 600
SHOWN = 4


def findings(hits: Sequence[Hit], known: Mapping[str, Signature]) -> list[Finding]:
    """The root first, as a failure; what else was read follows as warnings."""
    earliest: dict[str, Hit] = {}
    for hit in sorted(hits, key=lambda one: _rank(one, several=_several(hits))):
        first = earliest.setdefault(hit.pattern.cause, hit)
        if _same_line(first, hit) and len(hit.values) > len(first.values):
            earliest[hit.pattern.cause] = hit  # another wording of it tells more
    explained = {
        cause
        for hit in earliest.values()
        if hit.pattern.sure >= LIKELY
        for cause in known[hit.pattern.cause].explains
    }
    ordered = sorted(earliest.values(), key=lambda one: one.pattern.cause in explained)
    return [_finding(hit, known, root=hit is ordered[0]) for hit in ordered[:SHOWN]]


def _same_line(a: Hit, b: Hit) -> bool:
    return (a.order, a.line, a.pattern.sure) == (b.order, b.line, b.pattern.sure)


def _several(hits: Sequence[Hit]) -> bool:
    return len({hit.order for hit in hits}) > 1


def _rank(hit: Hit, *, several: bool) -> tuple[float, ...]:
    """Causes before likely ones before consequences; within these the earliest, by the clock where
    several logs speak; of one line the surest reading."""
    tier = 0 if hit.pattern.sure >= CAUSE else 1 if hit.pattern.sure >= LIKELY else 2
    time = hit.time if several and hit.time is not None else 0.0
    return (tier, time, hit.order, hit.line, -hit.pattern.sure)


def _finding(hit: Hit, known: Mapping[str, Signature], *, root: bool) -> Finding:
    signature = known[hit.pattern.cause]
    return Finding(
        check=None,
        cause=signature.id,
        host=hit.source.host or hit.values.get("host"),
        verdict="fail" if root else "warn",
        message=signature.title if root else f"{signature.title} (also seen)",
        confidence=hit.pattern.sure if root else round(hit.pattern.sure / 2, 2),
        evidence=Evidence(hit.text[:EVIDENCE_CHARS], hit.source.name, hit.line),
        values=dict(hit.values),
        fix=signature.fix(hit.values),
    )
