"""A compact distributed inference engine: tensor x pipeline parallel, on torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.config import EngineConfig
    from engine.llm import LLM
    from engine.sampling_params import SamplingParams

__all__ = ["LLM", "EngineConfig", "SamplingParams"]

_HOMES = {
    "EngineConfig": "engine.config",
    "LLM": "engine.llm",
    "SamplingParams": "engine.sampling_params",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is asked for: `import engine` alone must stay cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
