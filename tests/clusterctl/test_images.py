"""What an image holds, and Ray's list of nodes, as checks: samples that trigger each, and ones that
do not; and what is kept of an image."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from clusterctl import images
from clusterctl.doctor.check import Finding, run_checks, troubles
from clusterctl.doctor.formed import FORMED_CHECKS, Formed
from clusterctl.doctor.image import Held, ImageContents, judge_images
from clusterctl.errors import PreflightFailed
from clusterctl.facts.types import Gpu, GpuFacts
from clusterctl.preflight import refuse
from clusterctl.raycluster import Formation, SeenNode
from tests.clusterctl.hosts import Bed, host_facts, spec_of

GOOD = ImageContents("3.12.3", "2.60.0", "2.13.0")
CUDA = replace(GOOD, torch="2.11.0+cu130", cuda="13.0")
H100 = Gpu(0, "nvidia", "NVIDIA H100 80GB HBM3", "GPU-0", 81559, 1)


def held(*contents: ImageContents | None, gpu: GpuFacts | None = None) -> list[Held]:
    return [Held(f"gpu{at:02}", "img:1", one, gpu) for at, one in enumerate(contents, 1)]


def with_driver(driver: str, cuda: str | None) -> GpuFacts:
    return GpuFacts((H100,), driver, cuda)


def bad(seen: list[Held]) -> list[tuple[str | None, str | None, str | None, str]]:
    found = troubles(judge_images(seen))
    return [(one.check, one.cause, one.host, one.verdict) for one in found]


def test_images_that_hold_all_pass() -> None:
    refuse(judge_images(held(GOOD, GOOD)))
    assert bad(held(GOOD, GOOD)) == []


def test_an_image_without_ray_is_named_with_its_hosts() -> None:
    with pytest.raises(PreflightFailed) as raised:
        refuse(judge_images(held(GOOD, replace(GOOD, ray=None))))
    assert "gpu02: image img:1 has no ray" in raised.value.message
    assert "img:1 is not the same on all hosts" in raised.value.message


def test_an_image_without_python() -> None:
    with pytest.raises(PreflightFailed, match="has no python3 and no ray and no torch"):
        refuse(judge_images(held(ImageContents())))


def test_a_ray_without_tokens_only_when_asked_for() -> None:
    (old,) = held(replace(GOOD, ray="2.51.1"))
    refuse(judge_images([replace(old, insecure_ray=True)]))
    with pytest.raises(PreflightFailed, match=r"Ray 2\.51\.1, which knows no token") as raised:
        refuse(judge_images([old]))
    assert "--insecure-ray" in (raised.value.hint or "")


def test_an_image_that_is_not_there_yet_is_no_trouble_and_one_that_hides_is() -> None:
    (absent,) = held(None)
    assert bad([absent]) == []
    lost = replace(absent, lost=True, reason="no answer")
    assert {verdict for *_, verdict in bad([lost])} == {"unknown"}


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"ray": "2.59.0"}, "ray-version-mismatch"),
        ({"python": "3.11.2"}, "python-version-mismatch"),
        ({"nccl": "2.27.3"}, "nccl-version-mismatch"),
        ({"vllm": "0.11.0"}, "image-differs"),
    ],
)
def test_versions_that_differ_are_named(changed: dict[str, str], cause: str) -> None:
    found = [("image.versions", cause, None, "fail")]
    assert bad(held(GOOD, replace(GOOD, **changed))) == found


def test_the_words_name_what_differs_alone() -> None:
    (found,) = troubles(judge_images(held(GOOD, replace(GOOD, ray="2.59.0"))))
    assert found.values["versions"] == "gpu01: Ray 2.60.0; gpu02: Ray 2.59.0"


REQUIRES = "cuda>=13.0 brand=unknown,driver>=535,driver<536 brand=tesla,driver>=570,driver<571"


@pytest.mark.parametrize(
    ("image", "gpu", "verdict"),
    [
        (CUDA, with_driver("580.159.04", "13.0"), None),
        (CUDA, with_driver("575.57.08", "12.9"), "fail"),
        (replace(CUDA, cuda="12.9"), with_driver("535.104.05", "12.2"), None),  # one major version
        (CUDA, with_driver("580.159.04", None), "unknown"),
        (
            replace(CUDA, compat="580.65.06", compat_first=True),
            with_driver("570.9", "12.8"),
            "warn",
        ),
        (replace(CUDA, requires=REQUIRES), with_driver("580.159.04", "13.0"), None),
        (
            replace(CUDA, requires=REQUIRES, compat="580.65.06"),
            with_driver("535.104.05", "12.2"),
            "warn",
        ),
        (replace(CUDA, cuda="12.9", requires=REQUIRES), with_driver("550.54", "12.4"), "fail"),
        (replace(CUDA, cuda=None), with_driver("535.104.05", "12.2"), None),
        (CUDA, GpuFacts(), None),
    ],
)
def test_cuda_of_the_image_against_the_driver(
    image: ImageContents, gpu: GpuFacts, verdict: str | None
) -> None:
    found = [("image.cuda", "driver-too-old-for-image", "gpu01", verdict)] if verdict else []
    assert [one for one in bad(held(image, gpu=gpu)) if one[0] == "image.cuda"] == found


def test_the_image_of_a_gpu_machine_and_its_driver() -> None:
    """CUDA 13.0, with NVIDIA's own list of drivers: recorded beside two H100s."""
    file = Path(__file__).parents[1] / "data/gpu/h100x2/image.json"
    image = replace(ImageContents(**json.loads(file.read_text())), ray="2.60.0")
    assert bad(held(image, gpu=with_driver("580.159.04", "13.0"))) == []
    (old,) = bad(held(image, gpu=with_driver("575.57.08", "12.9")))
    assert old == ("image.cuda", "driver-too-old-for-image", "gpu01", "warn")
    (older,) = bad(held(image, gpu=with_driver("545.23.08", "12.3")))
    assert older == ("image.cuda", "driver-too-old-for-image", "gpu01", "fail")


@pytest.mark.parametrize(
    ("compat", "first", "driver", "failed"),
    [
        ("575.57.08", True, "580.159.04", True),
        ("575.57.08", False, "580.159.04", False),
        ("580.65.06", True, "570.124.06", False),
        ("580.65.06", True, "580.159.04", False),
    ],
)
def test_compatibility_libraries_before_a_newer_driver(
    compat: str, first: bool, driver: str, failed: bool
) -> None:
    image = replace(CUDA, compat=compat, compat_first=first)
    found = bad(held(image, gpu=with_driver(driver, "13.0")))
    expected = ("image.compat", "driver-library-mismatch", "gpu01", "fail")
    assert found == ([expected] if failed else [])


# --- what is kept --------------------------------------------------------------------------------


def test_one_host_is_asked_for_each_image_and_only_once(tmp_path: Path) -> None:
    spec = spec_of("gpu01", "gpu02", "gpu03")
    bed, env = Bed(tmp_path, "gpu01", "gpu02", "gpu03"), {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    session = bed.session(spec)
    plain = {name: host_facts(name) for name in session.links}
    ids = {"gpu01": "sha256:aa", "gpu02": "sha256:aa", "gpu03": None}
    facts = {
        name: replace(one, docker=replace(one.docker, image_id=ids[name]))
        for name, one in plain.items()
    }
    first = images.held(session, facts, env)
    again = images.held(session, facts, env)
    assert first == again
    assert [one.contents and one.contents.ray for one in first] == ["2.60.0", "2.60.0", None]
    looks = [call for one in bed.runtimes.values() for call in one.calls if call[0] == "run_once"]
    assert len(looks) == 1


# --- Ray's list ----------------------------------------------------------------------------------


def seen(*nodes: SeenNode) -> list[Finding]:
    return list(run_checks(FORMED_CHECKS, [Formed(Formation(nodes))]))


READY = SeenNode("gpu01", "10.0.0.1", "head", "ready", 1, 1)
OTHER = replace(READY, name="gpu02", address="10.0.0.2", role="worker")


def test_a_cluster_as_planned_is_in_order() -> None:
    assert [one.verdict for one in seen(READY, OTHER)] == ["ok"]
    assert [one.verdict for one in run_checks(FORMED_CHECKS, [Formed()])] == ["skip"]


@pytest.mark.parametrize(
    ("state", "detail", "cause"),
    [
        ("missing", "Ray calls it dead", "ray-node-died"),
        ("starting", "has not joined Ray", "ray-gcs-unreachable"),
        ("starting", "Ray still counts an earlier life of it", "ray-gcs-unreachable"),
        ("failed", "Ray shows 1 GPUs, 2 planned", "ray-gpu-not-detected"),
        ("failed", "container exited 137", "ray-node-died"),
    ],
)
def test_a_node_that_is_not_as_planned_is_named(state: str, detail: str, cause: str) -> None:
    (found,) = troubles(seen(READY, replace(OTHER, state=state, detail=detail)))  # type: ignore[arg-type]
    assert (found.check, found.cause, found.host) == ("ray.formed", cause, "gpu02")
    assert detail in found.message


def test_a_node_that_nobody_asked_for_is_named_by_its_address() -> None:
    stray = SeenNode("box", "10.0.0.9", "unexpected", "unexpected", 0, 4, "not in the file")
    (found,) = troubles(seen(READY, stray))
    assert (found.cause, found.values["address"]) == ("port-in-use-stray-ray", "10.0.0.9")


def test_a_host_that_cannot_be_reached_is_not_said_twice() -> None:
    assert troubles(seen(READY, replace(OTHER, state="unreachable"))) == []


def test_the_probe_reads_this_python(tmp_path: Path) -> None:
    """It is what runs in the image: this environment has torch and Ray."""
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", images._PROBE], capture_output=True, check=True)
    found = ImageContents(**json.loads(done.stdout))
    assert found.python is not None
    assert found.torch is not None
    assert found.ray is not None
