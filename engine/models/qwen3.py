"""Qwen3: Llama with query and key normalised head by head, which its shape says."""

from __future__ import annotations

from engine.models.llama import LlamaForCausalLM


class Qwen3ForCausalLM(LlamaForCausalLM):
    pass
