"""The only module that prints. Results go to stdout; progress, warnings and errors to stderr.

rich is imported where a table or a live display is drawn: a command that prints lines or JSON
never pays for it.
"""

from __future__ import annotations

import json as jsonlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from clusterctl.errors import ClusterctlError
from clusterctl.events import Event, Stage
from clusterctl.progress import Board, Row
from clusterctl.secret import Secret

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.text import Text

    from clusterctl.doctor.check import Finding
    from clusterctl.launch import LaunchPlan
    from clusterctl.raycluster import Formation

SCHEMA_VERSION = 1
SHOWN_VALUES = 8  # of a variable that each node has its own of
FREE_WIDTH = 400  # columns where nobody watches: never fold what a pipe reads


@dataclass
class _Settings:
    verbosity: int = 0
    quiet: bool = False
    no_color: bool = False
    live: Live | None = None  # the picture that is being drawn now


_settings = _Settings()


def configure(*, verbosity: int = 0, quiet: bool = False, no_color: bool = False) -> None:
    """What -v, -q and --no-color asked for."""
    _settings.verbosity = verbosity
    _settings.quiet = quiet
    _settings.no_color = no_color


# --- results: stdout -----------------------------------------------------------------------------


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
    _show(_grid(columns, rows), sys.stdout)


def log_line(host: str, text: str) -> None:
    """A node's log line behind its name, each name in a colour of its own."""
    from rich.text import Text

    prefix = Text(f"{host} | ", style=_HOST_COLORS[sum(host.encode()) % len(_HOST_COLORS)])
    _console(sys.stdout).print(prefix + Text(text), soft_wrap=True)


def plan(plan: LaunchPlan, lines: Mapping[str, str]) -> None:
    """What `up` is going to do; `lines` holds the `docker run` line of each node's name."""
    _show(_plan_grid(plan), sys.stdout)
    for name, text in lines.items():
        print(f"\n# {name}\n{text}")


def environment(plan: LaunchPlan) -> None:
    """Each variable of the containers that differs by cluster, with its origin. Nodes that agree
    share a row; many nodes that all differ do, too."""
    from clusterctl.launch import OURS

    nodes: dict[tuple[str, str], dict[str, list[str]]] = {}
    for node in plan.nodes:
        for name, value in node.container.env.items() if node.container else ():
            if (origin := node.origins[name]) != OURS:
                found = nodes.setdefault((name, origin), {})
                found.setdefault(value, []).append(node.expected.name)
    made = sum(node.container is not None for node in plan.nodes)
    rows = [
        (name, value, "all" if len(names) == made > 1 else ", ".join(names), origin)
        for (name, origin), values in sorted(nodes.items())
        for value, names in _shown_values(values)
    ]
    print()
    table(("VARIABLE", "VALUE", "NODES", "FROM"), rows)


def _shown_values(values: Mapping[str, list[str]]) -> list[tuple[str, list[str]]]:
    if len(values) <= SHOWN_VALUES:
        return list(values.items())
    return [(f"{len(values)} values", [name for names in values.values() for name in names])]


def formation(formation: Formation) -> None:
    """Every node: expected against seen."""
    table(
        _NODE_COLUMNS,
        [
            _node_cells(
                node.name,
                node.role,
                node.address,
                node.state,
                node.devices_seen,
                node.devices_expected,
                node.detail,
            )
            for node in formation.nodes
        ],
    )


def status(document: Mapping[str, Any]) -> None:
    """The document of `status --json`, for people."""
    _console(sys.stdout).print(_verdict(document["cluster"], document["verified"]))
    nodes = document["nodes"]
    table(_NODE_COLUMNS, [_node_cells(*(node[key] for key in _NODE_KEYS)) for node in nodes])
    if document["deployments"]:
        print()
        deployments(document["deployments"])


def deployments(records: Iterable[Mapping[str, Any]], now: float | None = None) -> None:
    """Models being served, from the `deployments` of `status --json`. `now`: seconds since 1970."""
    columns = ("NAME", "MODEL", "ENGINE", "TP", "PP", "STATE", "SINCE", "RESTARTS", "TOK/S", "KV")
    at = time.time() if now is None else now
    rows = [
        (
            record["name"],
            record["model"],
            record["engine"],
            str(record["tp"]),
            str(record["pp"]),
            _styled(record["state"]),
            _age(record["since"], at),
            str(record["restarts"]),
            _known(record["tokens_per_s"], "{:g}"),
            _known(record["kv_usage"], "{:.0%}"),
            record["url"] or "-",
        )
        for record in records
    ]
    _show(_grid((*columns, "URL"), rows, foldable=("MODEL", "URL")), sys.stdout)


def ranks(records: Iterable[Mapping[str, Any]]) -> None:
    """The processes of deployments, from the same."""
    table(
        ("DEPLOYMENT", "NODE", "PID", "STATE", "CPU", "BUSY", "PROCESS"),
        [
            (
                record["name"],
                rank["node"],
                str(rank["pid"]),
                _styled(rank["state"]),
                f"{rank['cpu_s']:.0f} s",
                _known(rank["busy"], "{:.0%}"),
                rank["title"],
            )
            for record in records
            for rank in record["ranks"]
        ],
    )


def _age(since: float | None, now: float) -> str:
    if since is None:
        return "-"
    seconds = max(0, int(now - since))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _known(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def again(seconds: float) -> None:
    """Between two looks of --watch: wait, then, on a terminal, begin on an empty screen."""
    sys.stdout.flush()
    time.sleep(seconds)
    if sys.stdout.isatty():
        print("\x1b[2J\x1b[H", end="")
    else:
        print()


def findings(findings: Iterable[Finding]) -> None:
    """One row a finding, and below them every fix once, with the hosts it is for."""
    shown = list(findings)
    rows = [(_styled(one.verdict), one.host or "-", _id(one), _said(one)) for one in shown]
    if rows:
        kind = "CHECK" if any(one.check for one in shown) else "CAUSE"
        table(("VERDICT", "HOST", kind, "FINDING"), rows)
    fixes: dict[str, dict[str, None]] = {}
    for one in shown:
        if one.fix:
            fixes.setdefault(one.fix, {})[one.host or "cluster"] = None
    for fix, hosts in fixes.items():
        _console(sys.stdout).print(_fix(", ".join(hosts), fix), soft_wrap=True)


def _id(finding: Finding) -> str:
    return finding.check or finding.cause or "-"


def _said(finding: Finding) -> str:
    """The message and where the proof of it stands; of a log, what stands there, too."""
    seen = finding.evidence
    if seen is None or seen.file is None or finding.verdict == "unknown":
        return finding.message
    where = seen.file if seen.line is None else f"{seen.file}:{seen.line}"
    if finding.check is not None:
        return f"{finding.message} [{where}]"
    return f"{finding.message} (confidence {finding.confidence:g})\n{where}: {seen.text}"


def _fix(hosts: str, text: str) -> Text:
    from rich.text import Text

    return Text.assemble(("fix", "bold green"), f" ({hosts}): {text}")


def stages(stages: Sequence[Stage], before: Sequence[Stage] = ()) -> None:
    """Seconds of each stage, as a result."""
    if stages:
        _show(_stage_grid(stages, before), sys.stdout)


def _plan_grid(plan: LaunchPlan) -> RenderableType:
    rows = [
        (
            node.expected.name,
            node.expected.role,
            node.expected.address,
            _styled(f"{node.action}, pull" if node.pull else node.action),
            node.reason,
        )
        for node in plan.nodes
    ]
    return _grid(("NODE", "ROLE", "ADDRESS", "ACTION", "WHY"), rows)


# --- about the run: stderr -----------------------------------------------------------------------


def note(text: str) -> None:
    """Good to know; gone with -q."""
    if not _settings.quiet:
        _console(sys.stderr).print(text, soft_wrap=True)


def warn(text: str) -> None:
    _labelled("warning", "yellow", text)


def error(error: ClusterctlError, *, as_json: bool = False) -> None:
    """`error: HOST: what` and `fix: how` on stderr; with `as_json` one object on stdout instead."""
    if _settings.verbosity:
        _print_traceback(error)
    if as_json:
        json({"schema_version": SCHEMA_VERSION, "error": _error_record(error)})
        return
    _labelled(
        "error", "bold red", f"{error.host}: {error.message}" if error.host else error.message
    )
    if error.hint:
        _labelled("fix", "bold green", error.hint)


def timeline(stages: Sequence[Stage], before: Sequence[Stage] = ()) -> None:
    """Seconds of each stage beside those of the run before, if there was one; gone with -q."""
    if not _settings.quiet and stages:
        _show(_stage_grid(stages, before), sys.stderr)


def _stage_grid(stages: Sequence[Stage], before: Sequence[Stage]) -> RenderableType:
    """Longest ones easy to see; the slowest host of those that had a part in it."""
    longest = max(stage.seconds for stage in stages) or 1.0
    then = {stage.step: f"{stage.seconds:.1f} s" for stage in before}
    rows = [
        (
            stage.step,
            f"{stage.seconds:.1f} s",
            *([then.get(stage.step, "-")] if before else []),
            _slowest(stage),
            "━" * max(1, round(24 * stage.seconds / longest)),
        )
        for stage in stages
    ]
    columns = ("STAGE", "TIME", *(["LAST"] if before else []), "SLOWEST HOST", "")
    return _grid(columns, rows)


def _slowest(stage: Stage) -> str:
    if len(stage.hosts) < 2:
        return ""
    host = max(stage.hosts, key=lambda name: stage.hosts[name])
    return f"{host} {stage.hosts[host]:.1f} s"


def can_ask() -> bool:
    """Whether somebody is there to answer."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str, *, about: LaunchPlan | None = None) -> bool:
    """Ask on the terminal, below the plan it is about. Without a terminal the answer is no."""
    if not can_ask():
        return False
    with _picture_stopped():
        if about is not None:
            _show(_plan_grid(about), sys.stderr)
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextmanager
def _picture_stopped() -> Iterator[None]:
    """What is drawn again and again would run over the question."""
    live = _settings.live
    if live is None:
        yield
        return
    live.stop()
    try:
        yield
    finally:
        live.start()


def ask_line(prompt: str) -> str | None:
    """A line of stdin without its end, None at the end; asked for where somebody types it."""
    if sys.stdin.isatty():
        print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def ask_secret(prompt: str) -> Secret | None:
    """A secret typed unseen; None without a terminal or when nothing was typed."""
    from getpass import getpass

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return Secret(text) if (text := getpass(f"{prompt}: ", sys.stderr)) else None


# --- progress ------------------------------------------------------------------------------------


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

    live = Live(console=_console(sys.stderr), refresh_per_second=8, transient=True)
    report = Progress(live)
    live.update(report)
    _settings.live = live
    with live:
        try:
            yield report
        except BaseException:
            live.transient = False
            raise
        finally:
            _settings.live = None


def _is_live() -> bool:
    """Not with -q, nor with -vv, whose lines would run through the picture."""
    watched = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return watched and not _settings.quiet and _settings.verbosity < 2


def _event_line(event: Event) -> None:
    """`12:04:31 gpu02 | pull 37%: Extracting`; with -q only warnings."""
    if _settings.quiet and event.kind != "warn":
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
    width, height = _console(sys.stderr).size
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


# --- drawing -------------------------------------------------------------------------------------

_NODE_COLUMNS = ("NODE", "ROLE", "ADDRESS", "STATE", "DEVICES", "DETAIL")
_NODE_KEYS = ("name", "role", "address", "state", "devices_seen", "devices_expected", "detail")
_HOST_COLORS = ("cyan", "magenta", "blue", "green", "yellow", "bright_cyan", "bright_magenta")
_KINDS = {"begin": "started", "done": "done"}
_EVENT_STYLES = {"warn": "yellow", "line": "dim"}
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


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    watched = stream.isatty() or "COLUMNS" in os.environ
    return Console(
        file=stream,
        width=None if watched else FREE_WIDTH,
        no_color=True if _settings.no_color else None,
        markup=False,
        emoji=False,
        highlight=False,
    )


def _show(renderable: RenderableType, stream: TextIO) -> None:
    """Draw, without the blanks that fill the lines to their end."""
    console = _console(stream)
    with console.capture() as drawn:
        console.print(renderable)
    print("\n".join(line.rstrip() for line in drawn.get().splitlines()), file=stream)


def _grid(
    columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, foldable: Sequence[str] = ()
) -> RenderableType:
    """Only the foldable columns (the last, unless named) give way on a narrow terminal."""
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        folds = column in (foldable or columns[-1:])
        grid.add_column(column, overflow="fold", no_wrap=not folds)
    for row in rows:
        grid.add_row(*row)
    return grid


def _node_cells(
    name: str, role: str, address: str, state: str, seen: int, expected: int, detail: str
) -> tuple[str | Text, ...]:
    return name, role, address, _styled(state), f"{seen}/{expected}", detail


def _styled(word: str) -> Text:
    """A state or action in its colour; its first word decides."""
    from rich.text import Text

    return Text(word, style=_STYLES.get(word.partition(",")[0], ""))


def _verdict(cluster: str, verified: bool | None) -> Text:
    from rich.text import Text

    word, style = {
        True: ("verified", "bold green"),
        False: ("NOT verified", "bold red"),
        None: (
            "not known to be verified (no collective check of these containers: clusterctl sanity)",
            "bold yellow",
        ),
    }[verified]
    return Text.assemble((f"{cluster}: ", "bold"), (word, style))


def _labelled(label: str, style: str, text: str) -> None:
    from rich.text import Text

    _console(sys.stderr).print(Text.assemble((f"{label}: ", style), text), soft_wrap=True)


def _error_record(error: ClusterctlError) -> dict[str, str | None]:
    return {"code": error.code, "message": error.message, "host": error.host, "hint": error.hint}


def _print_traceback(error: BaseException) -> None:
    traceback.print_exception(error, file=sys.stderr)
