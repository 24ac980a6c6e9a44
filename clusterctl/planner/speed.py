"""Upper bounds on speed: what memory bandwidth, arithmetic and links allow."""

from __future__ import annotations

from dataclasses import dataclass, replace

from clusterctl.planner.gpus import Gpu, Hardware
from clusterctl.planner.legality import spans_nodes
from clusterctl.planner.memory import Memory
from clusterctl.planner.tensors import parameters, rank_bytes
from engine.shapes import DTYPE_BYTES, ModelShape

# GB/s one way, assumed where nothing was measured.
LINKED = 450.0
PCIE = 25.0
NETWORK = 25.0  # one 200 Gb/s RDMA port a GPU


@dataclass(frozen=True)
class Bounds:
    """Of one replica. `decode`: tokens a second for one request, bandwidth-bound; `prefill`:
    tokens a second, compute-bound. Milliseconds: of one full prefill step on the assumed links,
    all-reduces of all layers, and one hop between stages."""

    decode: float
    prefill: float
    all_reduce_ms: float
    hop_ms: float
    link: str


def bounds(memory: Memory, hardware: Hardware) -> Bounds:
    """From datasheet figures of the GPU."""
    shape, split = memory.shape, memory.split
    active = _active(shape)
    read = [rank_bytes(active, stage.layers, split.tp) for stage in memory.stages]
    reading = sum(
        size / stage.gpu.bandwidth for size, stage in zip(read, memory.stages, strict=True)
    )
    share = 2 * parameters(active) / sum(read)
    slowest = max(
        size * share / (_flops(shape, stage.gpu) * split.tp)
        for size, stage in zip(read, memory.stages, strict=True)
    )
    speed, link = _link(memory, hardware)
    message = memory.step_tokens * shape.hidden_size * DTYPE_BYTES[shape.dtype]
    reduced = 2 * shape.num_layers * message * 2 * (split.tp - 1) / split.tp
    across = NETWORK if hardware.nodes > 1 else speed
    return Bounds(
        decode=1e9 / reading,
        prefill=1 / slowest,
        all_reduce_ms=reduced / (speed * 1e9) * 1e3,
        hop_ms=message / (across * 1e9) * 1e3 if split.pp > 1 else 0.0,
        link=link,
    )


def _flops(shape: ModelShape, gpu: Gpu) -> float:
    eight_bits = shape.quantisation is not None and shape.quantisation.bits == 8
    return (gpu.tflops_fp8 if eight_bits else gpu.tflops) * 1e12


def _active(shape: ModelShape) -> ModelShape:
    """What one token computes with: of the experts, those that it is sent to."""
    if shape.experts is None:
        return shape
    experts = shape.experts
    return replace(shape, experts=replace(experts, count=experts.per_token), tower_parameters=0)


def _link(memory: Memory, hardware: Hardware) -> tuple[float, str]:
    if spans_nodes(memory.split, hardware):
        return NETWORK, f"RDMA, {NETWORK:.0f} GB/s assumed"
    if all(stage.gpu.linked for stage in memory.stages):
        return LINKED, f"GPU links, {LINKED:.0f} GB/s assumed"
    return PCIE, f"PCIe, {PCIE:.0f} GB/s assumed"
