"""clusterctl topology: what joins the GPUs of the cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clusterctl import console
from clusterctl.options import (
    AcceptNewHostKeys,
    ClusterName,
    ConfigFile,
    Head,
    Json,
    SshConfig,
    Workers,
    load_spec,
)


def topology(
    head: Head = None,
    worker: Workers = None,
    config: ConfigFile = None,
    cluster: ClusterName = None,
    ssh_config: SshConfig = None,
    accept_new_host_keys: AcceptNewHostKeys = False,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", help="Write a drawing.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show hosts, GPUs, adapters, the networks that join them, and the bandwidth measured last.

    The measurement is that of `clusterctl sanity`, over all ranks together.

    \b
      clusterctl topology --svg cluster.svg
    """
    from dataclasses import asdict

    from clusterctl import sanity
    from clusterctl import topology as drawing
    from clusterctl.session import Session

    spec = load_spec(
        config=config,
        cluster=cluster,
        head=head,
        workers=worker,
        ssh_config=ssh_config,
        accept_new_host_keys=accept_new_host_keys,
    )
    with console.progress() as report, Session.connect(spec, report=report) as session:
        record = sanity.recorded(session)
        measured = drawing.Measured(record.summary, record.at) if record else None
        found = drawing.topology(spec, session.facts(), measured)
    if svg is not None:
        svg.write_text(drawing.svg(found), encoding="utf-8")
    if as_json:
        console.json({"schema_version": console.SCHEMA_VERSION, **asdict(found)})
        return
    for line in drawing.lines(found):
        console.line(line)
    if svg is not None:
        console.note(f"{svg} written")
