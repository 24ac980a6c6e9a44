"""Phi-3: Llama whose checkpoint stacks query, key and value, and gate and up."""

from __future__ import annotations

from engine.layers.attention import SelfAttention
from engine.layers.base import Build
from engine.layers.rotary import Rotary
from engine.models.llama import LlamaForCausalLM, LlamaLayer, LlamaMLP, LlamaModel
from engine.shapes import ModelShape


class Phi3Layer(LlamaLayer):
    def make_attention(
        self, build: Build, shape: ModelShape, index: int, layer: int, rotary: Rotary
    ) -> SelfAttention:
        return SelfAttention(build, shape, index, layer, rotary, fused="qkv_proj")

    def make_mlp(self, build: Build, shape: ModelShape, layer: int) -> None:
        self.mlp = LlamaMLP(build, shape, fused="gate_up_proj")


class Phi3Model(LlamaModel):
    layer = Phi3Layer


class Phi3ForCausalLM(LlamaForCausalLM):
    body = Phi3Model
