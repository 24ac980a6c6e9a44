#!/usr/bin/env python3
"""How long a model takes to one host of the testbed and to all, over links of equal speed.

    scripts/testbed --name NAME up --hosts 4
    INFERCLUSTER_TESTBED_NAME=NAME scripts/bench/distribute.py --write

Whole runs of `clusterctl model push` are measured, from the start of the program to its end. Fails
when all hosts take LIMIT times as long as one, or more; or when a second run moves a byte.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from page import ROOT, provenance, write

HEADING = "## A model onto many hosts"
TESTBED = [str(ROOT / "scripts/testbed")]
DIRECTORY = "/srv/bench-models"
LIMIT = 1.6
SHARDS = 6


@dataclass(frozen=True)
class Run:
    """One push: its hosts, seconds, and the nodes of its `--json`."""

    name: str
    hosts: int
    seconds: float
    nodes: list[dict[str, Any]]

    def total(self, counter: str) -> int:
        return sum(node[counter] for node in self.nodes)


def testbed(*words: str) -> str:
    return subprocess.run([*TESTBED, *words], check=True, capture_output=True, text=True).stdout


def model(directory: Path, size: int) -> Path:
    root = directory / "bench"
    root.mkdir()
    (root / "config.json").write_text("{}")
    for number in range(1, SHARDS + 1):
        shard = root / f"model-{number:05}-of-{SHARDS:05}.safetensors"
        shard.write_bytes(os.urandom(size // SHARDS))
    return root


def configure(directory: Path) -> list[str]:
    """cluster.yaml over all hosts of the testbed, which get an image with Python; their names."""
    status = json.loads(testbed("status", "--json"))
    hosts = [host["name"] for host in status["hosts"]]
    image = f"{status['registry']}/infercluster-noray:1"
    content = {
        "name": "bench",
        "head": hosts[0],
        "hosts": hosts,
        "image": image,
        "model_dirs": [DIRECTORY],
        "ssh": {"config": status["ssh_config"]},
    }
    (directory / "cluster.yaml").write_text(json.dumps(content))
    for host in hosts:
        testbed("ssh", host, "docker", "pull", "--quiet", image)
    return hosts


@contextmanager
def slow_links(hosts: list[str], mbit: int) -> Iterator[None]:
    for host in hosts:
        testbed("fault", host, f"slow-link:{mbit}")
    try:
        yield
    finally:
        for host in hosts:
            testbed("heal", host)


def clusterctl(directory: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "clusterctl", *words]
    done = subprocess.run(
        argv, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{words}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def push(name: str, directory: Path, root: Path, hosts: list[str]) -> Run:
    begun = time.monotonic()
    said = clusterctl(directory, "model", "push", str(root), "--json", "--hosts", ",".join(hosts))
    seconds = time.monotonic() - begun
    return Run(name, len(hosts), seconds, json.loads(said)["nodes"])


def measure(directory: Path, root: Path, hosts: list[str]) -> list[Run]:
    one = push("one host", directory, root, hosts[:1])
    clusterctl(directory, "model", "rm", "bench", "--yes")
    everyone = push(f"{len(hosts)} hosts", directory, root, hosts)
    again = push("the same again", directory, root, hosts)
    clusterctl(directory, "model", "rm", "bench", "--yes")
    return [one, everyone, again]


def section(runs: list[Run], size: int, mbit: int) -> str:
    first = runs[0].seconds
    rows = [
        f"| {run.name} | {run.seconds:.1f} s | {run.seconds / first:.2f} | "
        f"{run.total('fed_bytes') / 1e6:.0f} MB | {run.total('received_bytes') / 1e6:.0f} MB |"
        for run in runs
    ]
    head = [
        HEADING,
        "",
        f"`scripts/bench/distribute.py --write`: `clusterctl model push` of {size / 1e6:.0f} MB in "
        f"{SHARDS} shards to hosts of the testbed, each with a cable of {mbit} Mbit/s each way "
        f"(`tc tbf`); {provenance()}. Whole runs, with connecting, facts and checks; "
        f"{size * 8 / mbit / 1e6:.1f} s is what one cable needs for the bytes alone.",
        "",
        "| push to | time | to one host | from this machine | from host to host |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--mbit", type=int, default=200)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    args = parser.parse_args()
    size = args.megabytes * 10**6
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        hosts = configure(directory)
        root = model(directory, size)
        with slow_links(hosts, args.mbit):
            runs = measure(directory, root, hosts)
    text = section(runs, size, args.mbit)
    print(text)
    if args.write:
        write(HEADING, text)
    again = runs[2].total("fed_bytes") + runs[2].total("received_bytes")
    return 0 if runs[1].seconds < LIMIT * runs[0].seconds and again == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
