"""Mistral: Llama whose layers may look through a window, which its shape says."""

from __future__ import annotations

from engine.models.llama import LlamaForCausalLM


class MistralForCausalLM(LlamaForCausalLM):
    pass
