"""clusterctl shell: this terminal, in a node's container."""

from __future__ import annotations

import typer

from clusterctl.errors import ConfigError
from clusterctl.options import ClusterName, ConfigFile, HostArgument, load_spec

SHELL = ("sh", "-c", "if command -v bash >/dev/null; then exec bash; else exec sh; fi")


def shell(host: HostArgument, config: ConfigFile = None, cluster: ClusterName = None) -> None:
    """Open a shell in a node's container."""
    from clusterctl.hostfilter import choose_nodes
    from clusterctl.members import member_on
    from clusterctl.session import Session

    spec = load_spec(config=config, cluster=cluster)
    names = choose_nodes(spec, [host])
    if len(names) != 1:
        raise ConfigError(f"{host!r} means {', '.join(names)}", hint="name one node")
    with Session.connect(spec, names=names) as session:
        link = session.link(names[0])
        code = link.runtime.interact(member_on(link, spec.name).container.id, SHELL)
    raise typer.Exit(code)
