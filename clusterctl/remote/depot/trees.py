"""What a directory holds: its files with their SHA-256, and its links.

Digests are kept in a record, and hold for as long as a file's size and time of change do. A blob
of LFS in the Hugging Face cache, and one of an image, is named by its SHA-256: it need not be read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from .failures import Failure

RECORD = ".clusterctl.json"
CHUNK = 1 << 20
READERS = 4  # hashing leaves the interpreter's lock; more would only make a disk seek
NAMED_BY_DIGEST = re.compile(r"blobs/(sha256/)?[0-9a-f]{64}")
SKIPPED = re.compile(r"(^|/)(\.no_exist|\.locks|\.clusterctl[^/]*)(/|$)|\.incomplete$")

OnBytes = Callable[[int], None]
Record = dict[str, Any]  # path -> {"size", "mtime_ns", "sha256"}


class Entry(NamedTuple):
    """A file of a tree. `path` is relative to it."""

    path: str
    size: int
    sha256: str


class Link(NamedTuple):
    """A link of a tree to another place in it, as it was written."""

    path: str
    target: str


class Tree(NamedTuple):
    files: list[Entry]
    links: list[Link]


def scan(root: Path, *, record: Path, fresh: bool, on_bytes: OnBytes) -> Tree:
    """All of a directory. `fresh` reads every byte; else what the record knows is believed."""
    if not root.is_dir():
        raise Failure(f"{root} is no directory", "absent")
    names, links = _walk(root)
    known = {} if fresh else read_record(record)
    believed = {} if fresh else {name: _believed(root, name, known) for name in names}

    def entry(name: str) -> Entry:
        path = root / name
        size = path.stat().st_size
        return Entry(name, size, believed.get(name) or digest(path, on_bytes))

    with ThreadPoolExecutor(READERS) as readers:
        return Tree(list(readers.map(entry, names)), links)


def _walk(root: Path) -> tuple[list[str], list[Link]]:
    """Files and links by name. A link that leads out of the tree stands for its file."""
    names: list[str] = []
    links: list[Link] = []
    for name in sorted(_names(root)):
        path = root / name
        target = os.readlink(path) if path.is_symlink() else ""
        if target and not target.startswith("/") and _inside(root, path.parent / target):
            links.append(Link(name, target))
        elif path.is_file():
            names.append(name)
    return names, links


def _names(root: Path) -> Iterator[str]:
    for directory, _, files in os.walk(root):
        for file in files:
            name = str((Path(directory) / file).relative_to(root))
            if not SKIPPED.search(name):
                yield name


def _inside(root: Path, path: Path) -> bool:
    return os.path.normpath(path).startswith(f"{root}/")


def digest(path: Path, on_bytes: OnBytes) -> str:
    return str(hashed(path, on_bytes).hexdigest())


def hashed(path: Path, on_bytes: OnBytes) -> Any:
    """The SHA-256 of a file so far, to go on with."""
    running = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            running.update(data)
            on_bytes(len(data))
    return running


def _believed(root: Path, name: str, known: Record) -> str | None:
    if NAMED_BY_DIGEST.fullmatch(name):
        return name.rpartition("/")[2]
    return recorded(known, name, os.stat(root / name))


def recorded(known: Record, name: str, now: os.stat_result) -> str | None:
    """The digest of a file that has not changed since it was recorded."""
    entry = known.get(name, {})
    same = entry.get("size") == now.st_size and entry.get("mtime_ns") == now.st_mtime_ns
    return str(entry["sha256"]) if same else None


def read_record(path: Path) -> Record:
    try:
        record: Record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    return record


def write_record(path: Path, root: Path, files: list[Entry]) -> None:
    """It appears whole."""
    record = {}
    for entry in files:
        now = os.stat(root / entry.path)
        known = {"size": now.st_size, "mtime_ns": now.st_mtime_ns, "sha256": entry.sha256}
        record[entry.path] = known
    draft = path.with_name(path.name + ".new")
    draft.write_text(json.dumps(record))
    draft.replace(path)
