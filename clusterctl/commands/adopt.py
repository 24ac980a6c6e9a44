"""clusterctl adopt: take over a cluster that another machine brought up."""

from __future__ import annotations

from typing import Annotated

import typer

from clusterctl import console
from clusterctl.options import AcceptNewHostKeys, SshConfig


def adopt(
    head: Annotated[
        str,
        typer.Option("--head", metavar="HOST", help="Its head host, as [USER@]HOST[:PORT]."),
    ],
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", "-c", metavar="NAME", help="Which, where a host heads several."),
    ] = None,
    ssh_config: SshConfig = None,
    accept_new_host_keys: AcceptNewHostKeys = False,
) -> None:
    """Learn a running cluster from its head host, save it here and make it current."""
    from clusterctl import adopt as adoption
    from clusterctl import clusters
    from clusterctl import config as configuration
    from clusterctl.session import Session

    flags = configuration.Flags(
        head=head, ssh_config=ssh_config, accept_new_host_keys=accept_new_host_keys
    )
    with Session.connect(configuration.load_flags(flags).spec) as session:
        spec = adoption.adopt(session.head, cluster, session.spec.ssh)
    file = clusters.save_current(spec)
    console.line(f"{spec.name} ({len(spec.nodes)} nodes) is the current cluster; saved in {file}")
