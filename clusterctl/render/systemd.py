"""Render target `systemd`: a unit a host, and the script that its container runs. PURE."""

from __future__ import annotations

from dataclasses import replace

from clusterctl.containers import HOME, docker_run_argv
from clusterctl.launch import RAY_TOKEN
from clusterctl.render import declared
from clusterctl.render.document import Asked, File, Rendered
from clusterctl.render.entry import members, script
from clusterctl.render.templates import Verbatim, fill, systemd_text
from clusterctl.spec import MountSpec

MEMBER = f"{HOME}/member.sh"


def render(asked: Asked) -> Rendered:
    found = declared.containers(asked, supervised=False)
    files: list[File] = []
    for name, member in members(asked, found).items():
        unit = _unit(asked, name, found)
        files.append(File(f"{name}/clusterctl-{asked.spec.name}.service", unit))
        files.append(File(f"{name}/member.sh", script(asked, member)))
    return Rendered("systemd", tuple(files), found.left_out)


def _unit(asked: Asked, node: str, found: declared.Containers) -> str:
    spec, container = asked.spec, found.by_node[node]
    directory = f"/etc/clusterctl/{spec.name}"
    token = MountSpec(f"{directory}/ray_token", f"{HOME}/{RAY_TOKEN}", read_only=True)
    carried = replace(
        container,
        command=("bash", MEMBER),
        restart="no",  # systemd's own
        labels={},  # `up` and `down` keep their hands off what is not theirs
        mounts=(
            *container.mounts,
            MountSpec(f"{directory}/member.sh", MEMBER, read_only=True),
            *(() if spec.ray.insecure else (token,)),
        ),
    )
    docker, run, _detach, *rest = docker_run_argv(carried)
    argv = [docker, run, "--rm", "--env-file", f"{directory}/secrets.env", *rest]
    return fill(
        "node.service",
        systemd_text,
        cluster=spec.name,
        node=node,
        head=spec.head,
        directory=directory,
        insecure=spec.ray.insecure,
        left_out=found.left_out,
        directories=found.directories_of(spec, node),
        container=container.name,
        start=Verbatim(" ".join(map(systemd_text, argv))),
    )
