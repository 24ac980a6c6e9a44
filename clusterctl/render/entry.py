"""What a member of the group runs where `up` is not there to do it: a script that starts Ray, waits
for the others and becomes the engine; or the engine alone, where it needs no Ray. PURE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from clusterctl.errors import ConfigError
from clusterctl.raycluster import BOOT, ExpectedNode, ray_start_argv
from clusterctl.render.declared import Containers
from clusterctl.render.document import Asked
from clusterctl.render.templates import shell_words
from clusterctl.serving import native, vllm
from clusterctl.serving.plan import BACKENDS
from clusterctl.serving.vllm import GroupNode

# Stand-ins for what is only known where the script runs; no value can hold a NUL.
HEAD, ADDRESS, RANK = "\0head", "\0address", "\0rank"

WAIT_FOR_NODES = """\
import ray, sys, time
ray.init(address="auto", logging_level="ERROR")
while (alive := sum(node["Alive"] for node in ray.nodes())) < int(sys.argv[1]):
    print(f"{alive}/{sys.argv[1]} nodes have joined Ray", flush=True)
    time.sleep(5)
"""


@dataclass(frozen=True)
class Member:
    """One member and where it stands. `name` "": it has none before it runs. `devices` None: Ray
    counts them. `variables`: what the stand-ins become. `api_host`: what the API binds."""

    role: Literal["head", "worker"]
    address: str
    head: str
    api_host: str
    rank: int | str = 0
    name: str = ""
    devices: int | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


def script(asked: Asked, member: Member) -> str:
    """Bash. Whatever it becomes in the end is its last process (`exec`)."""
    return "\n".join(["set -eu", *_lines(asked, member), ""])


def _lines(asked: Asked, member: Member) -> list[str]:
    if asked.without_ray:
        return [f"exec {_words(engine_argv(asked, member), member)}"]
    ray = ray_words(asked, member)
    if member.role == "worker":
        port = f"{member.head}/{asked.spec.ray.port}"
        wait = _words([f"/dev/tcp/{port}"], member)
        return [
            f"until (exec 3<>{wait}) 2>/dev/null; do sleep 2; done",
            f"exec {_words(ray, member)}",
        ]
    if asked.serve is None:
        return [f"exec {_words(ray, member)}"]
    return [
        _words([word for word in ray if word != "--block"], member),
        wait_line(len(asked.spec.nodes)),
        f"exec {_words(engine_argv(asked, member), member)}",
    ]


def wait_line(nodes: int) -> str:
    return shell_words(["python3", "-c", WAIT_FOR_NODES, str(nodes)])


def ray_words(asked: Asked, member: Member) -> list[str]:
    """`ray start ... --block`, less what only our supervisor fills in."""
    kind: Literal["cpu", "gpu"] = "cpu" if asked.on_cpus else "gpu"
    expected = ExpectedNode(member.name, member.address, member.role, kind, member.devices or 0)
    words = [
        word.replace(f"-{BOOT}", "")
        for word in ray_start_argv(expected, member.head, asked.spec.ray)
    ]
    unsaid = ["--num-gpus="] if member.devices is None else []
    unsaid += [] if member.name else ["--node-name="]
    return [word for word in words if not word.startswith(tuple(unsaid))] if unsaid else words


def engine_argv(asked: Asked, member: Member) -> tuple[str, ...]:
    """The engine on this member. The API key comes by the environment, as VLLM_API_KEY."""
    serve, nodes = asked.deployment, len(asked.spec.nodes)
    _check_carried(asked)
    host = serve.host or member.api_host
    if serve.engine == native.ENGINE:
        return native.argv(serve, executor=asked.executor, host=host, api_key_file=None)
    group = GroupNode(nodes, member.rank, member.head) if asked.without_ray and nodes > 1 else None
    return vllm.argv(serve, backend=BACKENDS[asked.executor], host=host, node=group)


def _check_carried(asked: Asked) -> None:
    serve, nodes = asked.deployment, len(asked.spec.nodes)
    if nodes == 1 or not asked.without_ray:
        return
    if serve.engine == native.ENGINE or asked.executor == "inproc":
        raise ConfigError(
            f"executor {asked.executor} of the {serve.engine} engine runs on one node, and the "
            f"cluster has {nodes}",
            hint="--executor ray",
        )


def _words(argv: Sequence[str], member: Member) -> str:
    return shell_words(argv, member.variables)


def members(asked: Asked, found: Containers) -> dict[str, Member]:
    """One a node, where all addresses are known; the head, which has rank 0, first."""
    spec = asked.spec
    head = found.places[spec.head].address
    return {
        node.name: Member(
            role="worker" if rank else "head",
            address=found.places[node.name].address,
            head=head,
            api_host=head,
            rank=rank,
            name=node.name,
            devices=asked.devices_of(node.name),
        )
        for rank, node in enumerate((spec.head_node, *spec.workers))
    }
