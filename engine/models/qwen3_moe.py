"""Qwen3-MoE: Qwen3 with a mixture of experts in most layers."""

from __future__ import annotations

from engine.layers.base import Build
from engine.layers.experts import ExpertMLP
from engine.models.llama import LlamaForCausalLM, LlamaLayer, LlamaModel
from engine.shapes import ModelShape

NAMES = (
    "gate",
    "experts.{expert}.gate_proj",
    "experts.{expert}.up_proj",
    "experts.{expert}.down_proj",
)


class Qwen3MoeLayer(LlamaLayer):
    def make_mlp(self, build: Build, shape: ModelShape, layer: int) -> None:
        if shape.experts is None or layer not in shape.experts.layers:
            super().make_mlp(build, shape, layer)
            return
        self.mlp = ExpertMLP(build, shape, shape.experts, NAMES)


class Qwen3MoeModel(LlamaModel):
    layer = Qwen3MoeLayer


class Qwen3MoeForCausalLM(LlamaForCausalLM):
    body = Qwen3MoeModel
