"""Logs as blocks of whole lines, and a line without the marks that carriers put before it."""

from __future__ import annotations

import atexit
import gzip
import io
import os
import re
import shutil
import sys
import tempfile
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

from clusterctl.errors import ConfigError

BLOCK_BYTES = 1 << 20
WINDOW_LINES = 12
LINE_CHARS = 4000
SUFFIXES_LEFT_OUT = (".json", ".yaml", ".yml", ".pyc", ".so", ".whl", ".safetensors")

_COLOR = re.compile(rb"\x1b\[[\d;]*[A-Za-z]")
_MARK = re.compile(
    r"""\s*(?:
      \d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:?\d\d)?\s        # docker logs -t
    | \[[\w.-]+\]\s(?=\S)(?=\(|\[|[A-Z]{4,8}[ :])           # our supervisor's [NAME]
    | \((?:\w[\w.-]*\s)?(?:pid|rank|autoscaler|raylet|ip)[^)]*\)\s?   # Ray's and vLLM's (who pid=1)
    | \((?:\w+\s)?(?:raylet|autoscaler)[^)]*\)\s?
    | \[(?:default|rank)\d*\]:?\s*                           # torchrun's and torch's [rank0]:
    | \d+:\s(?=\S)                                          # srun -l
    | \[\d{4}-\d\d-\d\d[ T][\d:.,]+[^\]]*\]\s*
    | [EWIF]\d{4}\s[\d:.]+\s+\d+\s+\S+:\d+\]\s?              # glog, torch
    | \d{4}-\d\d-\d\d[ T][\d:.,]+\s*(?:-\s)?
    | (?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\s\d\d-\d\d\s[\d:.]+\s(?:\[[^\]]*\]\s?|[\w.]+:\d+\]\s?)?
    | (?:ERROR|CRITICAL|FATAL):\s+
    )""",
    re.VERBOSE,
)
_LEVEL = re.compile(
    r"(?:^|[\s\[(:|-])(DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL)(?=[\s\]:|)-]|$)"
)
_GLOG_LEVEL = re.compile(r"(?:^|\[|\s)([EWIF])\d{4}\s\d\d:|\[\d{4}[\d :,.-]+ ([EWIF]) \d+ \d+\]")
_GLOG = {"E": "ERROR", "W": "WARNING", "I": "INFO", "F": "FATAL"}
_TIMES = (
    re.compile(r"\d{4}-(?P<month>\d\d)-(?P<day>\d\d)[ T](?P<h>\d\d):(?P<m>\d\d):(?P<s>\d\d)"),
    re.compile(
        r"(?:^|[\[\s])[EWIF](?P<month>\d\d)(?P<day>\d\d) (?P<h>\d\d):(?P<m>\d\d):(?P<s>\d\d)"
    ),
    re.compile(r"\b(?P<month>\d\d)-(?P<day>\d\d) (?P<h>\d\d):(?P<m>\d\d):(?P<s>\d\d)"),
)


@dataclass(frozen=True)
class Source:
    """One log. `name` is shown in evidence; `host` is known where it was collected from one."""

    name: str
    data: bytes | Path
    host: str | None = None

    def blocks(self) -> Iterator[Block]:
        """The whole log; a block also sees the lines that follow it."""
        number, held = 1, b""
        for chunk in self._chunks():
            if held:
                yield Block(number, held, chunk[:8192])
                number += held.count(b"\n")
            held = chunk
        if held:
            yield Block(number, held, b"")

    def text(self) -> str:
        """All of it, as it was collected."""
        return b"".join(self._chunks()).decode(errors="replace")

    def _chunks(self) -> Iterator[bytes]:
        """Raises ConfigError where the file cannot be read to its end."""
        try:
            with self._opened() as file:
                while chunk := file.read(BLOCK_BYTES):
                    yield _plain(chunk + file.readline(BLOCK_BYTES))
        except (OSError, EOFError, zlib.error) as error:
            raise ConfigError(
                f"{self.name} cannot be read: {getattr(error, 'strerror', None) or error}",
                hint="leave it out, or copy it again",
            ) from error

    def _opened(self) -> io.BufferedIOBase:
        if isinstance(self.data, bytes):
            return io.BytesIO(self.data)
        return gzip.open(self.data) if self.data.suffix == ".gz" else self.data.open("rb")


def _plain(data: bytes) -> bytes:
    return _COLOR.sub(b"", data) if b"\x1b" in data else data


@dataclass(frozen=True)
class Block:
    """Whole lines from line `number` on, and the beginning of what follows."""

    number: int
    data: bytes
    after: bytes

    @cached_property
    def folded(self) -> bytes:
        return self.data.lower()

    @cached_property
    def _ends(self) -> list[int]:
        return [at.start() for at in re.finditer(rb"\n", self.data)]

    @cached_property
    def lines(self) -> list[str]:
        whole = (self.data + self.after).decode(errors="replace")
        return [line[:LINE_CHARS] for line in whole.split("\n")]

    def index_of(self, offset: int) -> int:
        """Of the line that holds this byte, from 0."""
        return bisect_right(self._ends, offset - 1)

    def end_of(self, index: int) -> int:
        return self._ends[index] + 1 if index < len(self._ends) else len(self.data)

    def window(self, index: int) -> str:
        return "\n".join(said(line) for line in self.lines[index : index + WINDOW_LINES])

    def time(self, index: int) -> float | None:
        """Of the nearest line at or before it that has one."""
        for line in reversed(self.lines[max(0, index - 200) : index + 1]):
            if (found := time_of(line)) is not None:
                return found
        return None


def said(line: str) -> str:
    """The line without colours, and without what Ray, Docker, vLLM, torchrun put before it."""
    text = line.rstrip("\r").rpartition("\r")[2]
    start = 0
    while (mark := _MARK.match(text, start)) and mark.end() > start:
        start = mark.end()
    return text[start:]


def level_of(line: str) -> str | None:
    head = line[:200]
    if found := _GLOG_LEVEL.search(head):
        return _GLOG[found[1] or found[2]]
    if "NCCL WARN" in head:
        return "ERROR"  # NCCL has no other word for one
    level = _LEVEL.search(head)
    return level[1] if level else None


def time_of(line: str) -> float | None:
    """Seconds since the year began: most logs do not say which year."""
    for form in _TIMES:
        if found := form.search(line[:120]):
            month, day, h, m, s = (int(found[k]) for k in ("month", "day", "h", "m", "s"))
            return float((((month * 31 + day) * 24 + h) * 60 + m) * 60 + s)
    return None


def sources(paths: Sequence[str]) -> list[Source]:
    """Files, every log below a directory, and `-` for stdin. Raises ConfigError for none."""
    return [one for path in paths for one in _sources(path)]


def _sources(path: str) -> Iterable[Source]:
    if path == "-":
        return [Source("stdin", _kept(sys.stdin.buffer))]
    at = Path(path)
    if at.is_dir():
        return [Source(str(one), one) for one in sorted(at.rglob("*")) if _is_log(one)]
    if not at.is_file():
        raise ConfigError(f"there is no log {path}", hint="--logs takes files, a directory, or -")
    return [Source(path, at)]


def _kept(stream: IO[bytes]) -> Path:
    """On disk, for a log is read more than once and may be larger than memory."""
    with tempfile.NamedTemporaryFile(prefix="clusterctl-log-", delete=False) as file:
        atexit.register(os.unlink, file.name)
        shutil.copyfileobj(stream, file)
    return Path(file.name)


def _is_log(path: Path) -> bool:
    if not path.is_file() or path.suffix in SUFFIXES_LEFT_OUT:
        return False
    if path.suffix == ".gz" or not os.access(path, os.R_OK):
        return True  # whoever reads it says why it cannot be read
    with path.open("rb") as file:
        return b"\0" not in file.read(4096)
