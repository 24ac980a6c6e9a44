"""Where a model's files lie on this host. Torch-free."""

from __future__ import annotations

from pathlib import Path

from engine.gguf import converted, gguf_file

_FILES = ["*.json", "*.safetensors", "tokenizer*", "*.jinja"]


def checkpoint_directory(model: str) -> Path:
    """The directory of `model`: itself, that of a GGUF file once converted, or a Hugging Face id's
    snapshot, fetched when needed.

    Raises ValueError for a path at which there is no model.
    """
    path = Path(model).expanduser()
    if gguf := gguf_file(path):
        return converted(gguf)
    if path.is_dir():
        return path
    if model.startswith(("/", "./", "../", "~")):
        raise ValueError(f"there is no model directory {path}")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=_FILES))
