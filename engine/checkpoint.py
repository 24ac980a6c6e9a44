"""Where a model's files lie on this host. Torch-free."""

from __future__ import annotations

from pathlib import Path

_FILES = ["*.json", "*.safetensors", "tokenizer*", "*.jinja"]


def checkpoint_directory(model: str) -> Path:
    """The directory of `model`: itself, or a Hugging Face id's snapshot, fetched when needed.

    Raises ValueError for a path at which there is no directory.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if model.startswith(("/", "./", "../", "~")):
        raise ValueError(f"there is no model directory {path}")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=_FILES))
