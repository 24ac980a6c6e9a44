"""What the containers of a cluster hold: their Python's packages, and what their vLLM can do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from clusterctl.containers import ContainerFile
from clusterctl.errors import PreflightFailed
from clusterctl.events import Event, Report
from clusterctl.fanout import fan_out
from clusterctl.members import Member
from clusterctl.serving.placement import Contents
from clusterctl.serving.requirements import PROBE, FoundPython
from clusterctl.serving.vllm import PROBE as VLLM_PROBE
from clusterctl.serving.vllm import Abilities, parse_abilities
from clusterctl.session import Session, results
from clusterctl.spec import ServeSpec

# Of all that ranks on several hosts must agree in.
PACKAGES = ("ray", "torch", "vllm", "nvidia-nccl-cu12", "nvidia-nccl-cu13")
PROBE_S = 180.0


def contents(
    session: Session, nodes: Sequence[Member], serve: ServeSpec, report: Report
) -> Contents:
    """Raises PreflightFailed where the nodes hold different versions of what ranks share."""
    by_name = {member.name: member for member in nodes}
    limit = session.spec.limits.parallel_hosts
    pythons = results(fan_out(by_name, lambda name: _python(by_name[name]), limit=limit))
    _check_equal(pythons)
    found = Contents(pythons)
    if serve.engine == "native" or found.version("vllm") is None:
        return found
    return Contents(pythons, _abilities(nodes[0], report))


def _python(member: Member) -> FoundPython:
    result = member.link.runtime.exec(
        member.container.id, ["python3", "-c", PROBE, *PACKAGES], check=False
    )
    if not result.ok:
        raise PreflightFailed(
            f"python3 does not run in image {member.container.image}: {result.stderr.strip()}",
            host=member.name,
            hint="use an image with Python 3.10-3.13 and torch (`image:` in cluster.yaml)",
        )
    return FoundPython(**json.loads(result.stdout))


def _check_equal(pythons: Mapping[str, FoundPython]) -> None:
    said = {name: _versions(found) for name, found in pythons.items()}
    if len(set(said.values())) > 1:
        listed = "; ".join(f"{name}: {versions}" for name, versions in said.items())
        raise PreflightFailed(
            f"the nodes hold different versions, and their ranks would not understand each other: "
            f"{listed}",
            hint="one image on all hosts: clusterctl image verify, then clusterctl up",
        )


def _versions(found: FoundPython) -> str:
    held = [f"{name} {version}" for name, version in found.packages.items() if version]
    return ", ".join([f"python {found.python}", *held])


def _abilities(head: Member, report: Report) -> Abilities:
    """Asked once an image: importing vLLM takes many seconds. The head's cache keeps the answer."""
    runtime, container = head.link.runtime, head.container
    file = f"{runtime.home}/cache/vllm-{container.image_id.removeprefix('sha256:')[:16]}.json"
    if (kept := runtime.read_file(container.id, file)) is not None:
        said = json.loads(kept)
        return Abilities(frozenset(said["flags"]), said["ray_resource"])
    report(Event("begin", "probe", "asking the image's vLLM what it can do"))
    found = _ask(head)
    said = {"flags": sorted(found.flags), "ray_resource": found.ray_resource}
    runtime.put_files(container.id, [ContainerFile(file, json.dumps(said).encode())])
    report(Event("done", "probe", f"vllm serve has {len(found.flags)} flags"))
    return found


def _ask(head: Member) -> Abilities:
    result = head.link.runtime.exec(
        head.container.id, ["python3", "-c", VLLM_PROBE], timeout=PROBE_S
    )
    found = parse_abilities(result.stdout)
    if isinstance(found, str):
        last = found.splitlines()[-1]
        raise PreflightFailed(
            f"vLLM does not start in image {head.container.image}: {last}",
            host=head.name,
            hint=f"clusterctl exec {head.name} -- vllm serve --help",
        )
    return found
