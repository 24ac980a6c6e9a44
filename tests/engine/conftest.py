"""Small checkpoints with seeded random weights, made once a session."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

MakeCheckpoint = Callable[..., Path]


def load_script(name: str) -> ModuleType:
    """A script of scripts/, which have no .py ending, as a module."""
    loader = SourceFileLoader(f"scripts_{name}", str(SCRIPTS / name))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[loader.name] = module  # where dataclasses look up their annotations
    loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """checkpoint(**LlamaConfig sizes) -> the directory of such a model; equal sizes, equal one."""
    made: dict[str, Path] = {}

    def make(**sizes: Any) -> Path:
        key = repr(sorted(sizes.items()))
        if key not in made:
            made[key] = load_script("tiny_llama").make(tmp_path_factory.mktemp("llama"), **sizes)
        return made[key]

    return make
