"""What an engine is started with. Torch-free: dtype and device are names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Backend = Literal["inproc", "mp", "ray"]

PARTITION_VARIABLE = "VLLM_PP_LAYER_PARTITION"  # vLLM's way to say what `pipeline_partition` does


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Raises ValueError on values that cannot work whatever the model is.

    `model` is a directory (config.json, *.safetensors, tokenizer), a GGUF file (or the directory of
    one) or a Hugging Face id.
    `max_model_len` None: the model's own maximum. `pipeline_partition` None: engine.shapes decides.
    `data_parallel_size`: replicas of the whole, each with ranks of its own, behind one server.
    `enable_expert_parallel`: the tensor ranks hold whole experts, not a part of each.
    `distributed_executor_backend` None: "inproc" for one rank in all, "mp" otherwise.
    `quantization` "int8": every matrix in 8 bits, a scale a row, but embedding and LM head.
    `max_queued_requests` None: any number may wait. `async_scheduling` None: on CUDA.
    `start_timeout_s` is how long the ranks may take to come up, before any weight is read;
    `step_timeout_s` how long one step may take before the slowest rank counts as hung.
    """

    model: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    pipeline_partition: tuple[int, ...] | None = None
    data_parallel_size: int = 1
    enable_expert_parallel: bool = False
    distributed_executor_backend: Backend | None = None
    max_model_len: int | None = None
    block_size: int = 16
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_queued_requests: int | None = None
    enable_prefix_caching: bool = True
    async_scheduling: bool | None = None
    enforce_eager: bool = False
    load_format: Literal["auto", "dummy"] = "auto"
    quantization: Literal["int8"] | None = None
    seed: int = 0
    step_timeout_s: float = 300.0
    start_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        for name in (
            "tensor_parallel_size",
            "pipeline_parallel_size",
            "data_parallel_size",
            "block_size",
            "max_num_seqs",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_num_seqs ({self.max_num_seqs}): every running request needs one token a step"
            )

    @property
    def world_size(self) -> int:
        """Ranks of one replica."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def total_ranks(self) -> int:
        """Of all replicas."""
        return self.world_size * self.data_parallel_size

    @property
    def backend(self) -> Backend:
        return self.distributed_executor_backend or ("inproc" if self.total_ranks == 1 else "mp")

    @property
    def graph_sizes(self) -> list[int]:
        """The batches that have a CUDA graph: of 1, 2, 4 .. 32, then every 32, and the largest
        whatever it is."""
        most = self.max_num_seqs
        sizes = {1 << n for n in range(6)} | set(range(64, most, 32)) | {most}
        return sorted(size for size in sizes if size <= most)

    def completed(self, environment: Mapping[str, str]) -> EngineConfig:
        """With the stages' layers as vLLM's variable gives them, where no field does.

        Raises ValueError when it holds no numbers.
        """
        written = environment.get(PARTITION_VARIABLE)
        if self.pipeline_partition is not None or not written:
            return self
        try:
            return replace(self, pipeline_partition=numbers(written))
        except ValueError as error:
            raise ValueError(
                f"{PARTITION_VARIABLE}={written} is not numbers such as 18,10"
            ) from error


def numbers(text: str) -> tuple[int, ...]:
    """`18,10` -> (18, 10). Raises ValueError."""
    return tuple(int(part) for part in text.split(","))
