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
    "GPT2LMHeadModel": "engine.models.gpt2",
    "Gemma2ForCausalLM": "engine.models.gemma2",
    "Gemma3ForCausalLM": "engine.models.gemma3",
    "LlamaForCausalLM": "engine.models.llama",
    "MistralForCausalLM": "engine.models.mistral",
    "MixtralForCausalLM": "engine.models.mixtral",
    "OPTForCausalLM": "engine.models.opt",
    "Phi3ForCausalLM": "engine.models.phi3",
    "Qwen2ForCausalLM": "engine.models.qwen2",
    "Qwen3ForCausalLM": "engine.models.qwen3",
    "Qwen3MoeForCausalLM": "engine.models.qwen3_moe",
}

# Windows, capped scores and experts have no kernel yet that has run.
ON_CUDA = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def build_model(build: Build, shape: ModelShape, layers: range) -> CausalLM:
    """The stage of `shape` that holds `layers`, its weights not yet read.

    Raises ShapeError for an architecture that the engine does not know.
    """
    if shape.architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ShapeError(f"architecture {shape.architecture} is not supported (known: {known})")
    windowed = "sliding" in shape.layer_kinds
    if build.device.type == "cuda" and (shape.architecture not in ON_CUDA or windowed):
        what = f"{shape.architecture}{' with a sliding window' * windowed}"
        raise ShapeError(f"{what} runs on CPUs only for now: --device cpu")
    module = import_module(ARCHITECTURES[shape.architecture])
    model: CausalLM = getattr(module, shape.architecture)(build, shape, layers)
    return model
