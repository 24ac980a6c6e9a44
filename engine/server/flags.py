"""The command line: one flag a field of EngineConfig, named as vLLM names them. Each default is
written once, there."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from engine.config import EngineConfig, numbers

ToolFormat = Literal["hermes", "llama3_json"]

HELP = {
    "dtype": "of weights and KV cache; auto: the checkpoint's",
    "device": "auto: CUDA where there is any",
    "tensor_parallel_size": "ranks that share every layer",
    "pipeline_parallel_size": "stages, each holding some of the layers",
    "pipeline_partition": "layers of each stage, such as 16,14; unset: balanced by cost",
    "data_parallel_size": "replicas behind one server; a request goes to the least busy",
    "enable_expert_parallel": "tensor ranks hold whole experts, not a part of each",
    "distributed_executor_backend": "unset: inproc for one rank in all, mp for several",
    "max_model_len": "prompt and answer together, in tokens; unset: the model's own maximum",
    "block_size": "token positions in one KV cache block",
    "kv_cache_memory_bytes": "of each rank; unset: what --gpu-memory-utilization leaves",
    "gpu_memory_utilization": "fraction of the device's memory to use",
    "max_num_seqs": "requests that run at once",
    "max_num_batched_tokens": "tokens computed in one step",
    "max_queued_requests": "requests that may wait; more are refused (unset: any number)",
    "enable_prefix_caching": "share the KV blocks of equal beginnings",
    "async_scheduling": "prepare a step while the one before it runs; unset: on CUDA",
    "enforce_eager": "no CUDA graphs",
    "load_format": "dummy: random weights, to measure speed without a checkpoint",
    "quantization": "int8: hold the matrices in 8 bits; unset: as dtype says",
    "seed": "for requests that bring none",
    "step_timeout_s": "a rank that takes longer over one step counts as hung",
    "start_timeout_s": "how long the ranks may take to come up, before weights are read",
}
SHORT = {
    "tensor_parallel_size": "-tp",
    "pipeline_parallel_size": "-pp",
    "data_parallel_size": "-dp",
    "enable_expert_parallel": "-ep",
}


def add_serve_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one")
    parser.add_argument(
        "--served-model-name", nargs="+", metavar="NAME", help="unset: the model as given"
    )
    parser.add_argument(
        "--api-key-file", type=Path, help="unset: the environment's VLLM_API_KEY, if it is set"
    )
    parser.add_argument(
        "--ssl-certfile",
        type=Path,
        help="speak https: the certificate (PEM), those of its issuers behind it",
    )
    parser.add_argument(
        "--ssl-keyfile", type=Path, help="its private key (PEM); unset: in --ssl-certfile too"
    )
    parser.add_argument(
        "--allowed-origins",
        nargs="+",
        default=[],
        metavar="ORIGIN",
        help="web pages of other places that may call this API (CORS); *: any; unset: none",
    )
    parser.add_argument(
        "--max-body-bytes",
        type=int,
        default=32 << 20,
        metavar="N",
        help="of one request; larger ones are refused (default: 32 MiB)",
    )
    parser.add_argument(
        "--shutdown-timeout",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="how long requests may still run after SIGTERM (default: 5)",
    )
    parser.add_argument(
        "--tool-call-parser",
        choices=get_args(ToolFormat),
        help="how the model writes calls of tools; unset: as its chat template shows",
    )
    add_engine_flags(parser)


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """The model, and a flag for each field of EngineConfig."""
    parser.add_argument("model", help="checkpoint directory, GGUF file or Hugging Face id")
    hints = get_type_hints(EngineConfig)
    for one in fields(EngineConfig):
        if one.default is not MISSING:
            _add_flag(parser, one, hints[one.name])


def engine_config(arguments: argparse.Namespace) -> EngineConfig:
    """Raises ValueError when the values cannot work together."""
    return EngineConfig(**{one.name: getattr(arguments, one.name) for one in fields(EngineConfig)})


def _add_flag(parser: argparse.ArgumentParser, one: Field[Any], hint: Any) -> None:
    default = "" if one.default is None else f" (default: {one.default})"
    names = [f"--{one.name.replace('_', '-')}", *filter(None, [SHORT.get(one.name)])]
    parser.add_argument(
        *names, default=one.default, help=HELP[one.name] + default, **_reading(_without_none(hint))
    )


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, UnionType):
        (hint,) = [part for part in get_args(hint) if part is not NoneType]
    return hint


def _reading(hint: Any) -> dict[str, Any]:
    """How argparse reads a value of this type."""
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is tuple:
        return {"type": numbers, "metavar": "N,N,..."}
    reader: Callable[[str], Any] = hint
    return {"type": reader, "metavar": "N"}
