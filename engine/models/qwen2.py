"""Qwen2 and Qwen2.5: Llama with biases at query, key and value, which its shape says."""

from __future__ import annotations

from engine.models.llama import LlamaForCausalLM


class Qwen2ForCausalLM(LlamaForCausalLM):
    pass
