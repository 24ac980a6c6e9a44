"""What a directory holds, as a host says it, and in what two hosts differ. PURE."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NAMED_BY_DIGEST = re.compile(r"blobs/(?:sha256/)?([0-9a-f]{64})")


@dataclass(frozen=True)
class TreeFile:
    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Tree:
    """`links`: path -> target, both relative."""

    files: tuple[TreeFile, ...]
    links: Mapping[str, str]

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Tree:
        """From the reply to `scan`."""
        return cls(tuple(TreeFile(*one) for one in said["files"]), dict(said["links"]))

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def digests(self) -> dict[str, str]:
        return {file.path: file.sha256 for file in self.files}

    def request(self) -> dict[str, Any]:
        """As `stage` and `offer` take it."""
        files = [[file.path, file.size, file.sha256] for file in self.files]
        return {"files": files, "links": [list(link) for link in self.links.items()]}


@dataclass(frozen=True)
class Seen:
    """A model on one node. `tree` None: it is not there. `recorded`: what was once written there,
    by path; `missing`: shards that its own index names and that are absent."""

    tree: Tree | None
    recorded: Mapping[str, str]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fault:
    """One file that is not what it should be. `path` empty: the model as a whole."""

    node: str
    path: str
    message: str


def faults(seen: Mapping[str, Seen]) -> tuple[Fault, ...]:
    """In what the nodes are not equal, or not what was written there."""
    return tuple(_faults(seen))


def _faults(seen: Mapping[str, Seen]) -> Iterator[Fault]:
    present = {name: one.tree for name, one in seen.items() if one.tree is not None}
    yield from (Fault(name, "", "is not there") for name in seen if name not in present)
    for name in present:
        yield from (Fault(name, path, "its index names it") for path in seen[name].missing)
    for path in sorted({path for tree in present.values() for path in tree.digests}):
        yield from _of_file(path, present, [one.recorded for one in seen.values()])
    for path in sorted({path for tree in present.values() for path in tree.links}):
        yield from _of_link(path, present)


def _of_file(
    path: str, trees: Mapping[str, Tree], records: Sequence[Mapping[str, str]]
) -> Iterator[Fault]:
    digests = {name: tree.digests.get(path) for name, tree in trees.items()}
    right = _right(path, records, list(digests.values()))
    for name, found in digests.items():
        if found is None:
            yield Fault(name, path, "is absent")
        elif right is None:
            yield Fault(name, path, f"has SHA-256 {found[:12]}, and the nodes disagree")
        elif found != right:
            yield Fault(name, path, f"has SHA-256 {found[:12]}, not {right[:12]}")


def _right(
    path: str, records: Sequence[Mapping[str, str]], found: Sequence[str | None]
) -> str | None:
    """A blob's name, else what was recorded when it was written, else what most nodes have."""
    if named := _NAMED_BY_DIGEST.fullmatch(path):
        return named[1]
    recorded = _majority([record.get(path) for record in records])
    return recorded or _majority(found)


def _majority(values: Sequence[str | None]) -> str | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    value, count = Counter(known).most_common(1)[0]
    return value if 2 * count > len(known) else None


def _of_link(path: str, trees: Mapping[str, Tree]) -> Iterator[Fault]:
    targets = {name: tree.links.get(path) for name, tree in trees.items()}
    right = _majority(list(targets.values()))
    for name, target in targets.items():
        if target is None or target != right:
            yield Fault(name, path, "is absent" if target is None else f"leads to {target}")
