"""The only package that prints. Results go to stdout; progress, warnings and errors to stderr.

rich is imported where a table or a live display is drawn: a command that prints lines or JSON
never pays for it.
"""

from clusterctl.console.asking import ask_line, ask_secret, can_ask, confirm
from clusterctl.console.diagnosis import findings
from clusterctl.console.drawing import configure
from clusterctl.console.launching import environment, formation, plan
from clusterctl.console.live import Progress, progress
from clusterctl.console.notes import error, note, warn
from clusterctl.console.output import (
    SCHEMA_VERSION,
    again,
    json,
    json_line,
    line,
    log_line,
    table,
    write,
)
from clusterctl.console.serving import deployments, ranks, status
from clusterctl.console.timing import stages, timeline

__all__ = [
    "SCHEMA_VERSION",
    "Progress",
    "again",
    "ask_line",
    "ask_secret",
    "can_ask",
    "configure",
    "confirm",
    "deployments",
    "environment",
    "error",
    "findings",
    "formation",
    "json",
    "json_line",
    "line",
    "log_line",
    "note",
    "plan",
    "progress",
    "ranks",
    "stages",
    "status",
    "table",
    "timeline",
    "warn",
    "write",
]
