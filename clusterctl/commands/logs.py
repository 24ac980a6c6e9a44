"""clusterctl logs: what all nodes print, each line behind its node's name."""

from __future__ import annotations

from typing import Annotated

import typer

from clusterctl import console
from clusterctl.options import ClusterName, ConfigFileLong, Hosts, load_spec


def logs(
    deployment: Annotated[
        str | None,
        typer.Argument(metavar="DEPLOYMENT", help="Only what this deployment printed."),
    ] = None,
    config: ConfigFileLong = None,
    cluster: ClusterName = None,
    hosts: Hosts = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    tail: Annotated[
        int | None,
        typer.Option("--tail", "-n", min=0, metavar="N", help="The last N lines of each node."),
    ] = None,
) -> None:
    """Show the nodes' logs, merged behind each node's name."""
    from clusterctl import nodelogs
    from clusterctl.hostfilter import choose_nodes
    from clusterctl.session import Session

    spec = load_spec(config=config, cluster=cluster)
    names = choose_nodes(spec, hosts)
    with Session.connect(spec, names=names, partial=True) as session:
        for failure in session.failures.values():
            console.warn(f"{failure.host}: {failure.message}")
        lines = nodelogs.merged(session, follow=follow, tail=tail, deployment=deployment)
        for line in lines:
            console.log_line(line.host, line.text)
