"""JSON files that appear whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .processes import say

Json = dict[str, Any]

_refused: set[Path] = set()  # by the disk, when they were to be written last


def read_json(path: Path) -> Json | None:
    """None while the file is absent or only partly written: it is looked at again soon."""
    try:
        content: Json = json.loads(path.read_bytes())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return content


def write_json(path: Path, content: Json) -> bool:
    """False, and said once, where the disk does not take it: what is kept goes on without its
    record."""
    draft = path.with_name(f".{path.name}")
    try:
        draft.write_text(json.dumps(content))
        draft.replace(path)
    except OSError as error:
        if path not in _refused:
            say(f"{path}: {error.strerror}".encode())
        _refused.add(path)
        return False
    _refused.discard(path)
    return True
