"""Which ports must be open between which hosts, and the firewall rules that open them. PURE.

Ray's ports are pinned by the spec. What gloo, NCCL and torch's rendezvous listen on is chosen by
the kernel, hence a whole range between the nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from clusterctl.spec import ClusterSpec, NodeSpec

Who = Literal["operator", "clients", "every node", "head"]

# net.ipv4.ip_local_port_range of Linux, unless somebody changed it
EPHEMERAL = (32768, 60999)
ROCE = 4791  # RoCE v2, UDP; InfiniBand has no ports
VLLM_RENDEZVOUS = 29501
SSH = 22


@dataclass(frozen=True)
class Port:
    """`first` to `last` of `protocol`, opened on `target` for `source`."""

    first: int
    last: int
    protocol: Literal["tcp", "udp"]
    source: Who
    target: Who
    purpose: str

    @property
    def numbers(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True)
class Rule:
    """One Port on one host for one address (None: anybody)."""

    host: str
    source: str | None
    port: Port


def ports(spec: ClusterSpec, api: Sequence[int], *, rdma: bool = False) -> tuple[Port, ...]:
    """All that a cluster and deployments on these API ports need. `rdma`: over Ethernet (RoCE)."""
    ray = spec.ray
    between = [
        (ray.node_manager_port, "Ray, node manager"),
        (ray.object_manager_port, "Ray, objects"),
        (ray.runtime_env_agent_port, "Ray, runtime environments"),
        (ray.dashboard_agent_grpc_port, "Ray, dashboard agent"),
        (ray.metrics_export_port, "Ray, metrics"),
        (ray.dashboard_agent_listen_port, "Ray, dashboard agent"),
    ]
    return (
        *(
            _one(port, "operator", "every node", "SSH: all that clusterctl does")
            for port in _ssh(spec)
        ),
        _one(ray.port, "every node", "head", "Ray, GCS"),
        _one(ray.supervisor_port, "every node", "head", "deployments over several nodes"),
        *(_one(port, "every node", "every node", purpose) for port, purpose in between),
        _nodes(ray.min_worker_port, ray.max_worker_port, "Ray, workers"),
        _nodes(VLLM_RENDEZVOUS, VLLM_RENDEZVOUS, "vLLM without Ray, rendezvous"),
        _nodes(*EPHEMERAL, "NCCL, gloo, torch rendezvous; files between hosts"),
        *([Port(ROCE, ROCE, "udp", "every node", "every node", "RoCE v2")] if rdma else []),
        *(_one(port, "clients", "head", "the API of a deployment") for port in api),
    )


def _ssh(spec: ClusterSpec) -> list[int]:
    return sorted({node.port or SSH for node in spec.nodes})


def _one(port: int, source: Who, target: Who, purpose: str) -> Port:
    return Port(port, port, "tcp", source, target, purpose)


def _nodes(first: int, last: int, purpose: str) -> Port:
    return Port(first, last, "tcp", "every node", "every node", purpose)


def rules(
    spec: ClusterSpec, opened: Sequence[Port], addresses: Mapping[str, str]
) -> Iterator[Rule]:
    """What each host has to let in; `addresses` are the private ones, by node name."""
    for node in spec.nodes:
        for port in opened:
            if port.target == "head" and node.name != spec.head:
                continue
            for source in _sources(port, node, addresses):
                yield Rule(node.name, source, port)


def _sources(port: Port, node: NodeSpec, addresses: Mapping[str, str]) -> list[str | None]:
    if port.source in ("operator", "clients"):
        return [None]
    return [address for name, address in addresses.items() if name != node.name]


def ufw(rule: Rule) -> str:
    numbers = rule.port.numbers.replace("-", ":")
    return (
        f"ufw allow proto {rule.port.protocol} from {rule.source or 'any'} to any port {numbers} "
        f"comment '{rule.port.purpose}'"
    )


def firewalld(rule: Rule) -> str:
    source = f'source address="{rule.source}" ' if rule.source else ""
    family = "ipv6" if rule.source and ":" in rule.source else "ipv4"
    return (
        f'firewall-cmd --permanent --add-rich-rule=\'rule family="{family}" {source}'
        f'port port="{rule.port.numbers}" protocol="{rule.port.protocol}" accept\''
    )


def iptables(rule: Rule) -> str:
    program = "ip6tables" if rule.source and ":" in rule.source else "iptables"
    source = f"-s {rule.source} " if rule.source else ""
    numbers = rule.port.numbers.replace("-", ":")
    return (
        f"{program} -I INPUT {source}-p {rule.port.protocol} --dport {numbers} "
        f"-m comment --comment '{rule.port.purpose}' -j ACCEPT"
    )


def nftables(rule: Rule) -> str:
    family = "ip6" if rule.source and ":" in rule.source else "ip"
    source = f"{family} saddr {rule.source} " if rule.source else ""
    return (
        f"nft insert rule inet filter input {source}{rule.port.protocol} dport "
        f"{rule.port.numbers} accept comment '\"{rule.port.purpose}\"'"
    )


FIREWALLS = {"ufw": ufw, "firewalld": firewalld, "iptables": iptables, "nftables": nftables}
