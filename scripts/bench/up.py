#!/usr/bin/env python3
"""What `clusterctl up` costs beside the least that has to be done: the same containers with
`docker run` and `ray start` by plain ssh, all hosts at once, until `ray.nodes()` is complete;
beside run_cluster.sh's way, one host after the other; and beside Ray's own launcher, `ray up`.

    scripts/testbed up --hosts 3
    .venv/bin/python scripts/bench/up.py [--rounds 3] [--write]

All in turn within each round; medians are compared. Images are on the hosts before it begins. With
--write the result becomes the "Bringing a cluster up" section of docs/benchmarks.md.
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

import raylauncher
from page import provenance, write
from raylauncher import Launcher

ROOT = Path(__file__).resolve().parents[2]
HEADING = "## Bringing a cluster up"
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
        plan = json.loads(self.clusterctl("up", "--dry-run", "--json"))
        # The very `docker run` lines of `up`, less our supervisor: `ray start` is the command.
        self.lines = {node["name"]: bare(node["command"]) for node in plan["nodes"]}
        addresses = {node["name"]: node["address"] for node in plan["nodes"]}
        self.launcher = Launcher(addresses, Path(self.status["ssh_config"]), self.status["image"])

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

    def ssh(self, host: str, command: str) -> str:
        argv = ["ssh", "-F", self.status["ssh_config"], "-l", "root", host, command]
        return subprocess.run(
            argv, check=True, capture_output=True, text=True, timeout=COMMAND_S
        ).stdout

    def remove(self) -> None:
        with ThreadPoolExecutor(len(self.hosts)) as pool:
            list(pool.map(lambda host: self.ssh(host, f"docker rm -f bench-{host}"), self.hosts))

    def formed(self, container: str = "") -> None:
        """Until every node is in `ray.nodes()`. `container`: the head's."""
        head = self.hosts[0]
        name = container or f"bench-{head}"
        ask = f"docker exec {name} python3 -c {shlex.quote(NODES)} 2>/dev/null || true"
        deadline = time.monotonic() + COMMAND_S
        while (seen := self.ssh(head, ask).strip()) != str(len(self.hosts)):
            if time.monotonic() > deadline:
                raise SystemExit(f"{name}: {seen or 'no'} nodes in Ray after {COMMAND_S} s")
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


def launched(bed: Bed) -> None:
    bed.launcher.up()
    bed.formed(raylauncher.NAME)


def ours(bed: Bed) -> None:
    bed.clusterctl("up", "--no-sanity", "--yes")


def ours_with_sanity(bed: Bed) -> None:
    bed.clusterctl("up", "--yes")


def down(bed: Bed) -> None:
    bed.clusterctl("down", "--purge")


OURS = "`clusterctl up --no-sanity`"
CONTESTANTS: dict[str, tuple[Callable[[Bed], None], Callable[[Bed], None]]] = {
    "docker run + ray start by ssh, all hosts at once (the floor)": (floor, Bed.remove),
    "the same, one host after the other (run_cluster.sh)": (serial, Bed.remove),
    "Ray's launcher: `ray up`, local provider, Docker": (
        launched,
        lambda bed: bed.launcher.remove(),
    ),
    OURS: (ours, down),
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
    checked, unchecked = (medians[name] for name in ("`clusterctl up`", OURS))
    head = [
        HEADING,
        "",
        f"`scripts/bench/up.py --write`: {len(bed.hosts)} hosts of the testbed on one machine, "
        f"images present, medians of {rounds} rounds, each in turn; {provenance()}.",
        "",
        "| | until every node is in Ray | to the floor |",
        "|---|---|---|",
    ]
    foot = [
        "",
        f"Sanity, a collective over all nodes, is {checked - unchecked:.1f} s of `clusterctl up`. "
        "What it does beside the floor: facts and preflight of every host, a lock, a look into "
        "the image, Formation by address and devices, the environment read back. `ray up` starts "
        "the head, whose autoscaler then starts the workers; nothing says when all are there, so "
        "that Ray was asked. It needs rsync on the hosts, and ssh and rsync in the image.",
        "",
    ]
    return "\n".join([*head, *rows, *foot])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    args = parser.parse_args(argv)
    bed = Bed()
    ours(bed)  # images, and what only a first time costs
    down(bed)
    bed.launcher.prepare()
    times = measure(bed, args.rounds)
    text = section(bed, times, args.rounds)
    print(text)
    if args.write:
        write(HEADING, text)
    ratio = statistics.median(times[OURS]) / statistics.median(next(iter(times.values())))
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
