"""Results as lines, JSON and tables, on stdout."""

from __future__ import annotations

import json as jsonlib
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clusterctl.console.drawing import console_on, grid, show

if TYPE_CHECKING:
    from rich.text import Text

SCHEMA_VERSION = 1
_HOST_COLORS = ("cyan", "magenta", "blue", "green", "yellow", "bright_cyan", "bright_magenta")


def line(text: str = "") -> None:
    """One line of result, as it is: never folded, never coloured."""
    print(text)


def write(text: str) -> None:
    """A part of a line, seen at once."""
    print(text, end="", flush=True)


def json(document: Mapping[str, Any]) -> None:
    print(jsonlib.dumps(document, indent=2))


def json_line(document: Mapping[str, Any]) -> None:
    """One of many, on a line of its own."""
    print(jsonlib.dumps(document), flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Columns under plain headings. A cell is text, or a rich Text where it has a colour."""
    show(grid(columns, rows), sys.stdout)


def log_line(host: str, text: str) -> None:
    """A node's log line behind its name, each name in a colour of its own."""
    from rich.text import Text

    prefix = Text(f"{host} | ", style=_HOST_COLORS[sum(host.encode()) % len(_HOST_COLORS)])
    console_on(sys.stdout).print(prefix + Text(text), soft_wrap=True)


def again(seconds: float) -> None:
    """Between two looks of --watch: wait, then, on a terminal, begin on an empty screen."""
    sys.stdout.flush()
    time.sleep(seconds)
    if sys.stdout.isatty():
        print("\x1b[2J\x1b[H", end="")
    else:
        print()
