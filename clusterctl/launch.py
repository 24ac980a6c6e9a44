"""What `up` is going to do, as a value. PURE: spec + facts + containers seen -> LaunchPlan.
`--dry-run` prints it; `up` executes the same one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clusterctl.containers import ContainerSpec
from clusterctl.raycluster import ExpectedNode

Action = Literal["keep", "start", "create", "replace", "remove"]


@dataclass(frozen=True)
class NodePlan:
    """One node's part. `pull` says the image is not on the host yet. `container` is None for remove."""

    expected: ExpectedNode
    action: Action
    reason: str
    container: ContainerSpec | None
    pull: bool = False
    existing_id: str | None = None


@dataclass(frozen=True)
class LaunchPlan:
    cluster: str
    nodes: tuple[NodePlan, ...]

    @property
    def changes(self) -> tuple[NodePlan, ...]:
        return tuple(node for node in self.nodes if node.action != "keep")
