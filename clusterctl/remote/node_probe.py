"""Says, as one JSON line, what a node's Ray really runs with. Standard library only.

    python3 node_probe.py NAME...      environment variables to read back

{"env": {NAME: value} or null, "python": "3.12.3", "ray": "2.60.0" or null}: `env` is the raylet's
own, which every worker inherits; null where there is no raylet to be seen.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

OWN = "RAY_AUTH_TOKEN_PATH"  # differs between nodes that share a machine


def raylet_environment() -> dict[str, str] | None:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "comm").read_text().strip() != "raylet":
                continue
            environment = parse_environment((process / "environ").read_bytes())
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended, or it is somebody else's
        if environment.get(OWN) == os.environ.get(OWN):
            return environment
    return None


def parse_environment(data: bytes) -> dict[str, str]:
    pairs = (entry.partition("=") for entry in data.decode(errors="replace").split("\0"))
    return {name: value for name, _, value in pairs if name}


def ray_version() -> str | None:
    try:
        return importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        return None


def main(names: list[str]) -> None:
    environment = raylet_environment()
    content: dict[str, object] = {
        "env": None if environment is None else {name: environment.get(name) for name in names},
        "python": platform.python_version(),
        "ray": ray_version(),
    }
    print(json.dumps(content))


if __name__ == "__main__":
    main(sys.argv[1:])
