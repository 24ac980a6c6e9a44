"""config.json -> what a model's sizes allow: splits, partitions, bytes. Torch-free.

The one place for this arithmetic: the engine builds its layers from it, the planner its plans.
"""

from engine.shapes.architectures import ARCHITECTURES, check_architecture
from engine.shapes.config import check_runnable, parse_shape, read_config, read_shape
from engine.shapes.errors import ShapeError
from engine.shapes.model import (
    DTYPE_BYTES,
    NO_EXPERTS,
    Experts,
    LatentAttention,
    LayerKind,
    LinearAttention,
    ModelShape,
    RopeScaling,
)
from engine.shapes.partition import pipeline_partition, stage_layers
from engine.shapes.quantisation import Quantisation
from engine.shapes.sizes import first

__all__ = [
    "ARCHITECTURES",
    "DTYPE_BYTES",
    "NO_EXPERTS",
    "Experts",
    "LatentAttention",
    "LayerKind",
    "LinearAttention",
    "ModelShape",
    "Quantisation",
    "RopeScaling",
    "ShapeError",
    "check_architecture",
    "check_runnable",
    "first",
    "parse_shape",
    "pipeline_partition",
    "read_config",
    "read_shape",
    "stage_layers",
]
