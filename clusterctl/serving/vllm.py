"""vLLM's command line: over Ray, and over several nodes without it. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clusterctl.spec import ServeSpec

ENGINE = "vllm"
API_KEY_VARIABLE = "VLLM_API_KEY"  # never --api-key: an argv can be read by everybody on the host
MASTER_PORT = 29501

Backend = Literal["ray", "mp", "uni"]


@dataclass(frozen=True)
class GroupNode:
    """One node of vLLM's own multi-node. The node of rank 0 serves the API and is the master; the
    others are headless, and must be there before it."""

    nnodes: int
    node_rank: int | str
    master_addr: str
    master_port: int = MASTER_PORT


def argv(
    serve: ServeSpec, *, backend: Backend, host: str, node: GroupNode | None = None
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
        *("--distributed-executor-backend", backend),
        *("--dtype", serve.dtype),
        *length,
        *("--host", host),
        *("--port", str(serve.port)),
        *(_group_flags(node) if node else ()),
        *serve.extra,
    )


def _group_flags(node: GroupNode) -> tuple[str, ...]:
    return (
        *("--nnodes", str(node.nnodes)),
        *("--node-rank", str(node.node_rank)),
        *("--master-addr", node.master_addr),
        *("--master-port", str(node.master_port)),
        *([] if node.node_rank == 0 else ["--headless"]),
    )
