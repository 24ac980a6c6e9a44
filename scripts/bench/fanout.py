#!/usr/bin/env python3
"""How long it takes to reach many hosts: one sshd answers for all of 127.0.1.0/24 and up.

    .venv/bin/python scripts/bench/fanout.py --hosts 200 --parallel 50 [--asyncssh VENV_PYTHON]

Peers run in the same minute against the same sshd: OpenSSH under xargs, and asyncssh where a
Python that has it is named. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from clusterctl.events import silent  # noqa: E402
from clusterctl.examination import examine  # noqa: E402
from clusterctl.session import Session, results  # noqa: E402
from clusterctl.spec import ClusterSpec, LimitsSpec, NodeSpec  # noqa: E402
from tests.clusterctl.sshd import Sshd, public  # noqa: E402

COMMAND = ("uname", "-a")

ASYNCSSH = """
import asyncio, asyncssh, sys
port, user, key, known, parallel, command, *hosts = sys.argv[1:]
async def one(host, gate):
    async with gate:
        for attempt in range(8):
            try:
                async with asyncssh.connect(host, int(port), username=user, client_keys=[key],
                                            known_hosts=known, config=None) as connection:
                    return (await connection.run(command, check=True)).stdout
            except (asyncssh.Error, OSError):
                await asyncio.sleep(0.2 * 2 ** attempt)
        raise SystemExit(f"{host} failed")
async def main():
    gate = asyncio.Semaphore(int(parallel))
    return await asyncio.gather(*(one(host, gate) for host in hosts))
print(len(asyncio.run(main())), "answered")
"""


@dataclass(frozen=True)
class Bench:
    """One run: the server, the hosts it stands for, and how many at once."""

    sshd: Sshd
    hosts: tuple[str, ...]
    parallel: int

    @property
    def spec(self) -> ClusterSpec:
        nodes = tuple(
            NodeSpec(host, host, self.sshd.user, self.sshd.port, str(self.sshd.identity))
            for host in self.hosts
        )
        known = f"[127.0.*]:{self.sshd.port} {public(self.sshd.host_key)}\n"
        limits = LimitsSpec(parallel_hosts=self.parallel, connect_timeout=60)
        return ClusterSpec("bench", nodes, nodes[0].name, ssh=self.sshd.spec(known), limits=limits)


def ours(bench: Bench) -> int:
    with Session.connect(bench.spec) as session:
        return len(results(session.each(lambda link: link.transport.run(COMMAND))))


def ours_facts(bench: Bench) -> int:
    with Session.connect(bench.spec) as session:
        return len(session.facts())


def ours_doctor(bench: Bench) -> int:
    """All checks, and the ways between the hosts as `up` tries them."""
    with Session.connect(bench.spec, partial=True) as session:
        found = examine(session, silent)
        return len(session.links) if found else 0


def openssh(bench: Bench) -> int:
    """A dropped login is tried again, as ours is: ConnectionAttempts does not cover those."""
    sshd = bench.sshd
    login = (
        f"ssh -F {sshd.directory}/ssh_config -p {sshd.port} -i {sshd.identity} -o BatchMode=yes "
        f"-o UserKnownHostsFile={sshd.directory}/known_hosts {{}} {' '.join(COMMAND)} 2>/dev/null"
    )
    again = f"for n in 1 2 3 4 5 6 7 8; do {login} && exit; sleep $((n / 2)).$((n % 2 * 5)); done"
    done = subprocess.run(
        ["xargs", "-P", str(bench.parallel), "-I{}", "sh", "-c", again],
        input="\n".join(bench.hosts),
        capture_output=True,
        text=True,
        check=False,
    )
    return len(done.stdout.splitlines())


def asyncssh_with(python: str) -> Callable[[Bench], int]:
    def run(bench: Bench) -> int:
        sshd = bench.sshd
        settings = [str(sshd.port), sshd.user, str(sshd.identity), f"{sshd.directory}/known_hosts"]
        done = subprocess.run(
            [
                *(python, "-c", ASYNCSSH, *settings),
                *(str(bench.parallel), " ".join(COMMAND), *bench.hosts),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout.split()[0])

    return run


def contestants(peer_python: str | None) -> dict[str, Callable[[Bench], int]]:
    peers = {"asyncssh, `uname -a`": asyncssh_with(peer_python)} if peer_python else {}
    return {
        "clusterctl, `uname -a`": ours,
        "openssh + xargs, `uname -a`": openssh,
        **peers,
        "clusterctl, all facts": ours_facts,
        "clusterctl, doctor": ours_doctor,
    }


def loopback_hosts(count: int) -> tuple[str, ...]:
    return tuple(f"127.0.{1 + n // 250}.{1 + n % 250}" for n in range(count))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--hosts", type=int, default=200)
    options.add_argument("--parallel", type=int, default=50)
    options.add_argument("--only", default="", metavar="WORD", help="runs with this in their name")
    options.add_argument("--asyncssh", metavar="PYTHON", help="a Python that has asyncssh")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        sshd = Sshd(Path(directory), listen="0.0.0.0").start()
        try:
            bench = Bench(sshd, loopback_hosts(chosen.hosts), chosen.parallel)
            runs = contestants(chosen.asyncssh)
            print_table(bench, {name: run for name, run in runs.items() if chosen.only in name})
        finally:
            sshd.stop()


def print_table(bench: Bench, runs: dict[str, Callable[[Bench], int]]) -> None:
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f} before, ", end="")
    print(f"{time.strftime('%Y-%m-%d')}, {len(bench.hosts)} hosts, {bench.parallel} at once\n")
    print("| run | answered | seconds |\n|---|---|---|")
    for name, run in runs.items():
        begun = time.monotonic()
        answered = run(bench)
        print(f"| {name} | {answered} | {time.monotonic() - begun:.1f} |", flush=True)


if __name__ == "__main__":
    main()
