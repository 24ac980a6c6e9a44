"""clusterctl doctor: what will fail on these hosts, and how to repair it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from clusterctl import console
from clusterctl.errors import NoCluster
from clusterctl.options import ClusterName, ConfigFile, Head, Json, Workers, load_spec

if TYPE_CHECKING:
    from clusterctl.doctor.check import Finding
    from clusterctl.spec import ClusterSpec

All = Annotated[
    bool, typer.Option("--all", help="Show what is in order and what does not apply, too.")
]
Logs = Annotated[
    list[str] | None,
    typer.Option(
        "--logs",
        metavar="PATH",
        help="Diagnose these logs instead: a file, a directory, or - ; may be given several times.",
    ),
]
Deep = Annotated[
    bool,
    typer.Option("--deep", help="Let the hosts try each other: ports, packet loss, MTU, speed."),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit 1 for warnings and for what is not known, too.")
]


def doctor(
    config: ConfigFile = None,
    cluster: ClusterName = None,
    head: Head = None,
    worker: Workers = None,
    logs: Logs = None,
    strict: Strict = False,
    deep: Deep = False,
    show_all: All = False,
    as_json: Json = False,
) -> None:
    """Find what will fail on the hosts, or has failed, with its cause and its fix.

    Without any cluster it looks at this machine.

    \b
      clusterctl doctor
      clusterctl doctor --head gpu01 --worker gpu02 --json
      clusterctl doctor --deep
      clusterctl doctor --logs rank0.log --logs rank1.log
    """
    from clusterctl.doctor.check import exit_code

    if logs:
        from clusterctl.doctor.logs import diagnose

        found: Sequence[Finding] = diagnose(logs)
    else:
        found = examined(config, cluster, head, worker, deep=deep)
    show(found, show_all=show_all, as_json=as_json)
    raise typer.Exit(exit_code(found, strict=strict))


def examined(
    config: ConfigFile, cluster: ClusterName, head: Head, worker: Workers, *, deep: bool
) -> Sequence[Finding]:
    from clusterctl.examination import examine
    from clusterctl.session import Session

    try:
        spec = load_spec(config=config, cluster=cluster, head=head, workers=worker)
    except NoCluster:
        spec = this_machine()
    with Session.connect(spec, partial=True) as session:
        return examine(session, deep=deep)


def this_machine() -> ClusterSpec:
    from clusterctl.spec import ClusterSpec, DevicesSpec, NodeSpec

    node = NodeSpec("localhost", "localhost")
    return ClusterSpec("localhost", (node,), node.name, devices=DevicesSpec("cpu", 1))


def show(found: Sequence[Finding], *, show_all: bool, as_json: bool) -> None:
    from clusterctl.doctor.check import document, likeliest_first, troubles

    shown = found if show_all else troubles(found)
    if as_json:
        console.json(document(shown))
        return
    console.findings(likeliest_first(shown))
    if not shown:
        console.line("no findings")
