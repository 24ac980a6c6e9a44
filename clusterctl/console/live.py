"""What happens, as it happens: a picture on a terminal, lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from clusterctl.console.drawing import console_on, settings
from clusterctl.events import Event, Stage
from clusterctl.progress import Board, Row

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.text import Text

_KINDS = {"begin": "started", "done": "done"}
_EVENT_STYLES = {"warn": "yellow", "line": "dim"}


class Progress:
    """A Report. Draws live on a terminal, writes lines elsewhere; any thread may call it."""

    def __init__(self, live: Live | None) -> None:
        self._board = Board()
        self._live = live
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        # Printing waits for the display, whose own thread waits for this lock: print outside it.
        with self._lock:
            now = time.monotonic()
            self._board.update(event, now)
            due = self._live is None and self._board.due(event, now)
        if due:
            _event_line(event)
        elif self._live and event.kind in ("note", "warn", "line"):
            self._live.console.print(_event_text(event), soft_wrap=True)

    def __rich__(self) -> RenderableType:
        with self._lock:
            return _board_grid(self._board, time.monotonic())

    @property
    def stages(self) -> list[Stage]:
        """What `timeline` shows."""
        with self._lock:
            return self._board.stages()


@contextmanager
def progress() -> Iterator[Progress]:
    """`with console.progress() as report: up(spec, report)`. After an error the picture stays."""
    if not _is_live():
        yield Progress(None)
        return
    from rich.live import Live

    live = Live(console=console_on(sys.stderr), refresh_per_second=8, transient=True)
    report = Progress(live)
    live.update(report)
    settings.live = live
    with live:
        try:
            yield report
        except BaseException:
            live.transient = False
            raise
        finally:
            settings.live = None


def _is_live() -> bool:
    """Not with -q, nor with -vv, whose lines would run through the picture."""
    watched = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return watched and not settings.quiet and settings.verbosity < 2


def _event_line(event: Event) -> None:
    """`12:04:31 gpu02 | pull 37%: Extracting`; with -q only warnings."""
    if settings.quiet and event.kind != "warn":
        return
    # With its newline in one write: other threads print too.
    line = f"{time.strftime('%H:%M:%S')} {_event_text(event)}\n"
    print(line, end="", file=sys.stderr, flush=True)


def _event_text(event: Event) -> Text:
    from rich.text import Text

    label = "warning: " if event.kind == "warn" else ""
    said = event.message or _KINDS.get(event.kind, "")
    where = event.host or "cluster"
    how_far = ""
    if event.kind == "progress" and event.total:
        how_far = f" {100 * (event.done or 0) // event.total}%"
    return Text(
        f"{where} | {event.step}{how_far}: {label}{said}", style=_EVENT_STYLES.get(event.kind, "")
    )


def _board_grid(board: Board, now: float) -> RenderableType:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for foldable in (False, False, False, True, False, False):
        grid.add_column(no_wrap=not foldable, overflow="fold")
    width, height = console_on(sys.stderr).size
    rows, left_out = board.shown(limit=max(3, height - 4))
    for row in rows:
        grid.add_row(*_row_cells(row, now, bar_width=min(20, width // 6)))
    if left_out:
        grid.add_row("", f"and {left_out} more")
    return grid


def _row_cells(row: Row, now: float, *, bar_width: int) -> tuple[RenderableType, ...]:
    from rich.progress_bar import ProgressBar
    from rich.spinner import Spinner
    from rich.text import Text

    mark: RenderableType = {"done": Text("✓", "green"), "warned": Text("!", "yellow")}.get(
        row.state
    ) or Spinner("dots", style="cyan")
    bar: RenderableType = ""
    if row.total and row.state == "running":
        bar = ProgressBar(total=row.total, completed=row.done or 0, width=bar_width)
    seconds = f"{now - row.since:.0f} s" if row.state == "running" else ""
    return mark, row.host or "cluster", Text(row.step, "cyan"), Text(row.message), bar, seconds
