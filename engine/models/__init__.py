"""Architecture name, as config.json has it -> the module that builds it, imported when asked. Which
there are is said in engine.shapes, where the planner reads it too."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from engine.shapes import ARCHITECTURES, ModelShape, check_architecture

if TYPE_CHECKING:
    from engine.layers.base import Build
    from engine.models.base import CausalLM


def build_model(build: Build, shape: ModelShape, layers: range) -> CausalLM:
    """The stage of `shape` that holds `layers`, its weights not yet read.

    Raises ShapeError for an architecture that the engine does not know.
    """
    check_architecture(shape)
    module = import_module(f"{__name__}.{ARCHITECTURES[shape.architecture]}")
    model: CausalLM = getattr(module, shape.architecture)(build, shape, layers)
    return model
