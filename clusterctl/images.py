"""The image on every host: brought there, and asked what it holds."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Literal

from clusterctl import autopsy
from clusterctl.config.saved import cache_dir
from clusterctl.doctor.image import Held, ImageContents
from clusterctl.doctor.logs.reading import Source
from clusterctl.errors import ClusterctlError, PreflightFailed, Unreachable
from clusterctl.events import Event, Report
from clusterctl.facts.types import HostFacts
from clusterctl.fanout import Done, Failed, Outcome, fan_out
from clusterctl.journal import Journal
from clusterctl.launch import LaunchPlan, devices_of
from clusterctl.links import HostLink
from clusterctl.runtime import PullProgress
from clusterctl.session import Session, results
from clusterctl.spec import ClusterSpec

PROBE_VERSION = 1  # of what is kept: another probe asks again

PullPolicy = Literal["always", "missing", "never"]

# Metadata only: importing torch and ray would cost ten seconds a host.
_PROBE = """
import glob, importlib.metadata, json, os, platform, re
def version(*names):
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
def text(path):
    with open(path) as file:
        return file.read()
torch = version("torch")
built = re.search(r"[+](?:cu([0-9]+)([0-9])|cpu|rocm)", torch or "")
runtime = version("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu13", "nvidia-cuda-runtime-cu12")
compat = sorted(glob.glob("/usr/local/cuda*/compat/libcuda.so.*.*"))
paths = [os.environ.get("LD_LIBRARY_PATH", ""), *map(text, glob.glob("/etc/ld.so.conf.d/*"))]
print(json.dumps({
    "python": platform.python_version(),
    "ray": version("ray"),
    "torch": torch,
    "vllm": version("vllm"),
    "nccl": version("nvidia-nccl-cu13", "nvidia-nccl-cu12"),
    "cuda": (".".join(built.groups()) if built[1] else None) if built else runtime,
    "requires": os.environ.get("NVIDIA_REQUIRE_CUDA"),
    "compat": compat[-1].split(".so.")[1] if compat else None,
    "compat_first": any("/compat" in path for path in paths),
}))
"""


def check_policy(plan: LaunchPlan, image: str, policy: PullPolicy) -> None:
    """Raises PreflightFailed naming the hosts that would have to pull, where nobody may."""
    lacking = [node.host for node in plan.made if node.pull]
    if policy == "never" and lacking:
        raise PreflightFailed(
            f"image {image} is not there, and --pull never",
            host=", ".join(lacking),
            hint="clusterctl image push, or --pull missing",
        )


def check_same(session: Session, image: str, names: Sequence[str]) -> None:
    """Raises PreflightFailed where a name stands for different images: a tag is moved by whoever
    pushes."""
    ids = results(session.each(lambda link: link.runtime.image_id(image), names))
    if len(set(ids.values())) > 1:
        said = ", ".join(
            f"{name} {str(id).removeprefix('sha256:')[:12]}" for name, id in ids.items()
        )
        raise PreflightFailed(
            f"{image} is not the same on all hosts: {said}",
            hint=f"up --pull always, clusterctl image push, or name {image} by digest",
        )


def pull(session: Session, image: str, names: Sequence[str], report: Report) -> None:
    """On all these hosts at once. Raises PreflightFailed naming every host that cannot get it."""

    def bring(link: HostLink) -> None:
        def say(progress: PullProgress) -> None:
            report(
                Event("progress", "pull", progress.status, link.name, progress.done, progress.total)
            )

        report(Event("begin", "pull", image, link.name))
        try:
            link.runtime.pull(image, say)
        except Unreachable:
            raise
        except ClusterctlError as error:
            failed = PreflightFailed(
                error.message,
                host=link.name,
                hint=error.hint or f"docker pull {image} on {link.name}, or --image with another",
            )
            said = Source(f"docker pull on {link.name}", error.message.encode(), link.name)
            raise autopsy.diagnosed(failed, [said]) from error
        report(Event("done", "pull", image, link.name))

    results(session.each(bring, names))


def contents(
    session: Session, image: str, names: Sequence[str], journal: Journal
) -> dict[str, ImageContents]:
    """By host. Starts one short container on each, whose removal an undo waits for."""

    def look(link: HostLink) -> ImageContents:
        with journal.acting(link.name):
            return _contents(link, image)

    return results(session.each(look, names))


def _contents(link: HostLink, image: str) -> ImageContents:
    return _look(link, image) or ImageContents()


def _look(link: HostLink, image: str) -> ImageContents | None:
    """None: there is no python3 in it that runs."""
    result = link.runtime.run_once(image, ["python3", "-c", _PROBE])
    return ImageContents(**json.loads(result.stdout.splitlines()[-1])) if result.ok else None


def held(
    session: Session, facts: Mapping[str, HostFacts], env: Mapping[str, str] = os.environ
) -> list[Held]:
    """What the image on each host holds. An id is the digest of all that is in an image: one host
    is asked for each id, and the answer is kept on this machine."""
    spec = session.spec
    ids = {name: one.docker.image_id for name, one in facts.items()}
    asked = {id: name for name, id in ids.items() if id is not None}
    outcomes = fan_out(
        asked.values(),
        lambda name: _remembered(session.link(name), spec.image, str(ids[name]), env),
        limit=spec.limits.parallel_hosts,
    )
    return [
        _held(spec, facts[name], outcomes[asked[id]] if id is not None else None)
        for name, id in ids.items()
    ]


def _held(spec: ClusterSpec, facts: HostFacts, outcome: Outcome[ImageContents] | None) -> Held:
    gives_gpus = devices_of(spec, spec.node(facts.name), facts)[0] == "gpu"
    seen = Held(
        facts.name,
        spec.image,
        outcome.value if isinstance(outcome, Done) else None,
        facts.gpu if gives_gpus else None,
        spec.ray.insecure,
    )
    if not isinstance(outcome, Failed):
        return seen
    reason = f"the image could not be looked into: {outcome.error.message}"
    return replace(seen, reason=reason, lost=True)


def _remembered(link: HostLink, image: str, id: str, env: Mapping[str, str]) -> ImageContents:
    file = cache_dir(env) / "images" / f"{PROBE_VERSION}-{id.removeprefix('sha256:')}.json"
    try:
        return ImageContents(**json.loads(file.read_text()))
    except FileNotFoundError:
        found = _look(link, image)
    if found is None:
        return ImageContents()
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(asdict(found)))
    draft.replace(file)
    return found
