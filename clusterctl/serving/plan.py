"""What is going to run where, as a value: `serve --dry-run` prints it, `serve` writes it into the
nodes' supervisors. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from clusterctl.serving import native, vllm
from clusterctl.serving.door import TlsFiles
from clusterctl.serving.placement import Executor, Placement
from clusterctl.serving.vllm import Backend, GroupNode, ReplicasNode
from clusterctl.spec import ServeSpec
from clusterctl.supervised import Process

BACKENDS: Mapping[Executor, Backend] = {"ray": "ray", "mp": "mp", "inproc": "uni"}


@dataclass(frozen=True)
class Site:
    """What the plan has to know of the cluster: node addresses by name; on the head, where our
    files, the engine package and the API key's file lie, how Ray is found, and what the API binds.
    `env`: for every process, whatever the engine; `node_env` for those of one node. `tls` None: the
    API speaks plain HTTP."""

    addresses: Mapping[str, str]
    home: str
    package_directory: str
    key_file: str
    ray_address: str
    host: str
    owner: str
    env: Mapping[str, str] = field(default_factory=dict)
    master_port: int = vllm.MASTER_PORT
    tls: TlsFiles | None = None
    node_env: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def env_of(self, node: str) -> Mapping[str, str]:
        return {**self.env, **self.node_env.get(node, {})}


@dataclass(frozen=True)
class ServePlan:
    """`processes` by node, in the order in which supervisors are told: the head, which serves the
    API and leads the others, is last. `files`: what it finds there, path -> content."""

    placement: Placement
    processes: Mapping[str, Process]
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_group(self) -> bool:
        return len(self.processes) > 1


def plan(serve: ServeSpec, placement: Placement, site: Site) -> ServePlan:
    nodes = placement.nodes
    if placement.engine == "native":
        return ServePlan(placement, {nodes[0]: _native(serve, placement, site)})
    ranks = reversed(range(len(nodes)))
    processes = {nodes[r]: _vllm(serve, placement, site, r) for r in ranks}
    over_ray = placement.executor == "ray"
    return ServePlan(placement, processes, vllm.config_files(_root(site)) if over_ray else {})


def _root(site: Site) -> str:
    return f"{site.home}/vllm"


def _native(serve: ServeSpec, placement: Placement, site: Site) -> Process:
    argv = native.argv(
        serve,
        executor=placement.executor,
        host=site.host,
        api_key_file=site.key_file,
        tls=site.tls,
    )
    env = native.env(
        site.owner, package_directory=site.package_directory, ray_address=site.ray_address
    )
    return Process(argv, {**site.env_of(placement.nodes[0]), **env})


def _vllm(serve: ServeSpec, placement: Placement, site: Site, rank: int) -> Process:
    backend = BACKENDS[placement.executor]
    env = vllm.env(
        {native.DEPLOYMENT_VARIABLE: site.owner},
        backend=backend,
        ray_address=site.ray_address,
        config_root=_root(site),
    )
    argv = vllm.argv(
        serve,
        backend=backend,
        host=site.host,
        node=_node(serve, placement, site, rank),
        tls=site.tls if rank == 0 else None,
    )
    return Process(
        argv,
        {**site.env_of(placement.nodes[rank]), **env},
        {vllm.API_KEY_VARIABLE: site.key_file} if rank == 0 else {},
    )


def _node(
    serve: ServeSpec, placement: Placement, site: Site, rank: int
) -> GroupNode | ReplicasNode | None:
    """How this node's process finds the others, where there are any."""
    count, head = len(placement.nodes), site.addresses[placement.nodes[0]]
    if count == 1:
        return None
    if serve.dp == 1:
        return GroupNode(count, rank, head, site.master_port)
    local = serve.dp // count
    return ReplicasNode(rank * local, local, head, site.master_port)
