"""The architectures that the engine runs, by the name that config.json has. The one list: the
engine builds by it, the planner judges by it."""

from __future__ import annotations

from collections.abc import Mapping

from engine.shapes.errors import ShapeError
from engine.shapes.model import ModelShape

ARCHITECTURES: Mapping[str, str] = {
    "GPT2LMHeadModel": "gpt2",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral",
    "OPTForCausalLM": "opt",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
}
"""And the module of engine.models that holds each."""


def check_architecture(shape: ModelShape) -> None:
    """Raises ShapeError for an architecture that the engine does not know."""
    if shape.architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ShapeError(f"architecture {shape.architecture} is not supported (known: {known})")
