"""Gemma 3, its text half: Gemma 2 with normalised heads, no caps, and layers with a window that
turn faster than those that see everything. Its shape says all of that."""

from __future__ import annotations

from engine.models.gemma2 import Gemma2ForCausalLM


class Gemma3ForCausalLM(Gemma2ForCausalLM):
    pass
