"""The native engine's command line and environment. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from clusterctl.serving.door import TlsFiles
from clusterctl.serving.placement import Executor
from clusterctl.spec import ServeSpec

ENGINE: Final = "native"
DEPLOYMENT_VARIABLE = "ENGINE_DEPLOYMENT"


def served_name(serve: ServeSpec) -> str:
    """What clients write into `model`: as asked, else the model as it was typed, as vLLM does."""
    return serve.served_model_name or serve.model


def argv(
    serve: ServeSpec,
    *,
    executor: Executor,
    host: str,
    api_key_file: str | None,
    tls: TlsFiles | None = None,
) -> tuple[str, ...]:
    """`python3 -m engine serve ...`, all choices explicit. `serve.extra` comes last and wins.

    `api_key_file` None: the engine takes VLLM_API_KEY from its environment.
    """
    length = ["--max-model-len", str(serve.max_model_len)] if serve.max_model_len else []
    return (
        *("python3", "-m", "engine", "serve", serve.model),
        *("--served-model-name", served_name(serve)),
        *("--tensor-parallel-size", str(serve.tp)),
        *("--pipeline-parallel-size", str(serve.pp)),
        *(("--data-parallel-size", str(serve.dp)) if serve.dp > 1 else ()),
        *(("--enable-expert-parallel",) if serve.ep else ()),
        *("--distributed-executor-backend", executor),
        *("--dtype", serve.dtype),
        *length,
        *("--host", host),
        *("--port", str(serve.port)),
        *(("--api-key-file", api_key_file) if api_key_file else ()),
        *(tls.flags if tls else ()),
        *serve.extra,
    )


def owner(cluster: str, deployment: str) -> str:
    """How a rank's environment says whose it is, on whichever node it runs."""
    return f"{cluster}/{deployment}"


def env(owner: str, *, package_directory: str, ray_address: str) -> Mapping[str, str]:
    """On top of the container's own. No secret: the key is in a file."""
    return {
        DEPLOYMENT_VARIABLE: owner,
        "PYTHONPATH": package_directory,
        "PYTHONUNBUFFERED": "1",
        "RAY_ADDRESS": ray_address,
    }
