"""Let the hosts try each other: remote/pair_probe.py on all of them at once, over stdin. What they
say is judged in doctor/pairs.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from clusterctl import reach
from clusterctl.doctor.pairs import Pairs, Tried
from clusterctl.errors import ClusterctlError, CommandFailed, NotReady
from clusterctl.facts.types import HostFacts, Interface
from clusterctl.fanout import Done, Failed, fan_out
from clusterctl.links import HostLink
from clusterctl.network import Chosen
from clusterctl.session import Session
from clusterctl.spec import ClusterSpec
from clusterctl.transport.base import ByteStream

TORCH_MASTER, VLLM_MASTER = 29500, 29501
START_S = 30.0
PER_PEER_S = 25.0  # a path on which nothing large passes, found by halving, takes most

_NO_PYTHON = (126, 127)
_BOOT = "import sys; exec(sys.stdin.buffer.read(int(sys.argv[1])))"


def probe(session: Session, facts: Mapping[str, HostFacts], chosen: Chosen) -> Pairs:
    """Every ordered pair of hosts; in a large cluster each tries `reach.peers` alone. A host that
    cannot try is in `silent`, and its peers do not try it either."""
    spec, names = session.spec, [name for name in facts if name in chosen]
    with _started(session, names, chosen) as (probes, silent):
        targets = {name: _targets(spec, name, probes, facts, chosen) for name in probes}
        outcomes = fan_out(probes, lambda name: probes[name].ask(targets[name]), limit=len(names))
    interfaces = {name: _interface(facts[name], chosen[name].interface) for name in names}
    lost = {name: one.error for name, one in outcomes.items() if isinstance(one, Failed)}
    tried = {
        (name, said["peer"]): _tried(said)
        for name, one in outcomes.items()
        if isinstance(one, Done)
        for said in one.value
    }
    return Pairs(
        tried,
        uses=_uses(spec),
        mtu={name: one.mtu for name, one in interfaces.items()},
        speed_mbit={name: one.speed_mbit for name, one in interfaces.items()},
        silent={name: _why(error) for name, error in {**silent, **lost}.items()},
        left_out=len(probes) * (len(probes) - 1) - sum(map(len, targets.values())),
    )


class _Probe:
    """The program on one host, listening. `said` is what it listens on."""

    def __init__(self, link: HostLink, address: str, ports: Sequence[int]) -> None:
        script = files("clusterctl.remote").joinpath("pair_probe.py").read_bytes()
        self.ports = ports
        self._host = link.name
        self._read = b""
        self._stream: ByteStream = link.transport.open_command(
            ["python3", "-c", _BOOT, str(len(script))]
        )
        try:
            self._stream.sendall(script)
            self.said = self._exchange(
                {"name": link.name, "address": address, "ports": ports}, START_S
            )
        except BaseException:
            self.close()
            raise

    def ask(self, targets: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = self._exchange(targets, START_S + PER_PEER_S * len(targets))
        return answer

    def close(self) -> None:
        self._stream.close()

    def _exchange(self, value: object, patience: float) -> Any:
        self._stream.settimeout(patience)
        self._stream.sendall(json.dumps(value).encode() + b"\n")
        try:
            return json.loads(self._line())
        except TimeoutError as late:
            raise NotReady(f"no answer within {patience:.0f} s", host=self._host) from late

    def _line(self) -> bytes:
        while b"\n" not in self._read:
            data = self._stream.recv(1 << 16)
            if not data:
                raise ClusterctlError("the probe ended without an answer", host=self._host)
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return line


@contextmanager
def _started(
    session: Session, names: Sequence[str], chosen: Chosen
) -> Iterator[tuple[dict[str, _Probe], dict[str, ClusterctlError]]]:
    def start(name: str) -> _Probe:
        ports = _ports(session.spec, name)
        return _Probe(session.link(name), chosen[name].address, ports)

    outcomes = fan_out(names, start, limit=session.spec.limits.parallel_hosts)
    probes = {name: one.value for name, one in outcomes.items() if isinstance(one, Done)}
    silent = {name: one.error for name, one in outcomes.items() if isinstance(one, Failed)}
    try:
        yield probes, silent
    finally:
        for one in probes.values():
            one.close()


def _ports(spec: ClusterSpec, name: str) -> list[int]:
    ray = spec.ray
    everywhere = [ray.node_manager_port, ray.object_manager_port, ray.min_worker_port]
    return [ray.port, TORCH_MASTER, VLLM_MASTER, *everywhere] if name == spec.head else everywhere


def _uses(spec: ClusterSpec) -> dict[int, str]:
    return {
        spec.ray.port: "Ray's control store",
        TORCH_MASTER: "torch's master",
        VLLM_MASTER: "vLLM's master",
        spec.ray.node_manager_port: "Ray's node manager",
        spec.ray.object_manager_port: "Ray's object manager",
        spec.ray.min_worker_port: "Ray's workers",
    }


def _targets(
    spec: ClusterSpec,
    name: str,
    probes: Mapping[str, _Probe],
    facts: Mapping[str, HostFacts],
    chosen: Chosen,
) -> list[dict[str, Any]]:
    mtu = _interface(facts[name], chosen[name].interface).mtu
    return [
        {
            "name": peer,
            "address": chosen[peer].address,
            "ports": probes[peer].ports,
            "taken": [int(p) for p, how in probes[peer].said["ports"].items() if how == "taken"],
            "tcp": probes[peer].said["tcp"],
            "udp": probes[peer].said["udp"],
            "mtu": mtu,
        }
        for peer in reach.peers(spec, name)
        if peer in probes
    ]


def _interface(facts: HostFacts, name: str) -> Interface:
    return next(one for one in facts.interfaces if one.name == name)


def _tried(said: Mapping[str, Any]) -> Tried:
    return Tried(
        tcp={int(port): word for port, word in said["tcp"].items()},
        sent=said["sent"],
        came=said["came"],
        largest=said["largest"],
        announced=said["announced"],
        mbit=said["mbit"],
    )


def _why(error: ClusterctlError) -> tuple[str, str | None]:
    if isinstance(error, CommandFailed) and error.result.exit_code in _NO_PYTHON:
        return "there is no python3 on the host", "install python3 on the host"
    return error.message, error.hint
