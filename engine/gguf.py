"""GGUF -> a checkpoint as everything else here reads it, with the weights de-quantised; made once
and kept. Torch-free until there is something to make."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from pathlib import Path

SUFFIX = ".gguf"
EXTRA = "pip install 'clusterctl-inference[gguf]'"


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that `path` is, or that a directory without a config.json holds.

    Raises ValueError when the directory holds several.
    """
    if path.suffix == SUFFIX and path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(path.glob(f"*{SUFFIX}"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{path} holds several models: name one of {names}")
    return files[0] if files else None


def converted(gguf: Path) -> Path:
    """The directory of `gguf`'s checkpoint, under the user's cache. It appears whole or not at
    all; of several ranks that ask, one makes it and the others wait.

    Raises ValueError when transformers cannot read this GGUF, or a package for it is not there.
    """
    status = gguf.stat()
    identity = f"{gguf.resolve()} {status.st_size} {status.st_mtime_ns}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "infercluster/gguf"
    directory = cache / f"{gguf.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix=".") as scratch:
                convert(gguf, Path(scratch) / "checkpoint")
                (Path(scratch) / "checkpoint").rename(directory)
    return directory


def convert(gguf: Path, directory: Path) -> None:
    """Write config.json, weights in float32 (what they are de-quantised to) and the tokenizer.
    `dtype` in config.json is bfloat16: no GGUF says more."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except ImportError as error:
        raise ValueError(f"to read {gguf.name} more packages are needed: {EXTRA}") from error
    directory.mkdir()
    tokenizer.save_pretrained(directory)
    tied = loaded.config.tie_word_embeddings
    tensors = {
        name: tensor.contiguous()
        for name, tensor in loaded.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = loaded.config.to_dict()
    del config["quantization_config"]
    config |= {"architectures": [type(loaded).__name__], "dtype": "bfloat16"}
    (directory / "config.json").write_text(json.dumps(config, indent=2))
