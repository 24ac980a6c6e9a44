"""Where ranks go: PURE arithmetic over nodes and slots, without Ray."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


class PlacementError(RuntimeError):
    """The cluster has no place for the ranks. The message says how many slots there are, where."""


@dataclass(frozen=True)
class RayNode:
    """A live node of the cluster and how many slots (GPUs, or CPU slots) it has in all."""

    node_id: str
    address: str
    slots: int


@dataclass(frozen=True)
class Slot:
    """One device of a placement group's bundle, and the address of the node it landed on."""

    bundle: int
    address: str


def plan_bundles(slots: Sequence[int], tp: int, pp: int) -> list[int]:
    """The sizes of the bundles to ask for: a bundle never spans nodes.

    One a stage where the nodes can hold whole stages, so that tensor parallel stays inside a node;
    otherwise one a rank.
    """
    whole_stages = sum(count // tp for count in slots)
    return [tp] * pp if whole_stages >= pp else [1] * (tp * pp)


def order_ranks(slots: Sequence[Slot], tp: int, first_address: str) -> list[int]:
    """The bundle of each rank. A tp group stays on one node where it can; stages follow the nodes,
    `first_address` (the driver's) before the others."""
    groups: list[Sequence[Slot]] = []
    rest: list[Slot] = []
    for members in _by_node(slots, first_address).values():
        whole = len(members) // tp * tp
        groups.extend(_chunks(members[:whole], tp))
        rest.extend(members[whole:])
    groups.extend(_chunks(rest, tp))
    groups.sort(key=lambda group: _node_order(group[0].address, first_address))
    return [slot.bundle for group in groups for slot in group]


def too_few(needed: str, resource: str, nodes: Sequence[RayNode]) -> str:
    """Why it cannot run, for people. `needed` is like "tp=2 x pp=2 needs 4"."""
    where = ", ".join(f"{node.address}: {node.slots}" for node in nodes) or "no live node"
    total = sum(node.slots for node in nodes)
    return f"{needed} {resource} slots; the cluster has {total} ({where})"


def slots_of(nodes: Sequence[Mapping[str, object]], resource: str) -> list[RayNode]:
    """`ray.nodes()` -> the live nodes that offer `resource`."""
    found = []
    for node in nodes:
        resources = node["Resources"]
        assert isinstance(resources, Mapping)
        if node["Alive"] and (count := int(resources.get(resource, 0))):
            found.append(RayNode(str(node["NodeID"]), str(node["NodeManagerAddress"]), count))
    return found


def _by_node(slots: Sequence[Slot], first: str) -> dict[str, list[Slot]]:
    addresses = sorted({slot.address for slot in slots}, key=lambda one: _node_order(one, first))
    return {one: [slot for slot in slots if slot.address == one] for one in addresses}


def _node_order(address: str, first: str) -> tuple[bool, int]:
    return address != first, int(ipaddress.ip_address(address))


def _chunks(slots: Sequence[Slot], size: int) -> Iterator[Sequence[Slot]]:
    return (slots[start : start + size] for start in range(0, len(slots), size))
