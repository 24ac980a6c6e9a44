"""Checks of what the image holds, on every host: versions, and CUDA against the driver. PURE."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from clusterctl.doctor.check import (
    Answer,
    Check,
    Finding,
    Said,
    check,
    fail,
    ok,
    run_checks,
    skip,
    unknown,
    warn,
)
from clusterctl.facts.types import GpuFacts
from clusterctl.raycluster import MIN_TOKEN_VERSION, version_tuple

Version = tuple[int, ...]


@dataclass(frozen=True)
class ImageContents:
    """What a probe found in an image; None: it is not in there. `cuda`: what its torch is built
    for, 13.0. `requires`: NVIDIA_REQUIRE_CUDA, by which the container runtime refuses a driver.
    `compat`: the driver version of NVIDIA's compatibility libraries; `compat_first`: programs load
    those before the host's."""

    python: str | None = None
    ray: str | None = None
    torch: str | None = None
    vllm: str | None = None
    nccl: str | None = None
    cuda: str | None = None
    requires: str | None = None
    compat: str | None = None
    compat_first: bool = False

    def __str__(self) -> str:
        """For people: what is there, by name."""
        there = ((name, getattr(self, name)) for name in ("python", "ray", "torch", "vllm", "nccl"))
        return ", ".join(f"{name} {version}" for name, version in there if version) or "no python3"


@dataclass(frozen=True)
class Held:
    """A host's image, as checks see it. `contents` None: it was not looked into, because of
    `reason`; `lost`: though it should have been."""

    name: str
    image: str
    contents: ImageContents | None
    gpu: GpuFacts | None = None  # None: its GPUs are not given to the node
    insecure_ray: bool = False
    reason: str = "the image is not on this host yet; `up` pulls it"
    lost: bool = False


@dataclass(frozen=True)
class HeldByAll:
    """By host, those that were looked into."""

    image: str
    contents: Mapping[str, ImageContents] = field(default_factory=dict)
    name: None = None


def judge_images(held: Sequence[Held]) -> list[Finding]:
    """Equal over all hosts, with all that a node needs, and of use with the host's driver."""
    found = {one.name: one.contents for one in held if one.contents is not None}
    image = held[0].image if held else ""
    return [
        *run_checks(IMAGE_CHECKS, held),
        *run_checks(ALL_IMAGES_CHECKS, [HeldByAll(image, found)]),
    ]


def _looked(judge: Callable[[Held, ImageContents], Said]) -> Callable[[Held], Said]:
    def judged(one: Held) -> Said:
        if one.contents is None:
            return unknown(one.reason) if one.lost else skip(one.reason)
        return judge(one, one.contents)

    judged.__doc__ = judge.__doc__
    return judged


@check("image.contents", "The image holds what a node needs", cause="ray-not-found")
@_looked
def contents(one: Held, found: ImageContents) -> Said:
    """A node is `ray start`, and the engine needs torch: stock vLLM images have no Ray since
    v0.18, and Ray knows tokens since 2.52."""
    lacks = [
        name
        for name, version in (("python3", found.python), ("ray", found.ray), ("torch", found.torch))
        if version is None
    ]
    if lacks:
        return fail(
            f"image {one.image} has no {' and no '.join(lacks)}",
            "--image with one that has python3, ray and torch; stock vLLM images lack ray since "
            f"v0.18: `clusterctl image build --from {one.image}` makes one that has it",
        )
    if _too_old(found.ray or "") and not one.insecure_ray:
        return fail(
            f"image {one.image} has Ray {found.ray}, which knows no token authentication "
            f"(2.52 does)",
            "use an image with a newer Ray, or --insecure-ray on a network you trust",
            cause="ray-unauthenticated",
        )
    return ok(f"python {found.python}, ray {found.ray}, torch {found.torch}")


def _too_old(ray: str) -> bool:
    return version_tuple(ray) < MIN_TOKEN_VERSION


@check(
    "image.cuda",
    "The driver is new enough for the image's CUDA",
    cause="driver-too-old-for-image",
    tags=["nvidia"],
)
@_looked
def cuda(one: Held, found: ImageContents) -> Said:
    """A driver runs programs of its own CUDA major version and of older ones; the container runtime
    refuses an image whose NVIDIA_REQUIRE_CUDA it does not meet, torch one of a newer major version.
    Compatibility libraries in the image bridge that on data-center GPUs."""
    if one.gpu is None or not any(gpu.vendor == "nvidia" for gpu in one.gpu.gpus):
        return skip("no NVIDIA GPU is given to the node")
    if found.cuda is None:
        return skip("the image's torch is not built for CUDA")
    if one.gpu.cuda is None:
        return unknown("the driver does not say which CUDA it supports")
    has, wants = _version(one.gpu.cuda), _version(found.cuda)
    values = {"driver": str(one.gpu.driver), "supports": one.gpu.cuda, "image": found.cuda}
    said = f"the driver ({one.gpu.driver}) supports CUDA {one.gpu.cuda}"
    fix = "install a newer driver on the host, or --image with one built for an older CUDA"
    if not _met(found.requires, one.gpu):
        return fail(f"{said}; the image requires {found.requires}", fix, values=values)
    if has[0] >= wants[0]:
        return ok(f"{said}, the image has {found.cuda}")
    text = f"{said}; torch in the image is built for {found.cuda}"
    if found.compat and _version(found.compat) > _version(one.gpu.driver or ""):
        return warn(
            f"{text}; its compatibility libraries ({found.compat}) bridge that on data-center "
            f"GPUs, where the container toolkit puts them first",
            fix,
            values=values,
        )
    return fail(text, fix, values=values)


def _met(requires: str | None, gpu: GpuFacts) -> bool:
    """NVIDIA_REQUIRE_CUDA: alternatives with blanks between, each of conditions with commas
    between. A brand is taken to fit: the card's is not known here."""
    alternatives = (requires or "").split()
    known = {"cuda": gpu.cuda, "driver": gpu.driver}
    return not alternatives or any(
        all(_holds(condition, known) for condition in one.split(",")) for one in alternatives
    )


def _holds(condition: str, known: Mapping[str, str | None]) -> bool:
    match = re.fullmatch(r"(\w+)(>=|<=|=|<|>)([\d.]+)", condition)
    have = known.get(match[1]) if match else None
    if match is None or have is None:
        return True
    length = match[3].count(".") + 1  # 535 is any 535.x
    here, there = _version(have)[:length], _version(match[3])
    return {
        ">=": here >= there,
        "<=": here <= there,
        "=": here == there,
        "<": here < there,
        ">": here > there,
    }[match[2]]


def _version(text: str) -> Version:
    return tuple(int(part) for part in re.findall(r"\d+", text))


@check(
    "image.compat",
    "Compatibility libraries do not hide a newer driver",
    cause="driver-library-mismatch",
    tags=["nvidia"],
)
@_looked
def compat(one: Held, found: ImageContents) -> Said:
    """Forward-compatibility libraries older than the host's driver, found first, end CUDA with
    error 803: they are meant for drivers older than themselves."""
    if found.compat is None or not found.compat_first:
        return skip("programs in the image load the host's driver libraries")
    if one.gpu is None or one.gpu.driver is None:
        return skip("no NVIDIA driver")
    if _version(found.compat)[0] >= _version(one.gpu.driver)[0]:
        return ok(f"compatibility libraries {found.compat}, driver {one.gpu.driver}")
    return fail(
        f"the image loads compatibility libraries of driver {found.compat} before those of the "
        f"host's driver {one.gpu.driver}",
        "env: {LD_LIBRARY_PATH: ...} without /usr/local/cuda/compat; in vLLM's images leave "
        "VLLM_ENABLE_CUDA_COMPATIBILITY unset",
        values={"compat": found.compat, "driver": one.gpu.driver},
    )


_NAMES = {"python": "Python", "ray": "Ray", "torch": "torch", "vllm": "vLLM", "nccl": "NCCL"}
_CAUSES = {
    "python": "python-version-mismatch",
    "torch": "image-differs",
    "vllm": "image-differs",
    "nccl": "nccl-version-mismatch",
}


@check(
    "image.versions",
    "All hosts run one Ray, Python, torch, vLLM and NCCL",
    cause="ray-version-mismatch",
    scope="cluster",
)
def versions(whole: HeldByAll) -> Iterator[Answer]:
    """Ray lets no node of another Ray or Python join; other torch or NCCL fail later, at the first
    collective, and do not say why."""
    if len(whole.contents) < 2:
        yield skip("fewer than two images were looked into")
        return
    odd = [key for key in _NAMES if len({getattr(c, key) for c in whole.contents.values()}) > 1]
    if not odd:
        yield ok(f"{len(whole.contents)} hosts")
        return
    said = "; ".join(
        f"{host}: " + ", ".join(f"{_NAMES[key]} {getattr(one, key) or 'none'}" for key in odd)
        for host, one in whole.contents.items()
    )
    yield fail(
        f"image {whole.image} is not the same on all hosts: {said}",
        f"clusterctl up --pull always, or name {whole.image} by digest",
        cause=_CAUSES.get(odd[0]),
        values={"versions": said},
    )


IMAGE_CHECKS: tuple[Check[Held], ...] = (contents, cuda, compat)
ALL_IMAGES_CHECKS: tuple[Check[HeldByAll], ...] = (versions,)
