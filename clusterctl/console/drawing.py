"""How things are drawn: colours, columns, widths. The rest of the package builds on it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.text import Text

FREE_WIDTH = 400  # columns where nobody watches: never fold what a pipe reads
_STYLES = {
    "ready": "green",
    "keep": "green",
    "starting": "yellow",
    "restarting": "yellow",
    "degraded": "yellow",
    "create": "cyan",
    "start": "cyan",
    "replace": "yellow",
    "remove": "red",
    "missing": "red",
    "unreachable": "red",
    "failed": "red",
    "unexpected": "red",
    "stopped": "dim",
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
    "unknown": "magenta",
    "skip": "dim",
}


@dataclass
class Settings:
    verbosity: int = 0
    quiet: bool = False
    no_color: bool = False
    live: Live | None = None  # the picture that is being drawn now


settings = Settings()


def configure(*, verbosity: int = 0, quiet: bool = False, no_color: bool = False) -> None:
    """What -v, -q and --no-color asked for."""
    settings.verbosity = verbosity
    settings.quiet = quiet
    settings.no_color = no_color


def console_on(stream: TextIO) -> Console:
    from rich.console import Console

    watched = stream.isatty() or "COLUMNS" in os.environ
    return Console(
        file=stream,
        width=None if watched else FREE_WIDTH,
        no_color=True if settings.no_color else None,
        markup=False,
        emoji=False,
        highlight=False,
    )


def show(renderable: RenderableType, stream: TextIO) -> None:
    """Draw, without the blanks that fill the lines to their end."""
    console = console_on(stream)
    with console.capture() as drawn:
        console.print(renderable)
    print("\n".join(line.rstrip() for line in drawn.get().splitlines()), file=stream)


def grid(
    columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, foldable: Sequence[str] = ()
) -> RenderableType:
    """Only the foldable columns (the last, unless named) give way on a narrow terminal."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        folds = column in (foldable or columns[-1:])
        table.add_column(column, overflow="fold", no_wrap=not folds)
    for row in rows:
        table.add_row(*row)
    return table


def styled(word: str) -> Text:
    """A state or action in its colour; its first word decides."""
    from rich.text import Text

    return Text(word, style=_STYLES.get(word.partition(",")[0], ""))
