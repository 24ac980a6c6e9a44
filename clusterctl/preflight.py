"""What must be true of the hosts before anything is made on them: the doctor's checks with that
tag, and what the image must hold. PURE: facts in, findings out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from clusterctl.doctor.check import Answer, Check, Finding, fail, ok, run_checks
from clusterctl.doctor.checks import judge
from clusterctl.errors import PreflightFailed
from clusterctl.facts.types import HostFacts
from clusterctl.raycluster import MIN_TOKEN_VERSION, version_tuple
from clusterctl.spec import ClusterSpec


def preflight(
    spec: ClusterSpec, facts: Mapping[str, HostFacts], runs: Mapping[str, bool] | None = None
) -> list[Finding]:
    """Every finding of every host, by node name. `runs`: which nodes of a local cluster run."""
    return judge(spec, facts, tag="preflight", runs=runs)


def refuse(findings: Sequence[Finding]) -> None:
    """Raises PreflightFailed with all failures at once, where there are any."""
    failed = [finding for finding in findings if finding.verdict == "fail"]
    if not failed:
        return
    hosts = list(dict.fromkeys(finding.host for finding in failed if finding.host))
    fixes = dict.fromkeys(finding.fix for finding in failed if finding.fix)
    raise PreflightFailed(
        _text(failed), host=", ".join(hosts) or None, hint="\n".join(fixes) or None
    )


def _text(failed: Sequence[Finding]) -> str:
    if len(failed) == 1:
        return failed[0].message
    lines = (f"  {finding.host or 'cluster'}: {finding.message}" for finding in failed)
    return "\n".join([f"{len(failed)} problems, nothing was changed", *lines])


@dataclass(frozen=True)
class ImageContents:
    """What a probe found in an image. None: it is not in there."""

    python: str | None
    ray: str | None
    torch: str | None
    vllm: str | None = None
    nccl: str | None = None


@dataclass(frozen=True)
class Held:
    """A host's image, as checks see it."""

    name: str
    contents: ImageContents


def _image_check(image: str, insecure_ray: bool) -> Check[Held]:
    return Check(
        "image.contents",
        "The image holds what a node needs",
        lambda held: _image_verdict(image, held.contents, insecure_ray),
        "ray-not-found",
    )


def judge_images(
    image: str, contents: Mapping[str, ImageContents], *, insecure_ray: bool
) -> list[Finding]:
    """By host. Equal over all hosts, and everything in it that a node needs."""
    findings = [
        finding
        for host, found in contents.items()
        for finding in run_checks([_image_check(image, insecure_ray)], [Held(host, found)])
    ]
    return [*findings, *_image_differs(image, contents)]


def _image_verdict(image: str, found: ImageContents, insecure_ray: bool) -> Answer:
    lacks = [
        name
        for name, version in (("python3", found.python), ("ray", found.ray), ("torch", found.torch))
        if version is None
    ]
    if lacks:
        return fail(
            f"image {image} has no {' and no '.join(lacks)}",
            "--image with one that has python3, ray and torch; stock vLLM images lack ray since "
            "v0.18: FROM it and `RUN pip install 'ray[default]>=2.52'`",
        )
    if _too_old(found.ray or "") and not insecure_ray:
        return fail(
            f"image {image} has Ray {found.ray}, which knows no token authentication (2.52 does)",
            "use an image with a newer Ray, or --insecure-ray on a network you trust",
        )
    return ok(f"python {found.python}, ray {found.ray}, torch {found.torch}")


def _too_old(ray: str) -> bool:
    return version_tuple(ray) < MIN_TOKEN_VERSION


def _image_differs(image: str, contents: Mapping[str, ImageContents]) -> Iterator[Finding]:
    if len(set(contents.values())) > 1:
        said = "; ".join(
            f"{host}: python {one.python}, ray {one.ray}, torch {one.torch}"
            for host, one in contents.items()
        )
        yield Finding(
            "image.equal",
            "ray-version-mismatch",
            None,
            "fail",
            f"image {image} is not the same on all hosts: {said}",
            fix=f"docker pull {image} on every host, or name it by digest",
        )
