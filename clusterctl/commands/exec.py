"""clusterctl exec: a command in the nodes' containers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from clusterctl import completion, console
from clusterctl.errors import ConfigError
from clusterctl.options import ClusterName, ConfigFile, load_spec

if TYPE_CHECKING:
    from clusterctl.links import HostLink


def exec_(
    host: Annotated[
        str,
        typer.Argument(
            metavar="HOST",
            help="A node's name, a glob, or head or workers.",
            autocompletion=completion.hosts,
        ),
    ],
    command: Annotated[list[str], typer.Argument(metavar="COMMAND")],
    config: ConfigFile = None,
    cluster: ClusterName = None,
) -> None:
    """Run a command in a node's container; its exit code becomes ours.

    \b
      clusterctl exec head -- ray status
      clusterctl exec 'gpu*' -- nvidia-smi -L
    """
    from clusterctl.fanout import fan_out
    from clusterctl.hostfilter import choose_nodes
    from clusterctl.members import member_on
    from clusterctl.session import Session, results

    command = command[1:] if command[:1] == ["--"] else command
    if not command:
        raise ConfigError("no command", hint="clusterctl exec HOST -- COMMAND")
    spec = load_spec(config=config, cluster=cluster)
    names = choose_nodes(spec, [host])
    with Session.connect(spec, names=names) as session:

        def run(link: HostLink) -> int:
            def show(text: str) -> None:
                if len(names) == 1:
                    console.line(text)
                else:
                    console.log_line(link.name, text)

            container = member_on(link, spec.name).container
            return link.runtime.exec_stream(container.id, command, show)

        codes = results(fan_out(names, lambda name: run(session.link(name)), limit=len(names)))
    raise typer.Exit(max(codes.values()))
