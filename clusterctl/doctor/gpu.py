"""Checks of the GPUs: are they there, alike, and does their driver answer?"""

from __future__ import annotations

from clusterctl.containers import LABEL_CLUSTER
from clusterctl.doctor.check import (
    Check,
    Said,
    check,
    fail,
    ok,
    skip,
    unknown,
    warn,
)
from clusterctl.doctor.subject import Cluster, Host
from clusterctl.gpumemory import gpus_of
from clusterctl.launch import devices_of
from clusterctl.planner.gpus import known

CACHED_SHARE = 0.1  # of all memory: vLLM asks for nine tenths


@check("gpu.driver", "The driver answers for every GPU", tags=["nvidia"])
def driver(one: Host) -> Said:
    """A driver that was upgraded without a reboot, or a GPU that fell off the bus, shows as an
    error of nvidia-smi; nothing can run on that host until it is gone."""
    error = one.facts.gpu.error
    if error is None:
        return ok(f"driver {one.facts.gpu.driver}") if one.facts.gpu.gpus else skip("no GPU")
    if "mismatch" in error:
        return fail(
            error,
            "sudo reboot, so that the kernel loads the driver's new module",
            cause="driver-library-mismatch",
        )
    if "no driver" in error or "no nvidia-smi" in error:
        return warn(error, "install the NVIDIA driver on the host", cause="driver-missing")
    return fail(error, "sudo nvidia-smi -q on the host; then reboot it", cause="gpu-fell-off-bus")


@check(
    "gpu.driver-on-disk",
    "The loaded driver is the installed one",
    cause="driver-library-mismatch",
    tags=["nvidia"],
)
def driver_on_disk(one: Host) -> Said:
    """After an upgrade the old module stays loaded until a reboot; new programs then refuse."""
    loaded, installed = one.facts.gpu.driver, one.facts.nvidia.driver_on_disk
    if not one.nvidia:
        return skip("no NVIDIA GPU")
    if installed is None:
        return skip("modinfo knows no module: the driver may live in the kernel or a container")
    if loaded == installed:
        return ok(f"{loaded}")
    return warn(f"driver {loaded} is loaded, {installed} installed", "sudo reboot")


@check("gpu.count", "The GPUs that are asked for exist", tags=["preflight"])
def count(one: Host) -> Said:
    """A node that gives fewer GPUs than planned leaves the whole deployment waiting in Ray."""
    kind, wanted = devices_of(one.spec, one.node, one.facts)
    if kind == "cpu":
        return skip("CPU slots are asked for")
    found = len(one.facts.gpu.gpus)
    if one.facts.gpu.error:
        return fail(
            f"the GPUs cannot be listed: {one.facts.gpu.error}", cause="ray-gpu-not-detected"
        )
    if not found:
        fix = "for CPU processes in place of GPUs: --devices cpu:1, or `devices:` in cluster.yaml"
        return fail("no GPU on this host", fix, cause="ray-gpu-not-detected")
    indices = one.spec.devices_of(one.node).indices
    if absent := sorted(set(indices) - {gpu.index for gpu in one.facts.gpu.gpus}):
        return fail(
            f"there is no GPU {', '.join(map(str, absent))} on this host: it has {found}",
            "correct `devices:`",
            cause="ray-infeasible-per-node-gpus",
        )
    if indices and any(gpu.vendor == "amd" for gpu in one.facts.gpu.gpus):
        return fail("AMD GPUs are given all or none: --devices gpu", cause="ray-gpu-not-detected")
    if found < wanted:
        return fail(
            f"{found} GPUs on this host, {wanted} asked for",
            cause="ray-infeasible-per-node-gpus",
            values={"found": str(found), "wanted": str(wanted)},
        )
    return ok(f"{wanted} of {found} GPUs")


@check(
    "gpu.other-cluster",
    "No other cluster has the GPUs",
    cause="gpu-held-by-other-process",
    needs=["docker.containers"],
    tags=["preflight"],
)
def other_cluster(one: Host) -> Said:
    """Docker gives one GPU to any number of containers: two clusters then find half of its memory
    gone, or both out of it."""
    seen = one.facts.docker.containers
    if not one.gives_gpus or one.spec.runtime == "process":
        return skip("no GPU is asked for")
    if seen is None:
        return unknown("its containers could not be listed")
    wanted = asked_for(one)
    others = [(c, wanted & gpus_of(c.labels, one.facts)) for c in seen if c.state == "running"]
    taken = [
        (c, shared) for c, shared in others if shared and c.labels[LABEL_CLUSTER] != one.spec.name
    ]
    if not taken:
        return ok("none")
    every = frozenset(gpu.index for gpu in one.facts.gpu.gpus)
    free = every - frozenset().union(*(gpus_of(c.labels, one.facts) for c, _ in taken))
    return [
        fail(
            f"GPU {_listed(shared)} belongs to cluster {c.labels[LABEL_CLUSTER]} ({c.name})",
            (f"--devices gpu={_listed(free)}, or " if free else "")
            + f"clusterctl down --cluster {c.labels[LABEL_CLUSTER]}",
            values={"gpu": _listed(shared), "container": c.name},
        )
        for c, shared in taken
    ]


def asked_for(one: Host) -> frozenset[int]:
    devices = one.spec.devices_of(one.node)
    _, count = devices_of(one.spec, one.node, one.facts)
    return frozenset(devices.indices or range(count))


def _listed(indices: frozenset[int]) -> str:
    return ",".join(map(str, sorted(indices)))


@check(
    "gpu.unified-memory",
    "Memory that GPU and host share is free",
    cause="gpu-mem-util-too-high",
    tags=["nvidia"],
    needs=["host.memory_free_bytes"],
)
def unified_memory(one: Host) -> Said:
    """Where GPU and host share one memory, CUDA calls free what the kernel does: files that it
    keeps cached, a model just copied there say, are missing when the engine asks."""
    if not any((gpu := known(seen.name)) and gpu.unified for seen in one.facts.gpu.gpus):
        return skip("no GPU shares the host's memory")
    host = one.facts.host
    if host.memory_free_bytes is None:
        return unknown("/proc/meminfo does not say what is free")
    cached = (host.memory_available_bytes - host.memory_free_bytes) / 2**30
    total = host.memory_bytes / 2**30
    if cached < CACHED_SHARE * total:
        return ok(f"{host.memory_free_bytes / 2**30:.0f} of {total:.0f} GiB are free")
    return warn(
        f"cached files hold {cached:.0f} of the {total:.0f} GiB that GPU and host share",
        "sync && echo 3 | sudo tee /proc/sys/vm/drop_caches, right before `serve`",
        values={"cached_gib": f"{cached:.0f}", "total_gib": f"{total:.0f}"},
    )


@check(
    "gpu.alike",
    "All hosts have the same GPUs",
    cause="gpu-count-differs",
    scope="cluster",
    tags=["preflight"],
)
def alike(whole: Cluster) -> Said:
    """Ranks of one group wait for the slowest, and a plan for eight GPUs finds no place on four."""
    kinds = {name: _kinds(host) for name, host in whole.hosts.items() if host.gives_gpus}
    if len(kinds) < 2:
        return skip("fewer than two hosts give GPUs")
    if len(set(kinds.values())) == 1:
        return ok(next(iter(kinds.values())))
    said = "; ".join(f"{name}: {kind}" for name, kind in kinds.items())
    return warn(f"the hosts' GPUs differ: {said}", "give every host's count under `devices:`")


def _kinds(host: Host) -> str:
    names = [gpu.name for gpu in host.facts.gpu.gpus]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none"


@check(
    "gpu.driver-equal",
    "All hosts run one driver",
    cause="driver-differs",
    scope="cluster",
    tags=["nvidia"],
)
def driver_equal(whole: Cluster) -> Said:
    """Different drivers usually work together within a branch, and are the first thing to rule out
    when NCCL fails between two hosts."""
    drivers = {n: h.facts.gpu.driver for n, h in whole.hosts.items() if h.nvidia}
    if len(drivers) < 2:
        return skip("fewer than two hosts with NVIDIA GPUs")
    if len(set(drivers.values())) == 1:
        return ok(f"{next(iter(drivers.values()))}")
    said = ", ".join(f"{name} {version}" for name, version in drivers.items())
    return warn(f"the drivers differ: {said}", "install one driver on all hosts", confidence=0.4)


CHECKS: tuple[Check[Host], ...] = (
    driver,
    driver_on_disk,
    count,
    other_cluster,
    unified_memory,
)
CLUSTER_CHECKS: tuple[Check[Cluster], ...] = (alike, driver_equal)
