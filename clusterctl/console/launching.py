"""What `up` is going to do, and the nodes that came of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from clusterctl.console.drawing import grid, show, styled
from clusterctl.console.output import table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from clusterctl.launch import LaunchPlan
    from clusterctl.raycluster import Formation

SHOWN_VALUES = 8  # of a variable that each node has its own of
NODE_COLUMNS = ("NODE", "ROLE", "ADDRESS", "STATE", "DEVICES", "DETAIL")


def plan(plan: LaunchPlan, lines: Mapping[str, str]) -> None:
    """What `up` is going to do; `lines` holds the `docker run` line of each node's name."""
    show(plan_grid(plan), sys.stdout)
    for name, text in lines.items():
        print(f"\n# {name}\n{text}")


def plan_grid(plan: LaunchPlan) -> RenderableType:
    rows = [
        (
            node.expected.name,
            node.expected.role,
            node.expected.address,
            styled(f"{node.action}, pull" if node.pull else node.action),
            node.reason,
        )
        for node in plan.nodes
    ]
    return grid(("NODE", "ROLE", "ADDRESS", "ACTION", "WHY"), rows)


def environment(plan: LaunchPlan) -> None:
    """Each variable of the containers that differs by cluster, with its origin. Nodes that agree
    share a row; many nodes that all differ do, too."""
    from clusterctl.launch import OURS

    nodes: dict[tuple[str, str], dict[str, list[str]]] = {}
    for node in plan.nodes:
        for name, value in node.container.env.items() if node.container else ():
            if (origin := node.origins[name]) != OURS:
                found = nodes.setdefault((name, origin), {})
                found.setdefault(value, []).append(node.expected.name)
    made = sum(node.container is not None for node in plan.nodes)
    rows = [
        (name, value, "all" if len(names) == made > 1 else ", ".join(names), origin)
        for (name, origin), values in sorted(nodes.items())
        for value, names in _shown_values(values)
    ]
    print()
    table(("VARIABLE", "VALUE", "NODES", "FROM"), rows)


def _shown_values(values: Mapping[str, list[str]]) -> list[tuple[str, list[str]]]:
    if len(values) <= SHOWN_VALUES:
        return list(values.items())
    return [(f"{len(values)} values", [name for names in values.values() for name in names])]


def formation(formation: Formation) -> None:
    """Every node: expected against seen."""
    table(
        NODE_COLUMNS,
        [
            node_cells(
                node.name,
                node.role,
                node.address,
                node.state,
                node.devices_seen,
                node.devices_expected,
                node.detail,
            )
            for node in formation.nodes
        ],
    )


def node_cells(
    name: str, role: str, address: str, state: str, seen: int, expected: int, detail: str
) -> tuple[str | Text, ...]:
    return name, role, address, styled(state), f"{seen}/{expected}", detail
