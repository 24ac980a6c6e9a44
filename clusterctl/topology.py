"""Hosts, GPUs, adapters and the networks that join them, as a value, as lines and as SVG. PURE."""

from __future__ import annotations

import ipaddress
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from clusterctl.facts.types import HostFacts, Interface
from clusterctl.spec import ClusterSpec


@dataclass(frozen=True)
class Adapter:
    """One interface that is up. `speed_gbit` of the link, None where the host does not know."""

    name: str
    addresses: tuple[str, ...]
    networks: tuple[str, ...]
    speed_gbit: float | None
    rdma: str | None


@dataclass(frozen=True)
class HostTopology:
    """`gpus`: each kind and how many; `joined`: how the host's GPUs reach each other, None where
    that was not learnt or there is one GPU."""

    name: str
    role: str
    gpus: tuple[str, ...]
    joined: str | None
    adapters: tuple[Adapter, ...]


@dataclass(frozen=True)
class Network:
    """A subnet and who is in it: (host, interface)."""

    subnet: str
    members: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Measured:
    """What the last collective check over the whole cluster measured. `at`: seconds since 1970."""

    summary: str
    at: float

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.at))
        return f"all ranks together: {self.summary} ({when})"


@dataclass(frozen=True)
class Topology:
    cluster: str
    hosts: tuple[HostTopology, ...]
    networks: tuple[Network, ...]
    measured: Measured | None = None


def topology(
    spec: ClusterSpec, facts: Mapping[str, HostFacts], measured: Measured | None = None
) -> Topology:
    hosts = tuple(
        _host(facts[node.name], "head" if node.name == spec.head else "worker")
        for node in spec.nodes
    )
    return Topology(spec.name, hosts, tuple(_networks(hosts)), measured)


def _host(facts: HostFacts, role: str) -> HostTopology:
    ports = {port.device: port.rate_gbit for port in facts.rdma_ports or ()}
    return HostTopology(
        name=facts.name,
        role=role,
        gpus=tuple(_gpus(facts)),
        joined=_joined(facts),
        adapters=tuple(_adapter(one, ports) for one in facts.interfaces if _carries(one)),
    )


def _gpus(facts: HostFacts) -> Iterator[str]:
    kinds = Counter((gpu.name, gpu.memory_mib) for gpu in facts.gpu.gpus)
    for (name, memory), count in kinds.items():
        size = f", {memory / 1024:.0f} GiB" if memory is not None else ""
        yield f"{count} x {name}{size}"


def _joined(facts: HostFacts) -> str | None:
    paths = facts.nvidia.paths
    kinds = Counter(
        path.kind for path in paths or () if path.a.startswith("GPU") and path.b.startswith("GPU")
    )
    if not kinds:
        return None
    if len(kinds) == 1:
        return f"{next(iter(kinds))} between all"
    return ", ".join(f"{kind} (pairs: {count})" for kind, count in kinds.items())


def _carries(interface: Interface) -> bool:
    return interface.up and not interface.is_virtual and interface.name != "lo"


def _adapter(interface: Interface, ports: Mapping[str, float | None]) -> Adapter:
    bound = [ipaddress.ip_interface(f"{one.ip}/{one.prefix}") for one in interface.addresses]
    own = [one for one in bound if not one.ip.is_link_local]
    rate = ports.get(interface.rdma_device or "")
    speed = interface.speed_mbit / 1000 if interface.speed_mbit is not None else rate
    return Adapter(
        interface.name,
        tuple(map(str, own)),
        tuple(str(one.network) for one in own),
        speed,
        interface.rdma_device,
    )


def _networks(hosts: Sequence[HostTopology]) -> Iterator[Network]:
    """Those that join two hosts or more."""
    members: dict[str, list[tuple[str, str]]] = {}
    for host in hosts:
        for adapter in host.adapters:
            for subnet in adapter.networks:
                members.setdefault(subnet, []).append((host.name, adapter.name))
    for subnet, found in members.items():
        if len({host for host, _ in found}) > 1:
            yield Network(subnet, tuple(found))


# --- lines ---------------------------------------------------------------------------------------


def lines(found: Topology) -> Iterator[str]:
    yield f"{found.cluster}: {len(found.hosts)} hosts"
    for host in found.hosts:
        yield ""
        yield f"{host.name} ({host.role})"
        parts = [*_gpu_words(host), *map(adapter_words, host.adapters)]
        for index, part in enumerate(parts):
            yield f"{'└' if index == len(parts) - 1 else '├'}─ {part}"
    yield ""
    for network in found.networks:
        joined = " ── ".join(f"{host} {name}" for host, name in network.members)
        yield f"{network.subnet}: {joined}"
    yield str(found.measured) if found.measured else NOT_MEASURED


NOT_MEASURED = "bandwidth: not measured since the cluster was made (clusterctl sanity)"


def _gpu_words(host: HostTopology) -> Iterator[str]:
    yield from host.gpus or ("no GPU seen",)
    if host.joined:
        yield f"joined by {host.joined}"


def adapter_words(adapter: Adapter) -> str:
    speed = f"{adapter.speed_gbit:g} Gbit/s" if adapter.speed_gbit is not None else "speed unknown"
    parts = [
        adapter.name,
        *adapter.addresses,
        speed,
        f"RDMA {adapter.rdma}" if adapter.rdma else "",
    ]
    return "  ".join(filter(None, parts))


# --- SVG -----------------------------------------------------------------------------------------

_WIDTH, _GAP, _LINE, _TOP = 330, 30, 18, 56
_STYLE = (
    "text{font:13px sans-serif;fill:#222}.name{font-weight:bold;font-size:15px}"
    ".note{fill:#666}.box{fill:#f6f8fa;stroke:#57606a}.gpu{fill:#1a7f37}"
    ".net{stroke:#0969da;stroke-width:3}.tap{stroke:#0969da;stroke-width:1.5}"
)


def svg(found: Topology) -> str:
    """Hosts side by side, each network a line below that its members hang on."""
    rows = max((len([*_gpu_words(host)]) + len(host.adapters) for host in found.hosts), default=0)
    height = 40 + _LINE * rows
    bottom = _TOP + height
    width = _GAP + (_WIDTH + _GAP) * max(len(found.hosts), 2)
    measured = str(found.measured) if found.measured else NOT_MEASURED
    body = [
        _text(_GAP, 26, f"{found.cluster}: {len(found.hosts)} hosts", "name"),
        _text(_GAP, 46, measured, "note"),
    ]
    for index, host in enumerate(found.hosts):
        body += _box(host, _left(index), height)
    for index, network in enumerate(found.networks):
        body += _bus(found, network, bottom, bottom + 36 * (index + 1), index, width)
    total = bottom + 36 * (len(found.networks) + 1)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{total}">',
            f"<style>{_STYLE}</style>",
            '<rect width="100%" height="100%" fill="white"/>',
            *body,
            "</svg>\n",
        ]
    )


def _left(index: int) -> int:
    return _GAP + index * (_WIDTH + _GAP)


def _box(host: HostTopology, left: int, height: int) -> list[str]:
    said = [
        f'<rect class="box" x="{left}" y="{_TOP}" width="{_WIDTH}" height="{height}" rx="6"/>',
        _text(left + 12, _TOP + 22, f"{host.name} ({host.role})", "name"),
    ]
    gpus = [*_gpu_words(host)]
    for row, words in enumerate([*gpus, *map(adapter_words, host.adapters)]):
        kind = "gpu" if row < len(gpus) else ""
        said.append(_text(left + 12, _TOP + 44 + _LINE * row, words, kind))
    return said


def _bus(found: Topology, network: Network, top: int, y: int, index: int, width: int) -> list[str]:
    names = [host.name for host in found.hosts]
    said = [f'<line class="net" x1="{_GAP}" y1="{y}" x2="{width - _GAP}" y2="{y}"/>']
    for host, _ in network.members:
        x = _left(names.index(host)) + 24 + 24 * index
        said.append(f'<line class="tap" x1="{x}" y1="{top}" x2="{x}" y2="{y}"/>')
    speeds = {
        adapter.speed_gbit
        for host in found.hosts
        for adapter in host.adapters
        if (host.name, adapter.name) in network.members
    }
    known = [speed for speed in speeds if speed is not None]
    slowest = f", links of {min(known):g} Gbit/s" if len(known) == len(speeds) else ""
    return [*said, _text(_GAP + 150, y + 16, f"{network.subnet}{slowest}", "note")]


def _text(x: int, y: int, text: str, kind: str) -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(text)}</text>'
