"""Render target `slurm`: a batch script, one task a node, in a container or with modules. PURE."""

from __future__ import annotations

from typing import Literal

from clusterctl.launch import HF_TARGET, interface_variables
from clusterctl.render import pods
from clusterctl.render.document import Asked, File, Rendered
from clusterctl.render.entry import ADDRESS, HEAD, RANK, Member, script
from clusterctl.render.templates import Verbatim, fill, shell_text, shell_words
from clusterctl.spec import MountSpec

_VARIABLES = {HEAD: '"$HEAD"', ADDRESS: '"$VLLM_HOST_IP"', RANK: '"$SLURM_PROCID"'}


def render(asked: Asked) -> Rendered:
    spec = asked.spec
    left_out = _left_out(asked)
    text = fill(
        "slurm.sh",
        shell_text,
        cluster=spec.name,
        nodes=len(spec.nodes),
        gpus=None if asked.on_cpus else asked.devices_per_node(),
        model=asked.serve.model if asked.serve else None,
        modules=asked.modules if asked.slurm == "modules" else (),
        environment=_environment(asked).items(),
        ray_token=not (spec.ray.insecure or asked.without_ray),
        srun=shell_words(_srun(asked)),
        head=Verbatim(_member(asked, "head")),
        worker=Verbatim(_member(asked, "worker")) if spec.workers else None,
        left_out=left_out,
    )
    return Rendered("slurm", (File(f"{spec.name}.sbatch", text, 0o755),), left_out)


def _environment(asked: Asked) -> dict[str, str]:
    interface = asked.spec.network.interface
    named = interface_variables(interface) if interface else {}
    inside = {} if asked.slurm == "modules" else {"HF_HOME": HF_TARGET}
    return {**named, **inside, **asked.spec.env}


def _member(asked: Asked, role: Literal["head", "worker"]) -> str:
    return script(
        asked,
        Member(
            role=role,
            address=ADDRESS,
            head=HEAD,
            api_host=HEAD,
            rank=0 if role == "head" else RANK,
            devices=asked.devices_per_node(),
            variables=_VARIABLES,
        ),
    )


def _srun(asked: Asked) -> list[str]:
    mounts = pods.mounts(asked)
    begin = ["srun", "--kill-on-bad-exit=1", "--label"]
    if asked.slurm == "pyxis":
        bound = ",".join(_bind(mount) for mount in mounts)
        mounted = [f"--container-mounts={bound}"] if bound else []
        image = f"--container-image={_enroot(asked.spec.image)}"
        return [*begin, image, *mounted, "--container-writable"]
    if asked.slurm == "apptainer":
        binds = [word for mount in mounts for word in ("--bind", _bind(mount))]
        gpus = [] if asked.on_cpus else ["--nv"]
        return [*begin, "apptainer", "exec", *gpus, *binds, f"docker://{asked.spec.image}"]
    return begin


def _bind(mount: MountSpec) -> str:
    return f"{mount.source}:{mount.target}" + (":ro" if mount.read_only else "")


def _enroot(image: str) -> str:
    """Enroot sets a registry off by `#`: registry.example/team/image:1 has one, vllm/vllm none."""
    registry, slash, rest = image.partition("/")
    named = slash and ("." in registry or ":" in registry or registry == "localhost")
    return f"{registry}#{rest}" if named else image


def _left_out(asked: Asked) -> tuple[str, ...]:
    said = []
    if own := [node.name for node in asked.spec.nodes if node.env]:
        said.append(f"env of {', '.join(own)} alone: Slurm chooses the nodes")
    if asked.slurm == "modules":
        if pods.mounts(asked):
            said.append("mounts: without a container, paths are the hosts' own")
        said.append(f"image {asked.spec.image}: the modules bring the engine")
    if asked.spec.network.interface is None:
        said.append("NCCL_SOCKET_IFNAME and its like: declare network.interface")
    return tuple(said)
