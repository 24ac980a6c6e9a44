"""What a plan needs to know of a node, asked in its container. Standard library only; over stdin.

    python3 - MODEL    a directory, or a Hub id that is looked for in the Hugging Face cache

Answers with one JSON object: "files", the texts of the small files that say how large the model is
(none where it is not here), "memory", the bytes that this host has free, and "cpu_kv_gib", what
vLLM is told to take for its cache on CPUs: by `env:`, or by the image.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

INDEX = "model.safetensors.index.json"


def directory_of(model: str) -> Path | None:
    """Of a Hub id the newest snapshot."""
    if model.startswith("/"):
        return Path(model)
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    snapshots = hub / f"models--{model.replace('/', '--')}" / "snapshots"
    found = [one.parent for one in snapshots.glob("*/config.json")]
    return max(found, key=lambda one: one.stat().st_mtime, default=None)


def texts(directory: Path) -> dict[str, str]:
    names = ("config.json", "generation_config.json", "hf_quant_config.json")
    found = {name: directory / name for name in names}
    said = {name: path.read_text("utf-8") for name, path in found.items() if path.is_file()}
    index = directory / INDEX
    if index.is_file():
        said[INDEX] = shortened(index.read_text("utf-8"))
    return said


def shortened(index: str) -> str:
    """Megabytes of names, of which one number is asked. What is no index is left as it is, for
    whoever reads it to say so."""
    try:
        return json.dumps({"metadata": json.loads(index)["metadata"]})
    except (ValueError, LookupError, TypeError):
        return index


def memory() -> int:
    """MemAvailable: free, or freed by dropping caches."""
    (kib,) = re.findall(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    return int(kib) * 1024


def main() -> None:
    directory = directory_of(sys.argv[1])
    files = texts(directory) if directory is not None else {}
    said = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "")
    space = int(said) if said.isdecimal() else 0
    print(json.dumps({"files": files, "memory": memory(), "cpu_kv_gib": space}))


if __name__ == "__main__":
    main()
