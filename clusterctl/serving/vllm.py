"""vLLM's command line and environment: over Ray, and over several nodes without it; and what the
vLLM in an image can do. PURE."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from clusterctl.fabric import PER_HOST
from clusterctl.serving.door import TlsFiles
from clusterctl.spec import ServeSpec

ENGINE = "vllm"
API_KEY_VARIABLE = "VLLM_API_KEY"  # never --api-key: an argv can be read by everybody on the host
MASTER_PORT = 29501
REPLICAS_PORT = 29550

Backend = Literal["ray", "mp", "uni"]

# Importing vLLM takes many seconds: asked once an image. `--help=all` is unknown to older ones,
# whose plain --help shows everything.
PROBE = """
import json, subprocess, sys
def run(*words):
    return subprocess.run(words, capture_output=True, text=True)
said = run("vllm", "serve", "--help=all")
if said.returncode:
    said = run("vllm", "serve", "--help")
code = "from vllm.platforms import current_platform as p; print('RESOURCE=' + p.ray_device_key)"
platform = run(sys.executable, "-c", code)
lines = [l for l in platform.stdout.splitlines() if l.startswith("RESOURCE=")]
print(json.dumps({
    "help": said.stdout if said.returncode == 0 else None,
    "error": (said.stderr if said.returncode else platform.stderr)[-2000:],
    "ray_resource": lines[-1].partition("=")[2] if lines else None,
}))
"""

_FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")


@dataclass(frozen=True)
class Abilities:
    """Of the vLLM in an image: the flags of `vllm serve`, and the Ray resource on which its
    platform places ranks ("GPU"; "" where it cannot use Ray)."""

    flags: frozenset[str]
    ray_resource: str

    def knows(self, flag: str) -> bool:
        return flag in self.flags


def parse_abilities(output: str) -> Abilities | str:
    """What PROBE printed; the reason, in vLLM's words, where it does not even start."""
    said = json.loads(output.splitlines()[-1])
    if said["help"] is None or said["ray_resource"] is None:
        return str(said["error"]).strip() or "it printed nothing"
    return Abilities(frozenset(_FLAG.findall(said["help"])), said["ray_resource"])


@dataclass(frozen=True)
class GroupNode:
    """One node of vLLM's own multi-node. The node of rank 0 serves the API and is the master; the
    others are headless, and must be there before it."""

    nnodes: int
    node_rank: int | str
    master_addr: str
    master_port: int = MASTER_PORT


@dataclass(frozen=True)
class ReplicasNode:
    """One node of several that hold whole replicas each (data parallel): `first` of all, `local`
    on this node. The node of the first replica serves the API and shares the requests out."""

    first: int
    local: int
    head_addr: str
    port: int = REPLICAS_PORT


def argv(
    serve: ServeSpec,
    *,
    backend: Backend,
    host: str,
    node: GroupNode | ReplicasNode | None = None,
    tls: TlsFiles | None = None,
) -> tuple[str, ...]:
    """`vllm serve ...`, all choices explicit: without a backend vLLM chooses by what it sees, and
    never Ray. `node` belongs to backend mp over several nodes. `serve.extra` comes last and wins.
    """
    assert node is None or backend == "mp", "vLLM refuses --nnodes over Ray"
    length = ["--max-model-len", str(serve.max_model_len)] if serve.max_model_len else []
    return (
        *("vllm", "serve", serve.model),
        *("--served-model-name", serve.served_model_name or serve.model),
        *("--tensor-parallel-size", str(serve.tp)),
        *("--pipeline-parallel-size", str(serve.pp)),
        *_size_flags(serve, backend),
        *("--distributed-executor-backend", backend),
        *("--dtype", serve.dtype),
        *length,
        *("--host", host),
        *("--port", str(serve.port)),
        *(tls.flags if tls else ()),
        *_node_flags(node),
        *serve.extra,
    )


def _size_flags(serve: ServeSpec, backend: Backend) -> tuple[str, ...]:
    """Only what was asked for: not every version knows them."""
    over_ray = ("--data-parallel-backend", "ray") if backend == "ray" else ()
    return (
        *(("--data-parallel-size", str(serve.dp), *over_ray) if serve.dp > 1 else ()),
        *(("--enable-expert-parallel",) if serve.ep else ()),
        *(("--decode-context-parallel-size", str(serve.dcp)) if serve.dcp > 1 else ()),
    )


def unknown_sizes(serve: ServeSpec, abilities: Abilities) -> tuple[str, ...]:
    """The flags for what was asked that this vLLM does not know."""
    flags = (word for word in _size_flags(serve, "mp") if word.startswith("--"))
    return tuple(flag for flag in flags if not abilities.knows(flag))


def _node_flags(node: GroupNode | ReplicasNode | None) -> tuple[str, ...]:
    if node is None:
        return ()
    return _group_flags(node) if isinstance(node, GroupNode) else _replicas_flags(node)


def _replicas_flags(node: ReplicasNode) -> tuple[str, ...]:
    return (
        *("--data-parallel-size-local", str(node.local)),
        *("--data-parallel-address", node.head_addr),
        *("--data-parallel-rpc-port", str(node.port)),
        *(("--data-parallel-start-rank", str(node.first), "--headless") if node.first else ()),
    )


def _group_flags(node: GroupNode) -> tuple[str, ...]:
    return (
        *("--nnodes", str(node.nnodes)),
        *("--node-rank", str(node.node_rank)),
        *("--master-addr", node.master_addr),
        *("--master-port", str(node.master_port)),
        *([] if node.node_rank == 0 else ["--headless"]),
    )


def config_files(config_root: str) -> Mapping[str, str]:
    """Beside the API server, which gives its own environment to Ray's workers: not what each host
    says for itself (vLLM's older Ray executor overwrites that, and the workers then look for the
    head's adapters). Path -> content; VLLM_CONFIG_ROOT has to be `config_root`."""
    return {f"{config_root}/ray_non_carry_over_env_vars.json": json.dumps(sorted(PER_HOST))}


def env(
    deployment: Mapping[str, str], *, backend: Backend, ray_address: str, config_root: str
) -> Mapping[str, str]:
    """On top of the container's own. `deployment`: the variable that says whose a process is.

    vLLM hands its environment to Ray's workers inside Python, where nobody sees it from outside:
    as the job's runtime environment they are started with it. Every rank's lines are wanted, so Ray
    must not fold those that are alike.
    """
    own = {**deployment, "PYTHONUNBUFFERED": "1"}
    if backend != "ray":
        return own
    job = json.dumps({"runtime_env": {"env_vars": dict(deployment)}})
    return own | {
        "RAY_ADDRESS": ray_address,
        "RAY_DEDUP_LOGS": "0",
        "RAY_JOB_CONFIG_JSON_ENV_VAR": job,
        "VLLM_CONFIG_ROOT": config_root,
    }
