"""The cluster's image with Ray in it, on every host.

Built on one host and passed on: built on each, it would have another id everywhere, and the cluster
would not run one image. What the build changed besides is looked for: pip may have taken torch away
from under vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from clusterctl import images
from clusterctl.doctor.image import ImageContents
from clusterctl.errors import ClusterctlError, PreflightFailed
from clusterctl.events import Event, Report
from clusterctl.journal import Journal
from clusterctl.render.templates import template_directory
from clusterctl.session import Session
from clusterctl.transfer import images as chain
from clusterctl.transfer.models import Options, Pushed

TEMPLATE = "Dockerfile"
RAY = "2.60.0"  # what is tested here; every node's must be this one


@dataclass(frozen=True)
class Built:
    """`tag` is the new image; `pushed` None: no other host was there to have it."""

    tag: str
    contents: ImageContents
    pushed: Pushed | None


def tag_for(image: str, ray: str) -> str:
    """clusterctl/vllm-openai:v0.19.1-ray2.60.0, of registry.example/vllm/vllm-openai:v0.19.1"""
    name, _, version = image.partition("@")[0].rpartition("/")[2].partition(":")
    return f"clusterctl/{name}:{version or 'latest'}-ray{ray}"


def build(
    session: Session,
    base: str,
    tag: str,
    ray: str,
    arguments: Mapping[str, str],
    options: Options,
    report: Report,
) -> Built:
    """Raises PreflightFailed where the base has this Ray already or no Python; ClusterctlError
    where the build fails, or has changed what else the image holds."""
    head = session.head
    if head.runtime.image_id(base) is None:
        images.pull(session, base, [head.name], report)
    before = _contents(session, base)
    _check_base(base, before, ray, head.name)
    report(Event("begin", "build", tag, head.name))
    head.runtime.build(
        tag,
        template_directory().joinpath(TEMPLATE).read_bytes(),
        {"BASE": base, "RAY": ray, **arguments},
        lambda line: report(Event("progress", "build", line, head.name)),
    )
    after = _contents(session, tag)
    _check_only_ray_is_new(tag, before, after, ray, head.name)
    report(Event("done", "build", f"{tag}: ray {ray}, the rest as before", head.name))
    others = len(session.links) > 1
    pushed = chain.push(session, tag, options, report, source=head.name) if others else None
    return Built(tag, after, pushed)


def _contents(session: Session, image: str) -> ImageContents:
    head = session.head.name
    return images.contents(session, image, [head], Journal())[head]


def _check_base(base: str, held: ImageContents, ray: str, host: str) -> None:
    if held.python is None:
        raise PreflightFailed(
            f"image {base} has no python3", host=host, hint="--from an image with python3"
        )
    if held.ray == ray:
        raise PreflightFailed(
            f"image {base} has Ray {ray} already: there is nothing to build", host=host
        )


def _check_only_ray_is_new(
    tag: str, before: ImageContents, after: ImageContents, ray: str, host: str
) -> None:
    if after == replace(before, ray=ray):
        return
    raise ClusterctlError(
        f"{tag} is not its base with Ray {ray}: {before} became {after}",
        host=host,
        hint="another --ray, whose dependencies leave the image's own alone",
    )
