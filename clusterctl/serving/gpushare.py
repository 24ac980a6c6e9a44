"""Which GPUs of its nodes a deployment takes where Ray does not share them out. PURE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clusterctl.errors import PreflightFailed
from clusterctl.serving.placement import Devices, Placement
from clusterctl.serving.records import Deployment
from clusterctl.spec import ServeSpec

VISIBLE = "CUDA_VISIBLE_DEVICES"

Indices = tuple[int, ...]


def share(
    serve: ServeSpec, placement: Placement, devices: Devices, running: Sequence[Deployment]
) -> Mapping[str, Indices]:
    """By node, in its container's numbers: the first that no `running` deployment has. Empty over
    Ray, which gives out its own, and on CPU slots.

    Raises PreflightFailed where too few are free on a node, and where deployments of both kinds
    would meet: neither knows which the other has.
    """
    if devices.kind != "gpu":
        return {}
    over_ray = placement.executor == "ray"
    if strangers := [one.name for one in running if _is_strange(one, over_ray)]:
        raise _unknown(strangers, devices.head)
    if over_ray:
        return {}
    wanted = serve.ranks // len(placement.nodes)
    return {node: _free(node, wanted, devices, running) for node in placement.nodes}


def _is_strange(other: Deployment, over_ray: bool) -> bool:
    others_ray = other.executor == "ray"
    return others_ray != over_ray or not (others_ray or other.gpus)


def _unknown(names: Sequence[str], head: str) -> PreflightFailed:
    return PreflightFailed(
        f"{', '.join(names)} may hold the same GPUs: Ray does not know what is served without it, "
        "nor the other way round",
        host=head,
        hint=f"clusterctl stop {names[0]}, or serve all with the same --executor",
    )


def _free(node: str, wanted: int, devices: Devices, running: Sequence[Deployment]) -> Indices:
    taken = {index for one in running for index in one.gpus.get(node, ())}
    free = [index for index in range(devices.by_node[node]) if index not in taken]
    if len(free) < wanted:
        holders = ", ".join(one.name for one in running if node in one.gpus)
        raise PreflightFailed(
            f"{wanted} GPUs are needed here, and {len(free)} are free: {holders} has the others",
            host=node,
            hint="smaller --tp and --pp, `clusterctl stop`, or --executor ray for all",
        )
    return tuple(free[:wanted])


def environment(node: str, gpus: Mapping[str, Indices], devices: Devices) -> Mapping[str, str]:
    """What keeps the processes of a node to its share; nothing where that is all it has."""
    mine = gpus.get(node, ())
    if not mine or len(mine) == devices.by_node[node]:
        return {}
    return {VISIBLE: ",".join(map(str, mine))}
