"""clusterctl tunnel: API and dashboard of a cluster on this machine, over SSH."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from clusterctl import console
from clusterctl.errors import ClusterctlError, ConfigError
from clusterctl.options import ClusterName, ConfigFile, Json, load_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clusterctl.session import Session
    from clusterctl.tunnel import Forward


def tunnel(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Only this deployment; else all, and the dashboard."),
    ] = None,
    local_port: Annotated[
        int | None,
        typer.Option(
            "--local-port",
            metavar="PORT",
            min=0,
            max=65535,
            help="With NAME: where it is found here; the same number as there, where it is free.",
            show_default=False,
        ),
    ] = None,
    config: ConfigFile = None,
    cluster: ClusterName = None,
    as_json: Json = False,
) -> None:
    """Bring the API of deployments and Ray's dashboard to this machine, over SSH.

    Until Ctrl-C. Only 127.0.0.1 listens; nothing is opened on the hosts.

    \b
      clusterctl tunnel
      clusterctl tunnel smollm2 --local-port 9000
    """
    from clusterctl.session import Session
    from clusterctl.tunnel import all_forwarded, hold

    if local_port is not None and name is None:
        raise ConfigError("--local-port belongs to one deployment", hint="name it")
    spec = load_spec(config=config, cluster=cluster)
    with Session.connect(spec, names=[spec.head]) as session:
        wanted = choose(session, name, local_port)
        with console.progress() as report, all_forwarded(session.head, wanted, report) as ready:
            show(ready, as_json)
            try:
                hold(session.head)
            except KeyboardInterrupt:
                console.note("closed")


def choose(session: Session, name: str | None, local_port: int | None) -> list[Forward]:
    """What is to be reached. Raises ClusterctlError when there is nothing."""
    from clusterctl import deployments
    from clusterctl.tunnel import answers, to_api, to_dashboard

    head = session.spec.head
    every = deployments.seen(session, probe=0)
    if name is not None:
        return [to_api(head, deployments.choose(every, name), local_port)]
    wanted = [to_api(head, one, None) for one in every if not one.ended]
    board = to_dashboard(session.spec)
    if answers(session.head, board):
        wanted.append(board)
    if not wanted:
        raise ClusterctlError(
            "nothing to reach: no deployment, and Ray's dashboard does not run",
            host=session.head.name,
            hint="clusterctl serve MODEL",
        )
    return wanted


def show(ready: Sequence[Forward], as_json: bool) -> None:
    rows = [
        {
            "name": one.what,
            "url": url_here(one),
            "host": one.host,
            "remote": f"{one.address}:{one.port}",
        }
        for one in ready
    ]
    if as_json:
        console.json({"schema_version": console.SCHEMA_VERSION, "tunnels": rows})
        return
    console.table(
        ("NAME", "HERE", "THERE"),
        [(row["name"], row["url"], f"{row['host']} {row['remote']}") for row in rows],
    )
    if any(one.scheme == "https" for one in ready):
        console.note("https: clients check the certificate's own names, and 127.0.0.1 is none")
    console.note("Ctrl-C ends it")


def url_here(one: Forward) -> str:
    path = "" if one.what == "dashboard" else "/v1"
    return f"{one.scheme}://127.0.0.1:{one.local_port}{path}"
