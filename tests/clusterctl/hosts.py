"""Hosts for the tests of `up` and `down`: recorded facts, real state directories, and containers
whose Ray forms as soon as they run."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clusterctl.containers import ContainerFile
from clusterctl.facts.gather import parse_facts
from clusterctl.facts.types import Address, HostFacts, Interface
from clusterctl.hoststate import ROOTS_DIRECTORY
from clusterctl.launch import BOOT_FILE, NODE_PROBE, RAY_PROBE, Place
from clusterctl.links import HostLink
from clusterctl.members import node_of
from clusterctl.session import Session
from clusterctl.spec import ClusterSpec, DevicesSpec, NodeSpec
from clusterctl.trace import Trace, untraced
from clusterctl.transport.base import DEFAULT_TIMEOUT_S, Result
from tests.fakes import FakeRuntime, Says, ScriptedTransport, result_of

RECORDED = Path(__file__).parents[1] / "data/facts/debian-docker20.txt"
IMAGE = "registry.example/node:1"
VERSIONS = ["3.12.3", "2.60.0", "2.13.0"]


def spec_of(*names: str, **changes: object) -> ClusterSpec:
    """CPU nodes; the first is the head."""
    spec = ClusterSpec(
        name="test",
        nodes=tuple(NodeSpec(name, name) for name in names),
        head=names[0],
        image=IMAGE,
        devices=DevicesSpec("cpu", 1),
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


def host_facts(name: str = "gpu01", address: str = "10.0.0.11") -> HostFacts:
    text = RECORDED.read_text().replace("debian-docker20", name).replace("10.0.0.11", address)
    facts = parse_facts(name, text, sent=0.0, received=0.0)
    return replace(facts, host=replace(facts.host, clock_offset_s=0.0))


def place(name: str = "gpu01", address: str = "10.0.0.11", **changes: object) -> Place:
    made = Place(
        facts=host_facts(name, address),
        address=address,
        interface="eth0",
        home="/opt/clusterctl",
        state_dir="/var/lib/clusterctl/test",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


class StateTransport(ScriptedTransport):
    """Answers the facts probe from a recording, and that it reaches all but `unreached` (address,
    or address and port); runs the state directory's scripts for real, on a directory of its own."""

    def __init__(self, host: str, address: str, root: Path, trace: Trace = untraced) -> None:
        super().__init__(host, {"sh": self._probed}, trace=trace)
        self.root = root
        self.unreached: set[str] = set()
        self.is_root = True
        text = RECORDED.read_text().replace("debian-docker20", host)
        self._facts = text.replace("10.0.0.11", address)

    def _probed(self, script: bytes) -> str:
        tried = re.findall(r"^probe (\S+) (\d+) &$", script.decode(), re.MULTILINE)
        return "\n".join(self._tried(*target) for target in tried) or self._facts

    def _tried(self, address: str, port: str) -> str:
        lost = {address, f"{address} {port}"} & self.unreached
        said = "124 -" if lost else "1 - Connection refused"
        return f"@@clusterctl reach {address} {port} {said}"

    @property
    def state(self) -> Path:
        own = ROOTS_DIRECTORY.strip("/") if self.is_root else "root/.local/state/clusterctl"
        return self.root / own

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout: float = DEFAULT_TIMEOUT_S,
        check: bool = True,
    ) -> Result:
        if tuple(argv) == ("sh", "-s"):
            return super().run(argv, stdin=stdin, timeout=timeout, check=check)
        self.ran.append(tuple(argv))
        inside = [self._inside(word) for word in argv]
        environment = {**os.environ, "HOME": str(self.root / "root")}
        done = subprocess.run(
            inside, input=stdin, env=environment, capture_output=True, check=False
        )
        said = Says(done.stdout.decode(), done.stderr.decode(), done.returncode)
        return result_of(said, argv, host=self.host, timeout=timeout, check=check)

    def _inside(self, word: str) -> str:
        """The host's own /var/lib/clusterctl and /root lie below our directory."""
        moved = word.replace('"$(id -u)" = 0', "1 = 1" if self.is_root else "1 = 0")
        moved = moved.replace(f"={ROOTS_DIRECTORY}", f"={self.state}")
        return f"{self.root}{word}" if word.startswith("/") else moved


class RayRuntime(FakeRuntime):
    """A FakeRuntime whose running containers are nodes of one Ray, shared by all of a test's hosts.

    `breaks` holds what a start leads to on this host: (exit code, last log line); `probe_breaks`
    what the probe of Ray dies of after its first line.
    """

    def __init__(self, host: str, cluster: dict[str, RayRuntime], *, pulled: bool = True) -> None:
        super().__init__(
            host, replies={"sh": ""}, images=[IMAGE] if pulled else [], registry=[IMAGE]
        )
        self.cluster = cluster
        self.breaks: tuple[int, str] | None = None
        self.probe_breaks: str | None = None
        self.joins = True
        self.holds: list[str | None] = list(VERSIONS)
        self.overrides: dict[str, str] = {}
        self.deployments: list[dict[str, object]] = []  # records of remote/deployments.py
        cluster[host] = self

    def start(self, container_id: str) -> None:
        super().start(container_id)
        box = self.boxes[container_id]
        boot = ContainerFile(f"{self.home}/{BOOT_FILE}", box.seen.started_at.encode())
        box.files[boot.path] = boot
        if self.breaks:
            code, line = self.breaks
            box.log.append(line)
            box.seen = replace(box.seen, state="exited", exit_code=code)

    def run_once(
        self, image: str, argv: Sequence[str], *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> Result:
        self._call("run_once", image)
        if self.holds[0] is None:
            return Result(tuple(argv), 127, "", "python3: not found")
        said = dict(zip(("python", "ray", "torch"), self.holds, strict=True))
        return Result(tuple(argv), 0, json.dumps(said), "")

    def exec(
        self,
        container_id: str,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        check: bool = True,
    ) -> Result:
        self._call("exec", container_id, *argv)
        box = self._running(container_id)
        if argv[0] == "kill":
            return Result(tuple(argv), 0, "", "")
        if tuple(argv[:3]) == ("python3", "-", "list"):
            return Result(tuple(argv), 0, json.dumps(self.deployments), "")
        if argv[1].endswith(RAY_PROBE):
            return self._probed(argv)
        if argv[1].endswith(NODE_PROBE):
            environment = {**box.spec.env, **self.overrides}
            content = {
                "env": {name: environment.get(name) for name in argv[2:]},
                "python": self.holds[0],
                "ray": self.holds[1],
            }
            return Result(tuple(argv), 0, json.dumps(content), "")
        return super().exec(container_id, argv, stdin=stdin, env=env, timeout=timeout, check=check)

    def _probed(self, argv: Sequence[str]) -> Result:
        began = '{"pid": 7}\n'
        if self.probe_breaks is not None:
            return Result(tuple(argv), 1, began, self.probe_breaks)
        return Result(tuple(argv), 0, began + self.ray_says(), "")

    def exec_stream(
        self,
        container_id: str,
        argv: Sequence[str],
        on_line: Callable[[str], None],
        *,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> int:
        self._running(container_id)
        on_line('{"pid": 7}')
        on_line(self.ray_says())
        return 0

    def inspect(self, container_id: str) -> Mapping[str, object]:
        entrypoint, *command = self._box(container_id).spec.command
        return {"Config": {"Entrypoint": [entrypoint], "Cmd": command}}

    def ray_says(self) -> str:
        return json.dumps(
            {"nodes": [node for one in self.cluster.values() for node in one.joined()]}
        )

    def joined(self) -> list[dict[str, object]]:
        if not self.joins:
            return []
        return [
            {
                "NodeID": box.seen.id,
                "NodeManagerAddress": node.address,
                "Alive": True,
                "NodeManagerHostname": self.host,
                "NodeName": f"{self.host}-{box.seen.started_at}",
                "Resources": {"CPU": 2.0, "cpu_slot": float(node.devices)},
            }
            for box in self.boxes.values()
            if box.seen.state == "running"
            for node in [node_of(self.host, box.spec.command)]
        ]


class Bed:
    """Hosts that outlive sessions, as real ones do."""

    def __init__(self, root: Path, *names: str) -> None:
        self.runtimes: dict[str, RayRuntime] = {}
        self.transports: dict[str, StateTransport] = {}
        for index, name in enumerate(names):
            self.transports[name] = StateTransport(name, f"10.0.0.{index + 1}", root / name)
            RayRuntime(name, self.runtimes)

    def session(self, spec: ClusterSpec) -> Session:
        links = {
            node.name: HostLink(node, self.transports[node.name], self.runtimes[node.name])
            for node in spec.nodes
        }
        return Session(spec, links)

    def containers(self) -> dict[str, list[tuple[str, str, str]]]:
        return {
            name: [(box.seen.id, box.seen.state, box.seen.started_at) for box in one.boxes.values()]
            for name, one in self.runtimes.items()
        }


def interface(name: str, address: str) -> Interface:
    return Interface(name, True, (Address(address, 24),), 1500, None, "02:00:00:00:00:01")
