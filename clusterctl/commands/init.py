"""clusterctl init: a first cluster.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clusterctl import console
from clusterctl.errors import ConfigError
from clusterctl.options import AcceptNewHostKeys, ClusterTitle, SshConfig, split_commas

if TYPE_CHECKING:
    from clusterctl.spec import ClusterSpec

FILE = Path("cluster.yaml")
EXAMPLE = ["gpu01", "gpu02"]


def init(
    hosts: Annotated[
        list[str] | None,
        typer.Argument(metavar="HOST", help="The head first.", show_default=False),
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
    if FILE.exists() and not force:
        raise ConfigError(f"{FILE} is there already", hint="clusterctl init --force replaces it")
    head, *workers = split_commas(hosts) or EXAMPLE
    spec = _asked(head, workers, name, ssh_config, accept_new_host_keys)
    text = _names_alone(spec) if offline or not hosts else _as_they_say(spec)
    FILE.write_text(text, encoding="utf-8")
    console.line(f"{FILE} written; next: clusterctl up")


def _asked(
    head: str, workers: Sequence[str], name: str | None, ssh_config: str | None, trust_new: bool
) -> ClusterSpec:
    from clusterctl.config import Flags, load_flags

    flags = Flags(
        head=head,
        workers=tuple(workers),
        name=name,
        ssh_config=ssh_config,
        accept_new_host_keys=trust_new,
    )
    return load_flags(flags).spec


def _names_alone(spec: ClusterSpec) -> str:
    from clusterctl.starter import starter

    return starter(spec, {}, {})


def _as_they_say(spec: ClusterSpec) -> str:
    """A host that cannot be reached is written down with the reason."""
    from clusterctl.session import Session
    from clusterctl.starter import starter

    with console.progress() as report, Session.connect(spec, report=report, partial=True) as hosts:
        text = starter(spec, hosts.facts(), hosts.failures)
    for failure in hosts.failures.values():
        console.warn(f"{failure.host}: {failure.message}")
    return text
