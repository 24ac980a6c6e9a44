"""Architecture name, as config.json has it -> the module that builds it, imported when asked."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from engine.shapes import ModelShape, ShapeError

if TYPE_CHECKING:
    from engine.layers.base import Build
    from engine.models.base import CausalLM

ARCHITECTURES: Mapping[str, str] = {
    "LlamaForCausalLM": "engine.models.llama",
    "Qwen3ForCausalLM": "engine.models.qwen3",
}


def build_model(build: Build, shape: ModelShape, layers: range) -> CausalLM:
    """The stage of `shape` that holds `layers`, its weights not yet read.

    Raises ShapeError for an architecture that the engine does not know.
    """
    if shape.architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ShapeError(f"architecture {shape.architecture} is not supported (known: {known})")
    module = import_module(ARCHITECTURES[shape.architecture])
    model: CausalLM = getattr(module, shape.architecture)(build, shape, layers)
    return model
