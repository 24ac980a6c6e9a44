"""clusterctl init: a first cluster.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clusterctl import console
from clusterctl.errors import ConfigError
from clusterctl.options import AcceptNewHostKeys, ClusterTitle, SshConfig, split_commas

FILE = Path("cluster.yaml")


def init(
    hosts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[HOST]...", help="The head first.", show_default=False),
    ] = None,
    name: ClusterTitle = None,
    ssh_config: SshConfig = None,
    accept_new_host_keys: AcceptNewHostKeys = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not connect; write the names alone.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a cluster.yaml.")] = False,
) -> None:
    """Write a commented cluster.yaml from what the hosts say about themselves."""
    from clusterctl import config as configuration
    from clusterctl import starter
    from clusterctl.session import Session

    if FILE.exists() and not force:
        raise ConfigError(f"{FILE} is there already", hint="clusterctl init --force replaces it")
    head, *workers = split_commas(hosts) or ["gpu01", "gpu02"]
    spec = configuration.load_flags(
        configuration.Flags(
            head=head,
            workers=tuple(workers),
            name=name,
            ssh_config=ssh_config,
            accept_new_host_keys=accept_new_host_keys,
        )
    ).spec
    if offline or not hosts:
        text = starter.starter(spec, {}, {})
    else:
        with (
            console.progress() as report,
            Session.connect(spec, report=report, partial=True) as session,
        ):
            text = starter.starter(spec, session.facts(), session.failures)
            failures = session.failures
        for failure in failures.values():
            console.warn(f"{failure.host}: {failure.message}")
    FILE.write_text(text, encoding="utf-8")
    console.line(f"{FILE} written; next: clusterctl up")
