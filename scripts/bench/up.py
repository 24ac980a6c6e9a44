#!/usr/bin/env python3
"""What `clusterctl up` costs beside the least that has to be done: the same containers with
`docker run` and `ray start` by plain ssh, all hosts at once, until `ray.nodes()` is complete; and
beside run_cluster.sh's way, one host after the other.

    scripts/testbed up --hosts 3
    .venv/bin/python scripts/bench/up.py [--rounds 3] [--write]

All in turn within each round; medians are compared. Images are on the hosts before it begins. With
--write the result becomes the "From hosts to a cluster" section of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from page import provenance, write

ROOT = Path(__file__).resolve().parents[2]
HEADING = "## From hosts to a cluster"
LIMIT = 1.3
NODES = (
    "import ray; ray.init(address='auto', log_to_driver=False); "
    "print(sum(node['Alive'] for node in ray.nodes()))"
)
COMMAND_S = 300


class Bed:
    def __init__(self) -> None:
        said = subprocess.run(
            [str(ROOT / "scripts/testbed"), "status", "--json"],
            check=True,
            capture_output=True,
            text=True,
        )
        self.status = json.loads(said.stdout)
        self.directory = Path(self.status["cluster_yaml"]).parent
        self.lines = self._planned()

    @property
    def hosts(self) -> list[str]:
        return list(self.lines)

    def clusterctl(self, *args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "clusterctl", *args],
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
        if done.returncode:
            raise SystemExit(f"clusterctl {' '.join(args)}: {done.stdout}{done.stderr}")
        return done.stdout

    def _planned(self) -> dict[str, str]:
        """The very `docker run` lines of `up`, less our supervisor: `ray start` is the command."""
        plan = json.loads(self.clusterctl("up", "--dry-run", "--json"))
        return {node["name"]: bare(node["command"]) for node in plan["nodes"]}

    def ssh(self, host: str, command: str) -> str:
        argv = ["ssh", "-F", self.status["ssh_config"], "-l", "root", host, command]
        return subprocess.run(
            argv, check=True, capture_output=True, text=True, timeout=COMMAND_S
        ).stdout

    def remove(self) -> None:
        with ThreadPoolExecutor(len(self.hosts)) as pool:
            list(pool.map(lambda host: self.ssh(host, f"docker rm -f bench-{host}"), self.hosts))

    def formed(self) -> None:
        """Until every node is in `ray.nodes()`."""
        head = self.hosts[0]
        ask = f"docker exec bench-{head} python3 -c {shlex.quote(NODES)} 2>/dev/null || true"
        while self.ssh(head, ask).strip() != str(len(self.hosts)):
            time.sleep(0.2)


def bare(line: str) -> str:
    words = shlex.split(line)
    ray = words.index("ray", words.index("--"))
    name = words[words.index("--name") + 1].rpartition("-")[2]
    kept = words[: words.index("--entrypoint")]
    image = words[words.index("--entrypoint") + 2]
    kept[kept.index("--name") + 1] = f"bench-{name}"
    kept += ["--env", "RAY_AUTH_MODE=disabled", "--entrypoint", "ray", image]
    sources = [part[7:] for word in kept for part in word.split(",") if part.startswith("source=")]
    run = [*kept, *(word.replace("{boot}", "0") for word in words[ray + 1 :])]
    return f"{shlex.join(['mkdir', '-p', *sources])} && {shlex.join(run)}"


def floor(bed: Bed) -> None:
    with ThreadPoolExecutor(len(bed.hosts)) as pool:
        list(pool.map(lambda host: bed.ssh(host, bed.lines[host]), bed.hosts))
    bed.formed()


def serial(bed: Bed) -> None:
    for host in bed.hosts:
        bed.ssh(host, bed.lines[host])
    bed.formed()


def ours(bed: Bed) -> None:
    bed.clusterctl("up", "--no-sanity", "--yes")


def ours_with_sanity(bed: Bed) -> None:
    bed.clusterctl("up", "--yes")


def down(bed: Bed) -> None:
    bed.clusterctl("down", "--purge")


CONTESTANTS: dict[str, tuple[Callable[[Bed], None], Callable[[Bed], None]]] = {
    "docker run + ray start by ssh, all hosts at once (the floor)": (floor, Bed.remove),
    "the same, one host after the other (run_cluster.sh)": (serial, Bed.remove),
    "`clusterctl up --no-sanity`": (ours, down),
    "`clusterctl up`": (ours_with_sanity, down),
}


def measure(bed: Bed, rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name, (act, undo) in CONTESTANTS.items():
            began = time.perf_counter()
            act(bed)
            times[name].append(time.perf_counter() - began)
            print(f"{times[name][-1]:6.1f} s  {name}", flush=True)
            undo(bed)
    return times


def section(bed: Bed, times: dict[str, list[float]], rounds: int) -> str:
    medians = {name: statistics.median(all_) for name, all_ in times.items()}
    least = next(iter(medians.values()))
    rows = [
        f"| {name} | {median:.1f} s | {median / least:.2f} |" for name, median in medians.items()
    ]
    head = [
        HEADING,
        "",
        f"`scripts/bench/up.py --write`: {len(bed.hosts)} hosts of the testbed on one machine, "
        f"images present, medians of {rounds} rounds, each in turn; {provenance()}.",
        "",
        "| | until every node is in Ray | to the floor |",
        "|---|---|---|",
    ]
    return "\n".join([*head, *rows, ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    args = parser.parse_args(argv)
    bed = Bed()
    ours(bed)  # images, and what only a first time costs
    down(bed)
    times = measure(bed, args.rounds)
    text = section(bed, times, args.rounds)
    print(text)
    if args.write:
        write(HEADING, text)
    names = list(times)
    ratio = statistics.median(times[names[2]]) / statistics.median(times[names[0]])
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
