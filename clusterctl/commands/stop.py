"""clusterctl stop: end a deployment, and see that it is gone."""

from __future__ import annotations

from typing import Annotated

import typer

from clusterctl import console
from clusterctl.options import ClusterName, ConfigFile, Timeout, load_spec


def stop(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="The deployment; may be left out if there is only one."
        ),
    ] = None,
    config: ConfigFile = None,
    cluster: ClusterName = None,
    timeout: Timeout = None,
) -> None:
    """End a deployment, and prove that nothing of it is left."""
    from clusterctl import deployments
    from clusterctl.runlog import recorded
    from clusterctl.session import Session

    spec = load_spec(config=config, cluster=cluster)
    wait = deployments.STOP_S if timeout is None else timeout
    with (
        console.progress() as report,
        Session.connect(spec, report=report) as session,
        recorded(session, "stop", report) as run,
    ):
        stopped = deployments.stop(session, name, report=report, timeout=wait)
        run.what, run.hosts = stopped.name, [spec.head]
    console.line(f"{stopped.name}: stopped; no process left, port {stopped.port} free")
