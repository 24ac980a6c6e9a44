"""Qwen3: Llama with a norm of every query and key head."""

from __future__ import annotations

from engine.models.llama import LlamaForCausalLM, LlamaLayer, LlamaModel


class Qwen3Layer(LlamaLayer):
    head_norm = True


class Qwen3Model(LlamaModel):
    layer = Qwen3Layer


class Qwen3ForCausalLM(LlamaForCausalLM):
    body = Qwen3Model
