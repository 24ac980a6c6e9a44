"""One host reached: its Transport and its Runtime, and how each kind of cluster opens them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from clusterctl.runtime import Runtime
from clusterctl.spec import ClusterSpec, NodeSpec
from clusterctl.trace import Trace
from clusterctl.transport.base import Transport

THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class HostLink:
    """One connected host: commands and files over `transport`, containers over `runtime`."""

    node: NodeSpec
    transport: Transport
    runtime: Runtime

    @property
    def name(self) -> str:
        return self.node.name

    def close(self) -> None:
        self.runtime.close()
        self.transport.close()


class Opener(Protocol):
    """Reaches nodes. `close` ends what the links share, and links that nobody got hold of."""

    def open(self, node: NodeSpec) -> HostLink: ...

    def close(self) -> None: ...


class DockerOpener:
    """Docker over SSH; a node whose address is this machine is reached without SSH."""

    def __init__(self, spec: ClusterSpec, trace: Trace) -> None:
        from clusterctl.transport.ssh import SshHosts

        self._socket = spec.docker_socket
        self._pull_timeout = spec.limits.pull_timeout
        self._trace = trace
        self._ssh = SshHosts(
            spec.ssh,
            connect_timeout=spec.limits.connect_timeout,
            expected=len(spec.nodes),
            trace=trace,
        )

    def open(self, node: NodeSpec) -> HostLink:
        from clusterctl.dockerhost import DockerHost

        transport = self._transport(node)
        runtime = DockerHost(
            transport, self._socket, pull_timeout=self._pull_timeout, trace=self._trace
        )
        return HostLink(node, transport, runtime)

    def _transport(self, node: NodeSpec) -> Transport:
        if node.address not in THIS_MACHINE:
            return self._ssh.connect(node)
        from clusterctl.transport.local import LocalTransport

        return LocalTransport(node.name, trace=self._trace)

    def close(self) -> None:
        self._ssh.close()


class ProcessOpener:
    """Processes on this machine in place of containers (`up --local`)."""

    def __init__(self, spec: ClusterSpec, trace: Trace) -> None:
        self._state = local_state_dir(spec.name)
        self._trace = trace

    def open(self, node: NodeSpec) -> HostLink:
        from clusterctl.processhost import ProcessHost
        from clusterctl.transport.local import LocalTransport

        return HostLink(
            node, LocalTransport(node.name, trace=self._trace), ProcessHost(node, self._state)
        )

    def close(self) -> None:
        """Nothing is shared between processes of this machine."""


def opener_for(spec: ClusterSpec, trace: Trace) -> Opener:
    return ProcessOpener(spec, trace) if spec.runtime == "process" else DockerOpener(spec, trace)


def local_state_dir(cluster: str) -> Path:
    """This machine's directory for what a cluster keeps outside its containers."""
    if os.geteuid() == 0:
        return Path("/var/lib/clusterctl") / cluster
    return Path.home() / ".local/state/clusterctl" / cluster
