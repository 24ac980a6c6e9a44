"""Checks of the hosts as one cluster: distinct machines, one image."""

from __future__ import annotations

from clusterctl.doctor.check import Check, Said, check, fail, ok, skip, warn
from clusterctl.doctor.subject import Cluster


@check(
    "host.distinct",
    "Every node is a machine of its own",
    cause="duplicate-host",
    scope="cluster",
    tags=["preflight"],
)
def distinct(whole: Cluster) -> Said:
    """Two names of one machine would fight for its ports and GPUs."""
    if whole.spec.runtime == "process":
        return skip("all nodes are this machine")
    seen: dict[tuple[str, int | None, str], str] = {}
    doubled = []
    for name, host in whole.hosts.items():
        key = (host.node.address, host.node.port, host.facts.host.hostname)
        if seen.setdefault(key, name) != name:
            doubled.append(fail(f"is the same machine as {seen[key]}", "name it once", host=name))
    return doubled or [ok(f"{len(seen)} machines")]


@check(
    "host.architecture",
    "All hosts have one architecture",
    cause="architecture-differs",
    scope="cluster",
)
def architecture(whole: Cluster) -> Said:
    """One image cannot run on x86 and ARM, unless it was built for both."""
    kinds = {name: host.facts.host.architecture for name, host in whole.hosts.items()}
    if len(set(kinds.values())) < 2:
        return ok(next(iter(kinds.values()), "none"))
    said = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
    return warn(f"the architectures differ: {said}", "use an image built for all of them")


@check("image.equal", "All hosts hold the same image", cause="image-differs", scope="cluster")
def image(whole: Cluster) -> Said:
    """A tag is moved by whoever pushes: hosts that pulled it on different days run different
    versions of Ray, vLLM and NCCL, and refuse each other."""
    if whole.spec.runtime == "process":
        return skip("no image")
    ids = {n: h.facts.docker.image_id for n, h in whole.hosts.items() if h.facts.docker.image_id}
    if len(ids) < 2:
        return skip("fewer than two hosts hold it; `up` pulls it")
    if len(set(ids.values())) == 1:
        return ok(next(iter(ids.values())))
    said = ", ".join(f"{name} {image_id[7:19]}" for name, image_id in ids.items())
    return fail(
        f"{whole.spec.image} is not the same on all hosts: {said}",
        f"docker pull {whole.spec.image} on every host, or name it by digest",
        values={"image": whole.spec.image},
    )


CLUSTER_CHECKS: tuple[Check[Cluster], ...] = (distinct, architecture, image)
