"""clusterctl doctor: what will fail on these hosts, and how to repair it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clusterctl import console
from clusterctl.errors import ConfigError, NoCluster
from clusterctl.options import (
    AcceptNewHostKeys,
    ClusterName,
    ConfigFile,
    Head,
    Json,
    SshConfig,
    Workers,
    load_spec,
    split_commas,
)

if TYPE_CHECKING:
    from clusterctl.doctor.check import Finding
    from clusterctl.doctor.logs.signature import Signature
    from clusterctl.doctor.snapshot import Snapshot
    from clusterctl.doctor.subject import Plan
    from clusterctl.spec import ClusterSpec

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Look at this model on every host: an absolute path or a Hub id.",
        show_default=False,
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="CHECK",
        help="Only these checks, by id, glob or tag; repeat it, or separate by commas.",
        callback=split_commas,
        show_default=False,
    ),
]
Skip = Annotated[
    list[str] | None,
    typer.Option(
        "--skip",
        metavar="CHECK",
        help="Not these checks; as --only.",
        callback=split_commas,
        show_default=False,
    ),
]
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
    typer.Option(
        "--deep",
        help="Let the hosts try each other (ports, loss, MTU, speed) and, where the cluster is up, "
        "their devices compute together.",
    ),
]
Tp = Annotated[
    int | None,
    typer.Option(
        "--tp",
        min=1,
        help="Judge --model, and with --deep NCCL's ways, for this tensor-parallel size.",
        show_default="as served",
    ),
]
Pp = Annotated[
    int | None,
    typer.Option(
        "--pp",
        min=1,
        help="The pipeline-parallel size that goes with --tp.",
        show_default="as served",
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit 1 for warnings and for what is not known, too.")
]
Save = Annotated[
    Path | None,
    typer.Option(
        "--save", metavar="FILE", help="Keep what was seen, without secrets.", show_default=False
    ),
]
From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="FILE",
        help="Judge what --save kept; no host is asked.",
        show_default=False,
    ),
]
Bundle = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        metavar="FILE",
        help="Write facts, findings and all nodes' logs into a tar.gz, without secrets.",
        show_default=False,
    ),
]
List = Annotated[bool, typer.Option("--list", help="List all checks, and stop.")]
Explain = Annotated[
    str | None,
    typer.Option(
        "--explain",
        metavar="ID",
        help="Say what a check looks at and why it matters, or what a cause means; and stop.",
        show_default=False,
    ),
]


def doctor(
    config: ConfigFile = None,
    cluster: ClusterName = None,
    head: Head = None,
    worker: Workers = None,
    ssh_config: SshConfig = None,
    accept_new_host_keys: AcceptNewHostKeys = False,
    logs: Logs = None,
    model: Model = None,
    deep: Deep = False,
    tp: Tp = None,
    pp: Pp = None,
    only: Only = None,
    skip: Skip = None,
    strict: Strict = False,
    show_all: All = False,
    save: Save = None,
    from_file: From = None,
    bundle: Bundle = None,
    list_checks: List = False,
    explain: Explain = None,
    as_json: Json = False,
) -> None:
    """Find what will fail on the hosts, or has failed, with its cause and its fix.

    Without any cluster it looks at this machine. Exit code 1 when a check fails.

    \b
      clusterctl doctor
      clusterctl doctor --head gpu01 --worker gpu02 --json
      clusterctl doctor --deep --tp 8 --pp 2
      clusterctl doctor --logs rank0.log --logs rank1.log
    """
    from clusterctl.doctor import snapshot
    from clusterctl.doctor.check import exit_code
    from clusterctl.doctor.checks import Choice

    plan = planned(tp, pp, deep or model is not None)
    require_place(save, bundle)
    if list_checks or explain:
        tell(explain, as_json)
        return
    if logs:
        from clusterctl.doctor.logs import diagnose

        chosen: Sequence[Finding] = diagnose(logs)
    else:
        choice = Choice(tuple(only or ()), tuple(skip or ()))
        choice.require_known()
        if from_file is not None:
            seen = snapshot.load(from_file)
        else:
            spec = meant(config, cluster, head, worker, ssh_config, accept_new_host_keys)
            seen = examined(spec, model, deep, plan, bundle)
        if save is not None:
            write(save, snapshot.to_json(seen).encode())
        chosen = [one for one in seen.findings if choice.takes(one.check or "")]
    show(chosen, show_all=show_all, as_json=as_json)
    raise typer.Exit(exit_code(chosen, strict=strict))


def meant(
    config: Path | None,
    cluster: str | None,
    head: str | None,
    workers: list[str] | None,
    ssh_config: str | None,
    accept_new_host_keys: bool,
) -> ClusterSpec:
    """The cluster that the command line means, or this machine."""
    try:
        return load_spec(
            config=config,
            cluster=cluster,
            head=head,
            workers=workers,
            ssh_config=ssh_config,
            accept_new_host_keys=accept_new_host_keys,
        )
    except NoCluster:
        return this_machine()


def write(file: Path, data: bytes) -> None:
    """For its owner alone, whole or not at all. Raises ConfigError where it cannot be written."""
    from clusterctl import privatefile

    try:
        privatefile.write(file, data)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from error


def require_place(*files: Path | None) -> None:
    """Before minutes go into what cannot be kept. Raises ConfigError."""
    for file in files:
        if file is None:
            continue
        if file.is_dir():
            raise ConfigError(f"{file} is a directory", hint=f"name a file: {file / 'doctor.out'}")
        if not os.access(file.parent, os.W_OK):
            why = "may not be written" if file.parent.exists() else "does not exist"
            raise ConfigError(f"{file} cannot be written: directory {file.parent} {why}")


def planned(tp: int | None, pp: int | None, judged: bool) -> Plan | None:
    """The split that was named. Raises ConfigError where nothing would be judged by it."""
    from clusterctl.doctor.subject import Plan

    if tp is None and pp is None:
        return None
    if not judged:
        raise ConfigError(
            "nothing is judged by --tp and --pp alone", hint="with --deep, or with --model MODEL"
        )
    return Plan(tp or 1, pp or 1, "as asked")


def examined(
    spec: ClusterSpec, model: str | None, deep: bool, plan: Plan | None, bundle: Path | None
) -> Snapshot:
    from clusterctl.examination import examine, packed
    from clusterctl.session import Session

    with (
        console.progress() as report,
        Session.connect(spec, report=report, partial=True) as session,
    ):
        seen = examine(session, report, model=model, deep=deep, plan=plan)
        if bundle is not None:
            write(bundle, packed(session, seen))
    return seen


def this_machine() -> ClusterSpec:
    from clusterctl.spec import ClusterSpec, DevicesSpec, NodeSpec

    node = NodeSpec("localhost", "localhost")
    return ClusterSpec("localhost", (node,), node.name, devices=DevicesSpec("cpu", 1))


def tell(id: str | None, as_json: bool) -> None:
    """Of one check or cause, or of all checks."""
    from clusterctl.doctor.checks import ALL
    from clusterctl.doctor.logs.signature import signatures

    if cause := signatures().get(id or ""):
        told_of_cause(cause, as_json)
        return
    if id is not None and id not in ALL:
        raise ConfigError(f"no check or cause is called {id!r}", hint="clusterctl doctor --list")
    shown = [ALL[id]] if id else list(ALL.values())
    if as_json:
        records = [one.document() for one in shown]
        console.json({"schema_version": console.SCHEMA_VERSION, "checks": records})
    elif id:
        console.line(shown[0].explained())
    else:
        rows = [(one.id, one.scope, ", ".join(sorted(one.tags)), one.title) for one in shown]
        console.table(("CHECK", "SCOPE", "TAGS", "TITLE"), rows)


def told_of_cause(cause: Signature, as_json: bool) -> None:
    if as_json:
        console.json({"schema_version": console.SCHEMA_VERSION, "causes": [cause.document()]})
    else:
        console.line(cause.explained())


def show(found: Sequence[Finding], *, show_all: bool, as_json: bool) -> None:
    from clusterctl.doctor.check import document, likeliest_first, troubles

    shown = found if show_all else troubles(found)
    if as_json:
        console.json(document(shown))
        return
    console.findings(likeliest_first(shown))
    if not shown:
        console.line("no findings")
