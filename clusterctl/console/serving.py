"""The state of a cluster and of what it serves."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from clusterctl.console.drawing import console_on, grid, show, styled
from clusterctl.console.launching import NODE_COLUMNS, node_cells
from clusterctl.console.output import table

if TYPE_CHECKING:
    from rich.text import Text

_NODE_KEYS = ("name", "role", "address", "state", "devices_seen", "devices_expected", "detail")


def status(document: Mapping[str, Any]) -> None:
    """The document of `status --json`, for people."""
    console_on(sys.stdout).print(_verdict(document["cluster"], document["verified"]))
    nodes = document["nodes"]
    table(NODE_COLUMNS, [node_cells(*(node[key] for key in _NODE_KEYS)) for node in nodes])
    if document["deployments"]:
        print()
        deployments(document["deployments"])


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
            styled(record["state"]),
            _age(record["since"], at),
            str(record["restarts"]),
            _known(record["tokens_per_s"], "{:g}"),
            _known(record["kv_usage"], "{:.0%}"),
            record["url"] or "-",
        )
        for record in records
    ]
    show(grid((*columns, "URL"), rows, foldable=("MODEL", "URL")), sys.stdout)


def ranks(records: Iterable[Mapping[str, Any]]) -> None:
    """The processes of deployments, from the same."""
    table(
        ("DEPLOYMENT", "NODE", "PID", "STATE", "CPU", "BUSY", "PROCESS"),
        [
            (
                record["name"],
                rank["node"],
                str(rank["pid"]),
                styled(rank["state"]),
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
