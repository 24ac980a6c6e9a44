"""Which splits an engine can run at all, and why not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal

from clusterctl.planner.gpus import Hardware
from clusterctl.planner.memory import Split
from engine.shapes import (
    NO_EXPERTS,
    ModelShape,
    Quantisation,
    ShapeError,
    check_architecture,
    check_runnable,
    parse_shape,
)

Engine = Literal["auto", "native", "vllm"]


def faults(shape: ModelShape, split: Split, hardware: Hardware, engine: Engine) -> list[str]:
    """Every reason why this split is not legal; none for a legal one."""
    return [
        *_shape_faults(shape, split),
        *_placement_faults(split, hardware),
        *(_native_faults(shape, split) if engine == "native" else ()),
    ]


def config_faults(config: str, split: Split) -> list[str]:
    """Those of a model by its config.json, wherever it is to run. Raises ShapeError or ValueError
    where it is none that is known here."""
    return _shape_faults(parse_shape(json.loads(config)), split)


def _shape_faults(shape: ModelShape, split: Split) -> list[str]:
    return [*_model_faults(shape, split), *_kernel_faults(shape, split)]


def _model_faults(shape: ModelShape, split: Split) -> Iterator[str]:
    if fault := shape.split_fault(split.tp, split.ep > 1):
        legal = ", ".join(map(str, shape.legal_splits(split.ep > 1)))
        yield f"{fault} cannot be split over tp={split.tp} (legal for this model: {legal})"
    if split.pp > shape.num_layers:
        yield f"pp={split.pp} is more than the model's {shape.num_layers} layers"
    if split.ep > 1 and shape.experts is None:
        yield NO_EXPERTS
    if split.dcp > 1 and split.tp % split.dcp:
        yield f"dcp={split.dcp} does not divide tp={split.tp}"


def _kernel_faults(shape: ModelShape, split: Split) -> Iterator[str]:
    """A rank's part of a quantised matrix must hold whole blocks and groups of it."""
    quantised, tp = shape.quantisation, split.tp
    if quantised is None or tp == 1 or quantised.method == "mxfp4":  # which vLLM pads
        return
    experts = shape.experts
    if experts is not None and split.ep == 1:
        size = experts.intermediate_size
        if fault := _uneven(quantised, size // tp):
            yield (
                f"an expert's {size} columns over tp={tp}: {fault}; "
                "expert parallelism has no such limit"
            )
    if experts is None or len(experts.layers) < shape.num_layers:
        size = shape.intermediate_size
        if size % tp == 0 and (fault := _uneven(quantised, size // tp)):
            yield f"the MLP's {size} columns over tp={tp}: {fault}"


def _uneven(quantised: Quantisation, columns: int) -> str | None:
    """Rules of vLLM's fp8, AWQ and GPTQ kernels (vllm/model_executor/layers/quantization)."""
    for step in quantised.block or ():
        if columns % step:
            return f"{columns} is no multiple of the quantisation block {step}"
    if quantised.group and columns % quantised.group:
        return f"{columns} is no multiple of the quantisation group {quantised.group}"
    return None


def _placement_faults(split: Split, hardware: Hardware) -> Iterator[str]:
    needed = split.ranks * max(1, split.dp)
    if needed > hardware.total:
        yield f"tp x pp x dp = {needed} is more than the {hardware.total} GPUs of {hardware}"
    elif not any(hardware.slots(split.tp)):
        yield f"tp={split.tp} does not fill whole nodes of equal GPUs ({hardware})"
    elif sum(map(len, hardware.slots(split.tp))) < split.pp:
        yield f"{hardware} has no room for {split.pp} stages of {split.tp} GPUs each"


def _native_faults(shape: ModelShape, split: Split) -> Iterator[str]:
    try:
        check_architecture(shape)
        check_runnable(shape)
    except ShapeError as error:
        yield f"the native engine: {error}"
    if split.ep not in (1, split.tp):
        yield "the native engine spreads experts over the tensor ranks of a replica alone (ep=tp)"
    if split.dcp > 1:
        yield "the native engine has no context parallelism"


def spans_nodes(split: Split, hardware: Hardware) -> bool:
    """Whether tensor parallelism crosses the network, which only RDMA makes worth while."""
    return split.tp > hardware.per_node
