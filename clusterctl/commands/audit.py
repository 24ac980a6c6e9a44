"""clusterctl audit: who did what to the cluster, and how it ended."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from clusterctl import console
from clusterctl.options import ClusterName, ConfigFile, Hosts, Json, load_spec

if TYPE_CHECKING:
    from clusterctl.runlog import Run


def audit(
    hosts: Hosts = None,
    last: Annotated[
        int, typer.Option("--last", metavar="N", min=1, help="Of each host's runs the newest N.")
    ] = 20,
    config: ConfigFile = None,
    cluster: ClusterName = None,
    as_json: Json = False,
) -> None:
    """Show who did what to the hosts of the cluster, when, and how it ended.

    Runs that changed nothing are not kept; `down --purge` removes the record with the rest.
    """
    from dataclasses import asdict

    from clusterctl import runlog
    from clusterctl.hostfilter import choose_nodes
    from clusterctl.session import Session

    spec = load_spec(config=config, cluster=cluster)
    names = choose_nodes(spec, hosts) if hosts else [spec.head]
    with Session.connect(spec, names=names) as session:
        found = {host: runs[-last:] for host, runs in runlog.read(session).items()}
    if as_json:
        by_host = {host: [asdict(run) for run in runs] for host, runs in found.items()}
        console.json({"schema_version": console.SCHEMA_VERSION, "hosts": by_host})
        return
    rows = [cells(host, run) for host, runs in found.items() for run in runs]
    if not rows:
        console.note(f"nothing is on record on {', '.join(found)}")
        return
    console.table(("WHEN", "HOST", "WHO", "COMMAND", "RESULT", "TIME", "WHAT"), rows)


def cells(host: str, run: Run) -> tuple[str, ...]:
    said = run.detail.partition("\n")[0]
    return (
        moment(run.at),
        host,
        f"{run.who}@{run.where}",
        run.command,
        run.result,
        f"{run.seconds:.1f} s",
        ": ".join(part for part in (run.what, said) if part),
    )


def moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))
