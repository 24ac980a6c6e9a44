"""Before a model is served: every node that may load it sees the same files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from clusterctl.errors import PreflightFailed
from clusterctl.fanout import fan_out
from clusterctl.members import Member
from clusterctl.serving import modelfiles
from clusterctl.serving.modelfiles import ModelFiles
from clusterctl.session import Session, results


def look(session: Session, nodes: Sequence[Member], model: str) -> dict[str, ModelFiles]:
    """The model's files as each node's container sees them."""
    by_name = {member.name: member for member in nodes}
    limit = session.spec.limits.parallel_hosts
    return results(fan_out(by_name, lambda name: _look(by_name[name], model), limit=limit))


def revisions(
    session: Session, nodes: Sequence[Member], model: str, wanted: str
) -> dict[str, str | None]:
    """The commit of a Hub id that each node has of the branch, tag or commit `wanted`; None: it has
    none."""
    by_name = {member.name: member for member in nodes}
    argv = ["python3", "-c", modelfiles.REVISION_PROBE, model, wanted]

    def ask(name: str) -> str | None:
        member = by_name[name]
        commit: str | None = json.loads(member.link.runtime.exec(member.container.id, argv).stdout)
        return commit

    return results(fan_out(by_name, ask, limit=session.spec.limits.parallel_hosts))


def check_files(session: Session, nodes: Sequence[Member], model: str) -> ModelFiles:
    """What they all see. Raises PreflightFailed naming the host where the path is absent,
    unmounted or different."""
    by_name = {member.name: member for member in nodes}
    found = look(session, nodes, model)
    absent = [by_name[name] for name, files in found.items() if not files.exists]
    if absent:
        raise _absent(session, absent, model)
    _check_equal(found, model)
    return found[nodes[0].name]


def _look(member: Member, model: str) -> ModelFiles:
    argv = ["python3", "-c", modelfiles.PROBE, model]
    return modelfiles.parse(member.link.runtime.exec(member.container.id, argv).stdout)


def _absent(session: Session, members: Sequence[Member], model: str) -> PreflightFailed:
    """Not in the container: is it on the host, and only the mount is missing?"""
    hosts = ", ".join(member.name for member in members)
    test = ["test", "-e", model]
    on_host = [m for m in members if m.link.transport.run(test, check=False).ok]
    parent = model.rstrip("/").rpartition("/")[0] or "/"
    line = f"model_dirs: [{', '.join([*session.spec.model_dirs, parent])}]"
    if len(on_host) == len(members):
        return PreflightFailed(
            f"{model} is on the host, but no mount brings it into the container",
            host=hosts,
            hint=f"add `{line}` to cluster.yaml and run `clusterctl up`",
        )
    missing = ", ".join(member.name for member in members if member not in on_host)
    return PreflightFailed(
        f"{model} does not exist",
        host=missing,
        hint=f"put the model at the same path on every host, with `{line}` in cluster.yaml",
    )


def _check_equal(found: Mapping[str, ModelFiles], model: str) -> None:
    head, *others = found
    if not found[head].is_model:
        raise PreflightFailed(
            f"{model} holds no *.safetensors and no *.gguf file",
            host=head,
            hint="give the directory that holds config.json and the weights",
        )
    for name in others:
        if said := modelfiles.difference(found[name], found[head], head):
            raise PreflightFailed(
                f"{model} differs between hosts: {said}",
                host=name,
                hint=f"clusterctl model push --checksum --from {head} {model}",
            )
