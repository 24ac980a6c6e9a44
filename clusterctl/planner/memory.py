"""What one GPU's memory goes to, and how many tokens of KV cache are left.

    pool = utilisation * total - weights - activations - outside torch
    tokens = the minimum over the ranks of pool / KV bytes a token

Checked against published startup logs by scripts/validate_plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from clusterctl.planner.cache import BLOCK, CacheGroups, cache_groups
from clusterctl.planner.gpus import GIB, Gpu
from clusterctl.planner.tensors import rank_bytes
from engine.shapes import DTYPE_BYTES, ModelShape, ShapeError, stage_layers

LARGE_GPU = 70 * GIB
"""From here on vLLM computes 8192 tokens a step by default and keeps 1024 requests; on smaller ones
and on A100 2048 and 256 (vllm/engine/arg_utils.py of 0.10 and later, `get_batch_defaults`)."""

_CPU_PAGE = 128  # tokens of a block in vLLM on CPUs (vllm/platforms/cpu.py)

_OUTSIDE_ONE = 0.35 * GIB  # context and libraries: vllm#10517, 13061
_OUTSIDE_LINKED = 1.8 * GIB  # and NCCL's channels and custom all-reduce over NVLink: vllm#10511
_OUTSIDE_NATIVE = 1.22 * GIB  # and kernels, measured on one H100: docs/planning.md
_NATIVE_CPU_CACHE = GIB  # a rank, as long as half of what is free allows it: engine/memory.py
_LOGIT_BYTES = 10  # bf16 logits, their fp32 copy, and one fp32 tensor of the sampler's
_LATENT_WORKSPACE = 65536  # tokens that vLLM decompresses at once (chunked prefill of MLA)


@dataclass(frozen=True)
class Settings:
    """How the engine is started. `kv_dtype` None: the checkpoint's own, else its dtype's.
    `kv_cache_bytes`: of each rank, where it was given and is not what `utilization` leaves;
    `partition`: layers of each stage, where they were given."""

    utilization: float = 0.9
    max_model_len: int | None = None
    kv_dtype: str | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    engine: Literal["native", "vllm"] = "vllm"
    kv_cache_bytes: int | None = None
    block_size: int | None = None
    partition: tuple[int, ...] | None = None

    def step_tokens(self, gpu: Gpu) -> int:
        return self.max_num_batched_tokens or self._default(gpu, large=8192, small=2048)

    def step_requests(self, gpu: Gpu) -> int:
        if self.engine == "native":
            return self.max_num_seqs or 64
        return self.max_num_seqs or self._default(gpu, large=1024, small=256)

    def _default(self, gpu: Gpu, *, large: int, small: int) -> int:
        big = gpu.memory_bytes >= LARGE_GPU and not (gpu.unified or gpu.is_a100)
        return large if big and self.engine == "vllm" else small

    def page(self, gpu: Gpu) -> int:
        """Tokens of a block of the cache."""
        return self.block_size or (_CPU_PAGE if gpu.cpu and self.engine == "vllm" else BLOCK)


@dataclass(frozen=True)
class Split:
    """tp x pp ranks a replica and `dp` replicas. `ep` > 1: experts lie whole on that many ranks.
    `dcp`: the cache of a token is spread over so many tensor ranks."""

    tp: int
    pp: int
    dp: int = 1
    ep: int = 1
    dcp: int = 1

    @property
    def ranks(self) -> int:
        return self.tp * self.pp

    def __str__(self) -> str:
        extra = [
            f"{name}={value}" for name, value in (("dp", self.dp), ("ep", self.ep)) if value > 1
        ]
        extra += [f"dcp={self.dcp}"] if self.dcp > 1 else []
        return " ".join([f"tp={self.tp}", f"pp={self.pp}", *extra])


@dataclass(frozen=True)
class Stage:
    """One pipeline stage, seen from one of its GPUs. Bytes."""

    layers: range
    gpu: Gpu
    budget: int
    weights: int
    activations: int
    outside: int
    kv_bytes_per_token: int
    block_bytes: int
    settings: Settings

    @property
    def pool(self) -> int:
        """For the KV cache; negative by as much as is missing."""
        left = self.budget - self.weights - self.activations - self.outside
        wanted = _fixed_cache(self.gpu, self.settings, left)
        if wanted is None:
            return left
        return wanted if wanted <= left else left - wanted


@dataclass(frozen=True)
class Memory:
    """A replica's memory over its stages. `kept_blocks`: no request may have them (vLLM's null
    block)."""

    shape: ModelShape
    split: Split
    stages: tuple[Stage, ...]
    groups: CacheGroups
    max_model_len: int
    step_tokens: int
    kept_blocks: int = 0

    @cached_property
    def blocks(self) -> int:
        """Of the whole replica: the smallest stage's."""
        room = min(stage.pool // max(1, stage.block_bytes) for stage in self.stages)
        return max(0, room) * self.split.dcp

    @property
    def kv_cache_tokens(self) -> int:
        return self.groups.tokens(self.blocks)

    @property
    def max_concurrency(self) -> float:
        return self.blocks / self.blocks_of(self.max_model_len)

    @property
    def holds_one(self) -> bool:
        """Whether the longest request fits."""
        return self.holds(self.max_model_len)

    def holds(self, tokens: int) -> bool:
        return self.blocks_of(tokens) + self.kept_blocks <= self.blocks

    def blocks_of(self, tokens: int) -> int:
        return self.groups.blocks_of(self.shape, tokens, self.step_tokens)

    def longest(self) -> int:
        """The longest request that the cache holds, in whole hundreds; 0 when none."""
        low, high = 0, self.max_model_len
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.holds(middle) else (low, middle - 1)
        return low // 100 * 100 if low > 100 else low

    @property
    def tightest(self) -> Stage:
        return min(self.stages, key=lambda stage: stage.pool / max(1, stage.block_bytes))


def memory_of(
    shape: ModelShape,
    split: Split,
    gpus: tuple[Gpu, ...],
    settings: Settings,
    *,
    partition: tuple[int, ...] | None = None,
    scale: float = 1.0,
) -> Memory:
    """`gpus`: that of each stage. `scale`: the checkpoint's true bytes over what its sizes imply.
    Without a partition vLLM's even one."""
    cut = settings.partition or partition or even_partition(shape.num_layers, split.pp)
    if len(cut) != split.pp or sum(cut) != shape.num_layers:
        raise ShapeError(f"{','.join(map(str, cut))} is no partition for {split}")
    page = settings.page(gpus[0])
    groups = cache_groups(shape, tp=split.tp, dtype=settings.kv_dtype, page=page)
    stages = tuple(
        _stage(shape, split, gpu, settings, stage_layers(cut, index), groups, scale)
        for index, gpu in enumerate(gpus)
    )
    length = settings.max_model_len or shape.max_position
    step = settings.step_tokens(gpus[0])
    kept = 1 if settings.engine == "vllm" else 0
    return Memory(shape, split, stages, groups, length, step, kept)


def even_partition(layers: int, pp: int) -> tuple[int, ...]:
    """vLLM's split (`get_pp_indices` of vllm/distributed/utils.py): what does not divide goes one
    layer each to the stages before the last, from the back."""
    sizes = [layers // pp] * pp
    for back in range(2, layers % pp + 2):
        sizes[-back] += 1
    return tuple(sizes)


def _stage(
    shape: ModelShape,
    split: Split,
    gpu: Gpu,
    settings: Settings,
    layers: range,
    groups: CacheGroups,
    scale: float,
) -> Stage:
    caching = sum(1 for layer in shape.attention_layers if layer in layers)
    reckon = native_activation_bytes if settings.engine == "native" else activation_bytes
    return Stage(
        layers=layers,
        gpu=gpu,
        budget=_budget(gpu, settings),
        weights=int(rank_bytes(shape, layers, split.tp, split.ep) * scale),
        activations=reckon(
            shape,
            split,
            tokens=settings.step_tokens(gpu),
            requests=settings.step_requests(gpu) if layers.stop == shape.num_layers else 0,
        ),
        outside=int(_outside(gpu, split, settings)),
        kv_bytes_per_token=shape.kv_bytes_per_token(
            tp=split.tp, layers=caching, dtype=settings.kv_dtype
        )
        // split.dcp,
        block_bytes=groups.block_bytes(layers),
        settings=settings,
    )


def _budget(gpu: Gpu, settings: Settings) -> int:
    """What the engine lets itself use: all, where the size of the cache was fixed beforehand."""
    whole = _takes_a_share(gpu, settings) or settings.kv_cache_bytes is not None
    return gpu.memory_bytes if whole else int(gpu.memory_bytes * settings.utilization)


def _fixed_cache(gpu: Gpu, settings: Settings, left: int) -> int | None:
    """Bytes that a rank takes for its cache whatever is left; None: all that is left."""
    if settings.kv_cache_bytes is not None or not _takes_a_share(gpu, settings):
        return settings.kv_cache_bytes
    return min(_NATIVE_CPU_CACHE, max(0, left) // 2)


def _takes_a_share(gpu: Gpu, settings: Settings) -> bool:
    """Our engine on CPUs; vLLM there takes what `utilization` leaves, as on GPUs."""
    return gpu.cpu and settings.engine == "native"


def _outside(gpu: Gpu, split: Split, settings: Settings) -> float:
    """The CUDA context, libraries, and the buffers of collectives."""
    if settings.engine == "native" and split.ranks == 1:
        return _OUTSIDE_NATIVE
    linked = gpu.linked and split.ranks * split.ep > 1
    return _OUTSIDE_LINKED if linked else _OUTSIDE_ONE


def activation_bytes(shape: ModelShape, split: Split, *, tokens: int, requests: int) -> int:
    """The peak of a step of `tokens`, beside the weights: the widest layer or the sampler.

    A layer holds the residual, its norm and attention's output, and either the MLP's gate, up and
    product or the experts' inputs and outputs; sampling holds logits of the whole vocabulary.
    """
    width = DTYPE_BYTES[shape.dtype]
    layer = 4 * shape.hidden_size + max(_mlp_width(shape, split), _attention_width(shape, split))
    body = tokens * layer * width
    if shape.latent is not None:
        one = shape.latent
        heads = shape.num_heads // split.tp
        body += _LATENT_WORKSPACE * heads * (one.nope_dim + one.rope_dim + one.value_dim) * width
    return max(
        body, tokens * 2 * shape.hidden_size * width + requests * shape.vocab_size * _LOGIT_BYTES
    )


def _mlp_width(shape: ModelShape, split: Split) -> int:
    experts = shape.experts
    if experts is None:
        return 3 * shape.intermediate_size // split.tp
    inner = experts.intermediate_size if split.ep > 1 else experts.intermediate_size // split.tp
    # Gathered inputs in the weights' and the activations' precision, both products, the outputs.
    return experts.per_token * (3 * inner + 2 * shape.hidden_size)


def _attention_width(shape: ModelShape, split: Split) -> int:
    heads = shape.num_heads // split.tp + 2 * shape.kv_heads_per_rank(split.tp)
    return 2 * heads * shape.head_dim


def native_activation_bytes(shape: ModelShape, split: Split, *, tokens: int, requests: int) -> int:
    """The peak of engine.runner's largest step: the residual and its norm with their sums before
    and after, the MLP's gate and up with the gate's activation and the product; or logits in the
    model's dtype and in fp32."""
    width = DTYPE_BYTES[shape.dtype]
    body = tokens * 4 * (shape.hidden_size + shape.intermediate_size // split.tp) * width
    logits = requests * shape.vocab_size * (width + 4)
    return max(body, 2 * tokens * shape.hidden_size * width + logits)
