"""Which models lie in a directory: plain ones, and those of a Hugging Face cache."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .staging import SUFFIX
from .trees import RECORD

WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
INDEX = ".safetensors.index.json"
HUB_PREFIX = "models--"


def models(directory: Path) -> list[dict[str, Any]]:
    """Name, path, bytes and state ("complete", "incomplete", "partial") of each.

    "incomplete": a link leads nowhere, a shard of its index is absent, or a download broke off.
    "partial": on its way, under its hidden name; `size` is what has arrived.
    """
    found = []
    for entry in sorted(directory.iterdir()) if directory.is_dir() else ():
        if entry.name.startswith(".") and entry.name.endswith(SUFFIX):
            name = entry.name[1:].removesuffix(SUFFIX)
            found.append(_model(name, directory / name, size_of(entry / "tree"), "partial"))
        elif entry.is_dir() and _is_model(entry):
            state = "complete" if _is_complete(entry) else "incomplete"
            found.append(_model(entry.name, entry, size_of(entry), state))
    return found


def _model(name: str, path: Path, size: int, state: str) -> dict[str, Any]:
    hub = name.removeprefix(HUB_PREFIX).replace("--", "/", 1)
    shown = hub if name.startswith(HUB_PREFIX) else str(path)
    return {"name": shown, "path": str(path), "size": size, "state": state}


def _is_model(directory: Path) -> bool:
    if directory.name.startswith(HUB_PREFIX) or (directory / RECORD).exists():
        return True
    names = os.listdir(directory)
    return "config.json" in names or any(name.endswith(WEIGHTS) for name in names)


def _is_complete(directory: Path) -> bool:
    if missing_shards(directory):
        return False
    for path in directory.rglob("*"):
        if path.name.endswith(".incomplete") or (path.is_symlink() and not path.exists()):
            return False
    return True


def missing_shards(directory: Path) -> list[str]:
    """What an index of weights names and the directory beside it lacks, relative to `directory`."""
    missing = set()
    for index in directory.rglob("*" + INDEX):
        if index.is_file():
            named = json.loads(index.read_bytes())["weight_map"].values()
            missing |= {index.parent / name for name in named if not (index.parent / name).exists()}
    return sorted(str(path.relative_to(directory)) for path in missing)


def size_of(directory: Path) -> int:
    """Bytes of files; a link adds nothing to what it leads to."""
    paths = (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in paths)
