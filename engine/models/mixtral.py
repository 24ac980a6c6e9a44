"""Mixtral: Mistral with a mixture of experts in place of the MLP."""

from __future__ import annotations

import torch

from engine.layers.base import Build
from engine.layers.experts import ExpertMLP
from engine.models.llama import LlamaForCausalLM, LlamaLayer, LlamaModel
from engine.shapes import ModelShape

NAMES = ("gate", "experts.{expert}.w1", "experts.{expert}.w3", "experts.{expert}.w2")


class MixtralLayer(LlamaLayer):
    def make_mlp(self, build: Build, shape: ModelShape, layer: int) -> None:
        assert shape.experts is not None
        self.block_sparse_moe = ExpertMLP(build, shape, shape.experts, NAMES)

    def feed_forward(self, normed: torch.Tensor) -> torch.Tensor:
        return self.block_sparse_moe(normed)  # type: ignore[no-any-return]


class MixtralModel(LlamaModel):
    layer = MixtralLayer


class MixtralForCausalLM(LlamaForCausalLM):
    body = MixtralModel
