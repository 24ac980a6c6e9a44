"""A cluster on hosts of the testbed, driven by the command line alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .conftest import RunningTestbed

COMMAND_S = 900
# A machine that runs three hosts at once takes its time to import Ray three times.
FORMATION_S = 240


@dataclass(frozen=True)
class Cluster:
    """`name` over `hosts`, the first of which is the head; settings live in `directory`."""

    testbed: RunningTestbed
    directory: Path
    name: str
    hosts: Sequence[str]
    settings: dict[str, Any] = field(default_factory=dict)

    def write(self, **changes: Any) -> None:
        """cluster.yaml; JSON is YAML."""
        content = {
            "name": self.name,
            "head": self.hosts[0],
            "hosts": list(self.hosts),
            "image": self.testbed.image,
            "devices": {"kind": "cpu", "count": 1},
            "model_dirs": ["/models"],
            "ssh": {"config": str(self.testbed.ssh_config)},
            "limits": {"formation_timeout": FORMATION_S},
            **self.settings,
            **changes,
        }
        (self.directory / "cluster.yaml").write_text(json.dumps(content, indent=2))

    def run(self, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*args, **environment)
        out, err = process.communicate(timeout=COMMAND_S)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, *args: str, **environment: str) -> subprocess.Popen[str]:
        own = {"XDG_CONFIG_HOME": str(self.directory / "config"), **environment}
        return subprocess.Popen(
            [sys.executable, "-m", "clusterctl", *args],
            cwd=self.directory,
            env={**os.environ, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ok(self, *args: str, **environment: str) -> str:
        done = self.run(*args, **environment)
        assert done.returncode == 0, f"{args}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def refused(self, *args: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, the error as `--json` says it, and what was written to stderr."""
        done = self.run(*args, "--json")
        assert done.returncode != 0, done.stdout
        error: dict[str, Any] = json.loads(done.stdout)["error"]
        return done.returncode, error, done.stderr

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return document

    def states(self) -> dict[str, str]:
        return {node["name"]: node["state"] for node in self.status()["nodes"]}

    def container(self, host: str) -> str:
        return f"clusterctl-{self.name}-{host}"

    def inspect(self, host: str, container: str | None = None) -> dict[str, Any]:
        text = self.testbed.ssh(host, f"docker inspect {container or self.container(host)}")
        inspected: dict[str, Any] = json.loads(text)[0]
        return inspected

    def identities(self) -> dict[str, tuple[str, str]]:
        """Container id and start time on every host."""
        seen = {host: self.inspect(host) for host in self.hosts}
        return {host: (one["Id"], one["State"]["StartedAt"]) for host, one in seen.items()}

    def snapshots(self) -> dict[str, Any]:
        return {host: self.testbed.snapshot(host) for host in self.hosts}


@contextmanager
def brought_down(cluster: Cluster) -> Iterator[Cluster]:
    """Whatever a test leaves goes away."""
    try:
        yield cluster
    finally:
        cluster.ok("down", "--purge")


def hang_a_rank(testbed: RunningTestbed, host: str) -> None:
    """Of a collective check, as soon as it runs there."""
    runs = "until pgrep -f engine[.]sanity_rank >/dev/null; do sleep 0.05; done"
    testbed.ssh(host, f"timeout {FORMATION_S} sh -c '{runs}'")
    testbed.command("fault", host, "rank-hung")
