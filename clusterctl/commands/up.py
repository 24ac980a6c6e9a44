"""clusterctl up: from hosts to a verified cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clusterctl import console
from clusterctl.errors import ClusterctlError, ConfigError
from clusterctl.options import (
    AcceptNewHostKeys,
    ClusterName,
    ClusterTitle,
    ConfigFile,
    Devices,
    DryRun,
    Env,
    Head,
    Image,
    Json,
    LockWait,
    ModelDirs,
    SshConfig,
    Timeout,
    Workers,
    Yes,
    load_spec,
    with_lock_wait,
)

if TYPE_CHECKING:
    from clusterctl.cluster import Approve, Up
    from clusterctl.launch import LaunchPlan
    from clusterctl.serving.records import Deployment
    from clusterctl.spec import ClusterSpec, DevicesSpec


def up(
    head: Head = None,
    worker: Workers = None,
    config: ConfigFile = None,
    cluster: ClusterName = None,
    name: ClusterTitle = None,
    image: Image = None,
    devices: Devices = None,
    model_dir: ModelDirs = None,
    env: Env = None,
    ssh_config: SshConfig = None,
    accept_new_host_keys: AcceptNewHostKeys = False,
    local: Annotated[
        bool, typer.Option("--local", help="On this machine, without SSH and Docker.")
    ] = False,
    nodes: Annotated[
        int | None,
        typer.Option("--nodes", min=1, max=64, metavar="N", help="With --local: how many nodes."),
    ] = None,
    no_sanity: Annotated[
        bool, typer.Option("--no-sanity", help="Skip the collective check at the end.")
    ] = False,
    port_offset: Annotated[
        int | None,
        typer.Option(
            "--port-offset",
            metavar="N",
            min=0,
            max=12000,
            help="Add N to Ray's ports, for a second cluster on the same hosts.",
            show_default=False,
        ),
    ] = None,
    allow_public_address: Annotated[
        bool,
        typer.Option(
            "--allow-public-address", help="Ray and NCCL may listen on an address of the internet."
        ),
    ] = False,
    insecure_ray: Annotated[
        bool, typer.Option("--insecure-ray", help="Run Ray without token authentication.")
    ] = False,
    pull: Annotated[
        Literal["always", "missing", "never"],
        typer.Option("--pull", help="Of the image; always: nodes whose image is older are remade."),
    ] = "missing",
    profiling: Annotated[
        bool,
        typer.Option("--profiling", help="Profilers may read GPU counters: adds CAP_SYS_ADMIN."),
    ] = False,
    timeout: Timeout = None,
    lock_wait: LockWait = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Form the cluster, or bring it to what its file says now; keep what is right already.

    \b
      clusterctl up --head gpu01 --worker gpu02
      clusterctl up --dry-run
      clusterctl up --local --nodes 2
    """
    from clusterctl import cluster as acting
    from clusterctl.runlog import recorded
    from clusterctl.session import Session

    if local:
        spec = local_spec(name or cluster, nodes, devices)
    else:
        if nodes is not None:
            raise ConfigError("--nodes belongs to --local", hint="name hosts with --worker")
        spec = load_spec(
            config=config,
            cluster=cluster,
            head=head,
            workers=worker,
            name=name,
            image=image,
            devices=devices,
            model_dirs=model_dir,
            env=env,
            ssh_config=ssh_config,
            accept_new_host_keys=accept_new_host_keys,
            port_offset=port_offset,
            allow_public_address=allow_public_address,
        )
    spec = adjusted(spec, insecure_ray, timeout, profiling=profiling)
    spec = with_lock_wait(spec, lock_wait)
    with console.progress() as report, Session.connect(spec, report=report) as session:
        if dry_run:
            planned = acting.plan_up(session, report, pull=pull)
        else:
            with recorded(session, "up", report) as run:
                done = acting.up(
                    session,
                    report=report,
                    approve=approval(yes),
                    check_sanity=not no_sanity,
                    pull=pull,
                )
                run.what, run.hosts = what_changed(done.plan)
    if dry_run:
        show_plan(spec, planned, as_json)
        return
    show(spec, done, as_json)
    console.timeline(report.stages, run.before.stages if run.before else ())


def local_spec(name: str | None, count: int | None, devices: str | None) -> ClusterSpec:
    from clusterctl import clusters, localspec

    name = name or localspec.NAME
    saved = any(one.name == name for one in clusters.saved())
    known = load_spec(cluster=name) if saved else None
    return localspec.local_spec(name, known, count, parsed_devices(devices))


def parsed_devices(text: str | None) -> DevicesSpec | None:
    """`cpu:2` as a cluster on hosts reads it."""
    if text is None:
        return None
    from clusterctl import config as configuration

    flags = configuration.Flags(head="localhost", devices=text)
    return configuration.load_flags(flags).spec.devices


def adjusted(
    spec: ClusterSpec, insecure_ray: bool, timeout: float | None, *, profiling: bool = False
) -> ClusterSpec:
    if profiling:
        spec = replace(spec, profiling=True)
    if insecure_ray:
        spec = replace(spec, ray=replace(spec.ray, insecure=True))
    if timeout is not None:
        spec = replace(spec, limits=replace(spec.limits, formation_timeout=timeout))
    return spec


def approval(yes: bool) -> Approve:
    """On a terminal the plan is shown and asked for. Elsewhere nobody can be asked: running
    deployments are not ended then, all else goes on."""
    from clusterctl.cluster import refusal

    def approve(plan: LaunchPlan, running: Sequence[Deployment]) -> None:
        if yes or not (running or console.can_ask()):
            return
        ends = refusal(plan, running) if running else None
        question = f"{ends.message}. Go on?" if ends else "Go on?"
        if not console.confirm(question, about=plan):
            raise ends or ClusterctlError("not confirmed: nothing was changed")

    return approve


def show_plan(spec: ClusterSpec, plan: LaunchPlan, as_json: bool) -> None:
    from clusterctl.containers import docker_run_line
    from clusterctl.processhost import process_line

    line_of = process_line if spec.runtime == "process" else docker_run_line
    lines = {
        node.expected.name: line_of(node.container)
        for node in plan.nodes
        if node.container is not None
    }
    if as_json:
        console.json(plan_document(plan, lines.get))
        return
    console.plan(plan, lines)
    console.environment(plan)


def what_changed(plan: LaunchPlan) -> tuple[str, list[str]]:
    """In words, and on which hosts."""
    words = ", ".join(f"{node.action} {node.expected.name}" for node in plan.changes)
    return words, [node.host for node in plan.changes]


def plan_document(plan: LaunchPlan, line_of: Callable[[str], str | None]) -> dict[str, Any]:
    return {
        "schema_version": console.SCHEMA_VERSION,
        "cluster": plan.cluster,
        "nodes": [
            {
                "name": node.expected.name,
                "address": node.expected.address,
                "role": node.expected.role,
                "action": node.action,
                "reason": node.reason,
                "pull": node.pull,
                "command": line_of(node.expected.name),
                "environment": [
                    {"name": name, "value": value, "origin": node.origins[name]}
                    for name, value in (node.container.env if node.container else {}).items()
                ],
            }
            for node in plan.nodes
        ],
    }


def show(spec: ClusterSpec, done: Up, as_json: bool) -> None:
    if as_json:
        document = plan_document(done.plan, lambda _: None)
        nodes = [
            {key: value for key, value in node.items() if key not in ("command", "environment")}
            for node in document["nodes"]
        ]
        verified = True if done.sanity else None
        console.json({**document, "nodes": nodes, "verified": verified, "sanity": done.sanity})
        return
    console.formation(done.formation)
    count = f"{done.formation.ready}/{len(done.formation.nodes)} nodes"
    said = f"verified, sanity passed: {done.sanity}" if done.sanity else "formed, sanity skipped"
    console.line(f"{spec.name}: {count} {said}")
