"""Find every signature in the logs of one failure, in one pass.

A log is searched block by block for the plain text that each pattern holds; only lines which have
one are read as lines. So a long log costs what searching bytes costs.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from clusterctl.doctor.logs.reading import Block, Source, level_of
from clusterctl.doctor.logs.signature import Pattern, Signature, literals

KEPT_HITS = 20
QUIET = ("DEBUG", "INFO", "WARNING", "WARN")
_READY = (b"application startup complete", b"ray runtime started", b"listening on http")


@dataclass(frozen=True)
class Hit:
    """A line that a pattern matched. `order`: of its source among the sources."""

    pattern: Pattern
    source: Source
    order: int
    line: int
    text: str
    values: Mapping[str, str]
    time: float | None


@dataclass
class Scan:
    """What one pass found. `ready`: the last line, by source, that says the server came up."""

    hits: list[Hit] = field(default_factory=list)
    ready: dict[int, int] = field(default_factory=dict)
    present: set[re.Pattern[str]] = field(default_factory=set)


def scan(sources: Sequence[Source], signatures: Iterable[Signature]) -> Scan:
    found = Scan()
    patterns = [pattern for one in signatures for pattern in one.patterns]
    for order, source in enumerate(sources):
        seeker = _Seeker(found, source, order, patterns)
        for block in source.blocks():
            seeker.take(block)
    found.hits = [hit for hit in found.hits if _counts(hit, found)]
    return found


class _Seeker:
    """One source."""

    def __init__(
        self, found: Scan, source: Source, order: int, patterns: Sequence[Pattern]
    ) -> None:
        self._found, self._source, self._order = found, source, order
        self._by_literal: dict[bytes, list[Pattern]] = defaultdict(list)
        for pattern in patterns:
            for literal in pattern.literals:
                self._by_literal[literal].append(pattern)
        both = [regex for one in patterns for regex in (one.given, one.unless) if regex]
        self._conditions = dict.fromkeys(both)
        self._seen: dict[int, int] = defaultdict(int)

    def take(self, block: Block) -> None:
        for literal in _READY:
            for index in _lines_with(block, literal):
                last = self._found.ready.get(self._order, 0)
                self._found.ready[self._order] = max(last, block.number + index)
        for literal, patterns in self._by_literal.items():
            for index in _lines_with(block, literal):
                for pattern in patterns:
                    self._try(pattern, block, index)
        for regex in [one for one in self._conditions if one not in self._found.present]:
            if _stands(regex, block):
                self._found.present.add(regex)

    def _try(self, pattern: Pattern, block: Block, index: int) -> None:
        if self._seen[id(pattern)] >= KEPT_HITS:
            return
        line = block.lines[index]
        if not pattern.any_level and level_of(line) in QUIET:
            return
        window = block.window(index)
        match = pattern.regex.search(window)
        if match is None or match.start() > len(window.partition("\n")[0]):
            return
        self._seen[id(pattern)] += 1
        values = {name: value for name, value in match.groupdict().items() if value is not None}
        self._found.hits.append(
            Hit(
                pattern,
                self._source,
                self._order,
                block.number + index,
                line.strip(),
                values,
                block.time(index),
            )
        )


def _lines_with(block: Block, literal: bytes) -> Iterator[int]:
    at = block.folded.find(literal)
    while at >= 0:
        index = block.index_of(at)
        yield index
        at = block.folded.find(literal, block.end_of(index))


def _stands(regex: re.Pattern[str], block: Block) -> bool:
    """Anywhere in a line, as the log has it."""
    return any(
        regex.search(block.lines[index])
        for literal in literals(regex.pattern)
        for index in _lines_with(block, literal)
    )


def _counts(hit: Hit, found: Scan) -> bool:
    pattern = hit.pattern
    if pattern.given and pattern.given not in found.present:
        return False
    if pattern.unless and pattern.unless in found.present:
        return False
    if not pattern.stays and hit.line < found.ready.get(hit.order, 0):
        return False  # what went wrong before the server came up was overcome
    if pattern.distinct is None:
        return True
    name = pattern.distinct
    return len({one.values.get(name) for one in found.hits if one.pattern is pattern}) > 1
