"""Vision and audio encoders: how many parameters they add to a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.shapes import ModelShape, first, parse_shape

Config = Mapping[str, Any]


def parse_whole(config: Config) -> ModelShape:
    """The shape that a config.json describes, with its encoders. Raises ShapeError."""
    shape = parse_shape(config)
    return replace(shape, tower_parameters=tower_parameters(config, shape.hidden_size))


def tower_parameters(config: Config, text_width: int) -> int:
    """Of the vision encoder and the projector behind it; 0 where there is none.

    A plain vision transformer is counted: attention, an MLP (gated in Pixtral and Qwen2.5-VL),
    norms, the patch and position embeddings. Projectors are counted as two layers of the text's
    width. Within a few per cent of the tower, which is itself a few per cent of the model.
    """
    vision = first(config, "vision_config", "visual")
    if not isinstance(vision, dict):
        return 0
    width = first(vision, "embed_dim", "hidden_size", "vt_hidden_size", "width")
    depth = first(vision, "depth", "num_hidden_layers", "vt_num_hidden_layers", "layers")
    if not width or not depth:
        return 0
    body = depth * _layer(vision, width) + _patches(vision, width)
    return int(body + _projector(vision, width, text_width))


def _layer(vision: Config, width: int) -> int:
    inner = first(vision, "intermediate_size", "vt_intermediate_size")
    inner = inner or int(width * (vision.get("mlp_ratio") or 4))
    gated = vision.get("model_type") in ("pixtral", "qwen2_5_vl")
    return 4 * width * width + (3 if gated else 2) * width * inner + 9 * width + inner


def _patches(vision: Config, width: int) -> int:
    patch = first(vision, "patch_size", "spatial_patch_size") or 14
    channels = first(vision, "num_channels", "in_channels", "in_chans") or 3
    frames = vision.get("temporal_patch_size") or 1
    side = (vision.get("image_size") or 0) // patch
    positions = vision.get("num_position_embeddings") or side * side
    return width * (patch * patch * channels * frames + positions)


def _projector(vision: Config, width: int, text_width: int) -> int:
    merge = vision.get("spatial_merge_size") or 1
    joined = width * merge * merge
    deep = len(vision.get("deepstack_visual_indexes") or ())
    return (1 + deep) * (joined * joined + joined * text_width) if merge > 1 else width * text_width
