"""clusterctl status: what the cluster is now."""

from __future__ import annotations

import typer

from clusterctl import console
from clusterctl.options import ClusterName, ConfigFile, Hosts, Json, load_spec


def status(
    config: ConfigFile = None,
    cluster: ClusterName = None,
    hosts: Hosts = None,
    as_json: Json = False,
) -> None:
    """Show every node and deployment as seen now, and whether all is verified."""
    from clusterctl import status as acting
    from clusterctl.hostfilter import choose_nodes
    from clusterctl.session import Session

    spec = load_spec(config=config, cluster=cluster)
    names = choose_nodes(spec, hosts)
    with Session.connect(spec, partial=True) as session:
        seen = acting.status(session)
    document = seen.document()
    document["nodes"] = [n for n in document["nodes"] if n["name"] in names or not hosts]
    if as_json:
        console.json(document)
    else:
        console.status(document)
        for text in seen.notes:
            console.warn(text)
    raise typer.Exit(seen.exit_code)
