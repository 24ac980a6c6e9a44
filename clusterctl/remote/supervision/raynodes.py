"""What Ray on this head says of its nodes: ray_probe.py as a process, while somebody waits."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PROBE_S = 600  # it ends by itself, should nobody end it

Expected = Mapping[str, Any]  # name, address, devices
RayNode = Mapping[str, Any]  # an entry of ray.nodes()


class RayNodes:
    def __init__(self, probe: Path) -> None:
        self._probe = probe
        self._process: subprocess.Popen[bytes] | None = None
        self._newest: dict[str, Any] = {"error": "Ray was not asked yet"}

    def missing(self, address: str, expected: Sequence[Expected], boots: Mapping[str, str]) -> str:
        """Who of them Ray does not know yet, in words; empty: all are there.

        `boots`: the present life of each node that was heard. Ray calls a node alive for a while
        after it is gone.
        """
        self._ask(address, expected[0]["address"])
        if "nodes" not in self._newest:
            return f"Ray: {self._newest['error']}"
        return missing(self._newest["nodes"], expected, boots)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._newest = {"error": "Ray was not asked yet"}

    def _ask(self, address: str, own: str) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        argv = [sys.executable, str(self._probe), address, own, "--seconds", str(PROBE_S)]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        for line in process.stdout or ():
            if line.startswith((b'{"nodes"', b'{"error"')):
                self._newest = json.loads(line)


def missing(
    nodes: Sequence[RayNode], expected: Sequence[Expected], boots: Mapping[str, str]
) -> str:
    absent = [
        f"{one['name']} ({one['address']})"
        for one in expected
        if not any(_is(one, node, boots.get(one["name"])) for node in nodes)
    ]
    return f"not in Ray: {', '.join(absent)}" if absent else ""


def _is(one: Expected, node: RayNode, boot: str | None) -> bool:
    resources = node["Resources"]
    return (
        node["Alive"]
        and node["NodeManagerAddress"] == one["address"]
        and resources.get("GPU", 0) + resources.get("cpu_slot", 0) >= one["devices"]
        and (boot is None or node.get("NodeName") == f"{one['name']}-{boot}")
    )
