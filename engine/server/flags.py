"""The command line: one flag a field of EngineConfig and ServeConfig, named as vLLM names them.
Each default is written once, there."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from engine.config import EngineConfig, numbers

ToolFormat = Literal["hermes", "llama3_json"]


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What the server is started with, beside its engine. Empty: the model as given; no web page
    of another place (CORS). `tool_call_parser` None: as the chat template shows."""

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: tuple[str, ...] = ()
    api_key_file: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    allowed_origins: tuple[str, ...] = ()
    max_body_bytes: int = 32 << 20
    shutdown_timeout: float = 5.0
    tool_call_parser: ToolFormat | None = None


Config = EngineConfig | ServeConfig
Made = TypeVar("Made", EngineConfig, ServeConfig)

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
    "host": "address to listen on",
    "port": "0: any free one",
    "served_model_name": "what clients may call it; unset: the model as given",
    "api_key_file": "unset: the environment's VLLM_API_KEY, if it is set",
    "ssl_certfile": "speak https: the certificate (PEM), those of its issuers behind it",
    "ssl_keyfile": "its private key (PEM); unset: in --ssl-certfile too",
    "allowed_origins": "web pages of other places that may call this API (CORS); *: any",
    "max_body_bytes": "of one request; larger ones are refused",
    "shutdown_timeout": "seconds that requests may still run after SIGTERM",
    "tool_call_parser": "how the model writes calls of tools; unset: as its chat template shows",
}
METAVARS = {int: "N", float: "N", Path: "FILE"}
SHORT = {
    "tensor_parallel_size": "-tp",
    "pipeline_parallel_size": "-pp",
    "data_parallel_size": "-dp",
    "enable_expert_parallel": "-ep",
}


def add_flags(parser: argparse.ArgumentParser, config: type[Config]) -> None:
    """One for each field of `config` that has a default."""
    hints = get_type_hints(config)
    for one in fields(config):
        if one.default is not MISSING:
            _add_flag(parser, one, hints[one.name])


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """The model, and a flag for each field of EngineConfig."""
    parser.add_argument("model", help="checkpoint directory, GGUF file or Hugging Face id")
    add_flags(parser, EngineConfig)


def config_of(config: type[Made], arguments: argparse.Namespace) -> Made:
    """Raises ValueError when the values cannot work together."""
    return config(**{one.name: getattr(arguments, one.name) for one in fields(config)})


def _add_flag(parser: argparse.ArgumentParser, one: Field[Any], hint: Any) -> None:
    default = "" if one.default in (None, ()) else f" (default: {one.default})"
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
    if hint == tuple[int, ...]:
        return {"type": numbers, "metavar": "N,N,..."}
    if hint == tuple[str, ...]:
        return {"nargs": "+", "metavar": "NAME"}
    reader: Callable[[str], Any] = hint
    return {"type": reader, "metavar": METAVARS.get(hint)}
