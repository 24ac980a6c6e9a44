"""What must be true of the hosts before anything is made on them. PURE: facts in, findings out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from clusterctl.doctor.check import (
    Answer,
    Check,
    Finding,
    fail,
    ok,
    run_checks,
    skip,
    unknown,
    warn,
)
from clusterctl.errors import PreflightFailed
from clusterctl.facts.types import HostFacts
from clusterctl.launch import devices_of, expected_role, node_ray
from clusterctl.raycluster import MIN_TOKEN_VERSION, pinned_ports, version_tuple
from clusterctl.spec import ClusterSpec, NodeSpec

MAX_CLOCK_OFFSET_S = 5.0
MIN_SHM_BYTES = 1 << 30
MIN_DISK_BYTES = 2 << 30


@dataclass(frozen=True)
class Candidate:
    """A host that is to become a node. `occupied`: its own container runs, so that the ports in
    use may be ours. `missing_directories`: of model_dirs and mounts."""

    spec: ClusterSpec
    node: NodeSpec
    facts: HostFacts
    occupied: bool = False
    missing_directories: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.node.name


def preflight(candidates: Iterable[Candidate]) -> list[Finding]:
    """Every finding of every host."""
    known = list(candidates)
    return [*run_checks(CHECKS, known), *_shared_hosts(known)]


def refuse(findings: Sequence[Finding]) -> None:
    """Raises PreflightFailed with all failures at once, where there are any."""
    failed = [finding for finding in findings if finding.verdict == "fail"]
    if not failed:
        return
    hosts = list(dict.fromkeys(finding.host for finding in failed if finding.host))
    fixes = dict.fromkeys(finding.fix for finding in failed if finding.fix)
    raise PreflightFailed(
        _text(failed), host=", ".join(hosts) or None, hint="\n".join(fixes) or None
    )


def _text(failed: Sequence[Finding]) -> str:
    if len(failed) == 1:
        return failed[0].message
    lines = (f"  {finding.host or 'cluster'}: {finding.message}" for finding in failed)
    return "\n".join([f"{len(failed)} problems, nothing was changed", *lines])


def _docker_answers(one: Candidate) -> Answer:
    docker = one.facts.docker
    if one.spec.runtime == "process":
        return skip("processes on this machine need no Docker")
    if docker.error is None:
        return ok(f"Docker {docker.version}")
    return fail(f"Docker does not answer: {docker.error}", _docker_fix(docker.error))


def _docker_fix(error: str) -> str:
    if "permission denied" in error.lower():
        return "sudo usermod -aG docker $USER on the host, then log in anew"
    if "not found" in error.lower() or "no such file" in error.lower():
        return "sudo systemctl start docker on the host, or install Docker Engine there"
    return "sudo systemctl start docker on the host"


def _devices_are_there(one: Candidate) -> Answer:
    kind, wanted = devices_of(one.spec, one.node, one.facts)
    if kind == "cpu":
        return skip("CPU slots are asked for")
    found = len(one.facts.gpu.gpus)
    if one.facts.gpu.error:
        return fail(f"the GPUs cannot be listed: {one.facts.gpu.error}")
    if not found:
        fix = "for CPU processes in place of GPUs: --devices cpu:1, or `devices:` in cluster.yaml"
        return fail("no GPU on this host", fix)
    if found < wanted:
        return fail(f"{found} GPUs on this host, {wanted} asked for")
    return ok(f"{wanted} of {found} GPUs")


def _gpus_reach_containers(one: Candidate) -> Answer:
    kind, _ = devices_of(one.spec, one.node, one.facts)
    nvidia = any(gpu.vendor == "nvidia" for gpu in one.facts.gpu.gpus)
    if kind == "cpu" or not nvidia or one.facts.docker.error or one.spec.runtime == "process":
        return skip("no container is to be given an NVIDIA GPU")
    if "nvidia" in one.facts.docker.runtimes:
        return ok("NVIDIA container runtime")
    return warn(
        "Docker lists no NVIDIA runtime: containers may not see the GPUs",
        "install nvidia-container-toolkit, then: sudo nvidia-ctk runtime configure "
        "--runtime=docker && sudo systemctl restart docker",
    )


def _ports_are_free(one: Candidate) -> Answer:
    if one.occupied:
        return skip("its own node runs and may hold them")
    if one.facts.listeners is None:
        return unknown("the ports in use cannot be listed (no ss on this host)")
    taken = ports_in_use(one.spec, one.node, one.facts)
    if not taken:
        return ok("Ray's ports are free")
    return fail(
        f"ports that Ray needs are in use: {', '.join(taken)}",
        "end what listens there (a stray Ray: ray stop), or choose other ports under `ray:`",
    )


def ports_in_use(spec: ClusterSpec, node: NodeSpec, facts: HostFacts) -> tuple[str, ...]:
    """Which of Ray's fixed ports something listens on: `6379 (GCS, used by redis-server)`."""
    ports = pinned_ports(node_ray(spec, node), expected_role(spec, node))
    uses = {port: use for use, port in ports.items()}
    taken = (
        f"{listener.port} ({uses[listener.port]}{_by(listener.process)})"
        for listener in facts.listeners or ()
        if listener.port in uses
    )
    return tuple(dict.fromkeys(taken))


def _by(process: str | None) -> str:
    return f", used by {process}" if process else ""


def _directories_are_there(one: Candidate) -> Answer:
    if not one.missing_directories:
        return skip("nothing is to be mounted")
    missing = ", ".join(one.missing_directories)
    return fail(
        f"not on this host: {missing}",
        f"copy it to the same path on every host, or take it out of `model_dirs:`/`mounts:`: "
        f"{missing}",
    )


def _disk_has_room(one: Candidate) -> Answer:
    root = one.facts.docker.root_dir
    disk = one.facts.host.disk(root) if root else None
    if disk is None:
        return skip("Docker says nothing of its disk")
    text = f"{disk.free_bytes / 2**30:.1f} GiB free for Docker in {disk.path}"
    if disk.free_bytes < MIN_DISK_BYTES:
        return fail(f"only {text}", "docker system prune on the host")
    return ok(text)


def _clock_agrees(one: Candidate) -> Answer:
    offset = one.facts.host.clock_offset_s
    if offset is None or abs(offset) <= MAX_CLOCK_OFFSET_S:
        return skip("clocks agree")
    return warn(
        f"its clock is {offset:+.0f} s off ours", "sudo systemctl restart systemd-timesyncd"
    )


def _shm_is_large(one: Candidate) -> Answer:
    shm = one.facts.host.disk("/dev/shm")
    if shm is None or shm.total_bytes >= MIN_SHM_BYTES:
        return skip("large enough")
    return warn(
        f"/dev/shm holds {shm.total_bytes / 2**20:.0f} MiB: Ray and NCCL will fall back to disk",
        "sudo mount -o remount,size=16g /dev/shm on the host",
    )


CHECKS: Sequence[Check[Candidate]] = (
    Check("docker.answers", "Docker Engine answers", _docker_answers),
    Check("gpu.count", "The GPUs that are asked for exist", _devices_are_there),
    Check("gpu.runtime", "Containers can be given GPUs", _gpus_reach_containers),
    Check("ray.ports", "Ray's ports are free", _ports_are_free),
    Check("host.directories", "Directories to be mounted exist", _directories_are_there),
    Check("docker.disk", "Docker's disk has room", _disk_has_room),
    Check("host.clock", "Clocks agree", _clock_agrees),
    Check("host.shm", "/dev/shm is large enough", _shm_is_large),
)


def _shared_hosts(candidates: Sequence[Candidate]) -> Iterator[Finding]:
    """Two names of one machine would fight for its ports."""
    seen: dict[tuple[str, int | None, str], str] = {}
    for one in candidates:
        if one.spec.runtime == "process":
            continue
        key = (one.node.address, one.node.port, one.facts.host.hostname)
        other = seen.setdefault(key, one.node.name)
        if other != one.node.name:
            message = f"is the same machine as {other}"
            yield Finding("host.distinct", None, one.node.name, "fail", message, fix="name it once")


@dataclass(frozen=True)
class ImageContents:
    """What a probe found in an image. None: it is not in there."""

    python: str | None
    ray: str | None
    torch: str | None
    vllm: str | None = None
    nccl: str | None = None


@dataclass(frozen=True)
class Held:
    """A host's image, as checks see it."""

    name: str
    contents: ImageContents


def _image_check(image: str, insecure_ray: bool) -> Check[Held]:
    return Check(
        "image.contents",
        "The image holds what a node needs",
        lambda held: _image_verdict(image, held.contents, insecure_ray),
        "ray-not-found",
    )


def judge_images(
    image: str, contents: Mapping[str, ImageContents], *, insecure_ray: bool
) -> list[Finding]:
    """By host. Equal over all hosts, and everything in it that a node needs."""
    findings = [
        finding
        for host, found in contents.items()
        for finding in run_checks([_image_check(image, insecure_ray)], [Held(host, found)])
    ]
    return [*findings, *_image_differs(image, contents)]


def _image_verdict(image: str, found: ImageContents, insecure_ray: bool) -> Answer:
    lacks = [
        name
        for name, version in (("python3", found.python), ("ray", found.ray), ("torch", found.torch))
        if version is None
    ]
    if lacks:
        return fail(
            f"image {image} has no {' and no '.join(lacks)}",
            "--image with one that has python3, ray and torch; stock vLLM images lack ray since "
            "v0.18: FROM it and `RUN pip install 'ray[default]>=2.52'`",
        )
    if _too_old(found.ray or "") and not insecure_ray:
        return fail(
            f"image {image} has Ray {found.ray}, which knows no token authentication (2.52 does)",
            "use an image with a newer Ray, or --insecure-ray on a network you trust",
        )
    return ok(f"python {found.python}, ray {found.ray}, torch {found.torch}")


def _too_old(ray: str) -> bool:
    return version_tuple(ray) < MIN_TOKEN_VERSION


def _image_differs(image: str, contents: Mapping[str, ImageContents]) -> Iterator[Finding]:
    if len(set(contents.values())) > 1:
        said = "; ".join(
            f"{host}: python {one.python}, ray {one.ray}, torch {one.torch}"
            for host, one in contents.items()
        )
        yield Finding(
            "image.equal",
            "ray-version-mismatch",
            None,
            "fail",
            f"image {image} is not the same on all hosts: {said}",
            fix=f"docker pull {image} on every host, or name it by digest",
        )
