"""About the run: notes, warnings and errors, on stderr."""

from __future__ import annotations

import sys
import traceback

from clusterctl.console.drawing import console_on, settings
from clusterctl.console.output import SCHEMA_VERSION, json
from clusterctl.errors import ClusterctlError


def note(text: str) -> None:
    """Good to know; gone with -q."""
    if not settings.quiet:
        console_on(sys.stderr).print(text, soft_wrap=True)


def warn(text: str) -> None:
    _labelled("warning", "yellow", text)


def error(error: ClusterctlError, *, as_json: bool = False) -> None:
    """`error: HOST: what` and `fix: how` on stderr; with `as_json` one object on stdout instead."""
    if settings.verbosity:
        _print_traceback(error)
    if as_json:
        json({"schema_version": SCHEMA_VERSION, "error": _error_record(error)})
        return
    _labelled(
        "error", "bold red", f"{error.host}: {error.message}" if error.host else error.message
    )
    if error.hint:
        _labelled("fix", "bold green", error.hint)


def _labelled(label: str, style: str, text: str) -> None:
    from rich.text import Text

    console_on(sys.stderr).print(Text.assemble((f"{label}: ", style), text), soft_wrap=True)


def _error_record(error: ClusterctlError) -> dict[str, str | None]:
    return {"code": error.code, "message": error.message, "host": error.host, "hint": error.hint}


def _print_traceback(error: BaseException) -> None:
    traceback.print_exception(error, file=sys.stderr)
