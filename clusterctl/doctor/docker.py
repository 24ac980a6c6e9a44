"""Checks of the host's Docker Engine."""

from __future__ import annotations

import re

from clusterctl.containers import LABEL_CLUSTER, container_name
from clusterctl.doctor.check import Check, Said, check, fail, ok, skip, unknown, warn
from clusterctl.doctor.subject import Host

MIN_DISK_BYTES = 2 << 30
MIN_API = (1, 41)  # Docker Engine 20.10, the oldest that was tried
MIN_INODES = 10_000


@check("docker.answers", "Docker Engine answers", tags=["preflight"])
def answers(one: Host) -> Said:
    """Every node is a container: without Docker there is none."""
    docker = one.facts.docker
    if one.spec.runtime == "process":
        return skip("processes on this machine need no Docker")
    if docker.error is None:
        return ok(f"Docker {docker.version}")
    cause, fix = _refusal(docker.error)
    return fail(f"Docker does not answer: {docker.error}", fix, cause=cause)


def _refusal(error: str) -> tuple[str, str]:
    said = error.lower()
    if "permission denied" in said or "may not open" in said:
        return (
            "docker-socket-permission",
            "sudo usermod -aG docker $USER on the host, then log in anew",
        )
    if "not found" in said or "no such file" in said or "not installed" in said:
        return (
            "docker-not-running",
            "sudo systemctl start docker on the host, or install Docker Engine there",
        )
    return "docker-not-running", "sudo systemctl start docker on the host"


@check("docker.version", "Docker Engine is recent enough", cause="docker-too-old")
def version(one: Host) -> Said:
    """clusterctl was tried with Docker Engine 20.10 and later."""
    if reason := _silent(one):
        return skip(reason)
    api = one.facts.docker.api_version
    if api is None:
        return unknown("its version is not known")
    if tuple(map(int, api.split("."))) >= MIN_API:
        return ok(f"Docker {one.facts.docker.version}")
    return warn(f"Docker {one.facts.docker.version} is older than 20.10", "upgrade Docker Engine")


@check("docker.disk", "Docker's disk has room", cause="docker-no-space", tags=["preflight"])
def disk(one: Host) -> Said:
    """Images of inference engines unpack to tens of gigabytes; a full disk breaks the pull."""
    if reason := _silent(one):
        return skip(reason)
    root = one.facts.docker.root_dir
    found = one.facts.host.disk(root) if root else None
    if found is None:
        return unknown("the disk under Docker's root could not be measured")
    text = f"{found.free_bytes / 2**30:.1f} GiB free for Docker in {found.path}"
    if found.free_bytes < MIN_DISK_BYTES:
        return fail(f"only {text}", "docker system prune on the host", values={"path": found.path})
    if found.free_inodes is not None and found.free_inodes < MIN_INODES:
        return fail(f"only {found.free_inodes} inodes free in {found.path}", "docker system prune")
    return ok(text)


@check(
    "docker.stale",
    "No node of another run is left",
    cause="docker-stale-node",
    needs=["docker.containers"],
)
def stale(one: Host) -> Said:
    """A container that run_cluster.sh left (`node-` and a number) keeps GPUs, ports and a Ray of
    its own."""
    if reason := _silent(one):
        return skip(reason)
    seen = one.facts.docker.containers
    if seen is None:
        return unknown("its containers could not be listed")
    left = [c for c in seen if re.fullmatch(r"node-\d+", c.name) and c.state == "running"]
    if not left:
        return ok(f"{len(seen)} containers")
    names = " ".join(c.name for c in left)
    return warn(
        f"a node of an earlier run is still there: {names}",
        f"docker rm -f {names} on the host, if nobody needs it",
        values={"containers": names},
    )


@check(
    "docker.name",
    "The node's name is free",
    cause="docker-name-conflict",
    needs=["docker.containers"],
    tags=["preflight"],
)
def name(one: Host) -> Said:
    """Docker refuses a second container of one name."""
    if reason := _silent(one):
        return skip(reason)
    seen = one.facts.docker.containers
    if seen is None:
        return unknown("its containers could not be listed")
    wanted = container_name(one.spec.name, one.node.name)
    foreign = [c for c in seen if c.name == wanted and LABEL_CLUSTER not in c.labels]
    if not foreign:
        return ok(wanted)
    return fail(
        f"a container that is not ours is called {wanted}", f"docker rename {wanted} {wanted}-old"
    )


@check(
    "docker.gpu-runtime",
    "Containers can be given GPUs",
    cause="docker-no-nvidia-toolkit",
    tags=["preflight", "nvidia"],
)
def gpu_runtime(one: Host) -> Said:
    """`--gpus` needs the NVIDIA Container Toolkit; a Docker of snap does not see it."""
    if not one.gives_gpus or not one.nvidia:
        return skip("no container is to be given an NVIDIA GPU")
    if reason := _silent(one):
        return skip(reason)
    docker = one.facts.docker
    if (docker.root_dir or "").startswith("/var/snap/"):
        return warn(
            "Docker was installed by snap, which cannot give containers NVIDIA GPUs",
            "sudo snap remove docker, then install Docker Engine's own package",
        )
    if "nvidia" in docker.runtimes:
        return ok("NVIDIA container runtime")
    return warn(
        "Docker lists no NVIDIA runtime: containers may not see the GPUs",
        "install nvidia-container-toolkit, then: sudo nvidia-ctk runtime configure "
        "--runtime=docker && sudo systemctl restart docker",
    )


def _silent(one: Host) -> str | None:
    """Why there is nothing to ask, where there is nothing."""
    if one.spec.runtime == "process":
        return "processes on this machine need no Docker"
    return "Docker does not answer" if one.facts.docker.error else None


CHECKS: tuple[Check[Host], ...] = (answers, version, disk, stale, name, gpu_runtime)
