"""config.json -> what a model's sizes allow: splits, partitions, bytes. Torch-free.

The one place for this arithmetic: the engine builds its layers from it, the planner its plans.
"""

from engine.shapes.architectures import ARCHITECTURES, check_architecture
from engine.shapes.cache import BLOCK, CacheGroups, cache_groups
from engine.shapes.config import check_runnable, parse_shape, read_config, read_shape
from engine.shapes.errors import ShapeError
from engine.shapes.model import (
    DTYPE_BYTES,
    NO_EXPERTS,
    Experts,
    LatentAttention,
    LinearAttention,
    ModelShape,
    RopeScaling,
)
from engine.shapes.partition import even_partition, pipeline_partition, stage_layers
from engine.shapes.quantisation import Quantisation, named_quantisation
from engine.shapes.tensors import (
    checkpoint_bytes,
    checkpoint_parameters,
    parameters,
    rank_bytes,
)

__all__ = [
    "ARCHITECTURES",
    "BLOCK",
    "DTYPE_BYTES",
    "NO_EXPERTS",
    "CacheGroups",
    "Experts",
    "LatentAttention",
    "LinearAttention",
    "ModelShape",
    "Quantisation",
    "RopeScaling",
    "ShapeError",
    "cache_groups",
    "check_architecture",
    "check_runnable",
    "checkpoint_bytes",
    "checkpoint_parameters",
    "even_partition",
    "named_quantisation",
    "parameters",
    "parse_shape",
    "pipeline_partition",
    "rank_bytes",
    "read_config",
    "read_shape",
    "stage_layers",
]
