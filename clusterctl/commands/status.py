"""clusterctl status: what the cluster is now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from clusterctl import console
from clusterctl.options import ClusterName, ConfigFile, Hosts, Json, Watch, load_spec

if TYPE_CHECKING:
    from clusterctl.status import Status

WATCH_S = 5.0


def status(
    config: ConfigFile = None,
    cluster: ClusterName = None,
    hosts: Hosts = None,
    watch: Watch = False,
    as_json: Json = False,
) -> None:
    """Show every node and deployment as seen now, and whether all is verified."""
    from clusterctl import status as acting
    from clusterctl.hostfilter import choose_nodes
    from clusterctl.session import Session

    spec = load_spec(config=config, cluster=cluster)
    names = choose_nodes(spec, hosts) if hosts else ()
    while True:
        with Session.connect(spec, partial=True) as session:
            seen = acting.status(session)
        _show(seen, names, as_json=as_json, one_of_many=watch)
        if not watch:
            raise typer.Exit(seen.exit_code)
        console.again(WATCH_S)


def _show(seen: Status, names: Sequence[str], *, as_json: bool, one_of_many: bool) -> None:
    """`names` empty: all nodes."""
    document = seen.document()
    document["nodes"] = [node for node in document["nodes"] if not names or node["name"] in names]
    if as_json:
        (console.json_line if one_of_many else console.json)(document)
        return
    console.status(document)
    for one in seen.deployments:
        for remark in one.remarks():
            console.note(remark)
    for text in seen.notes:
        console.warn(text)
