"""The image with Ray: built once, its base with Ray and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import pytest

from clusterctl.errors import ClusterctlError, PreflightFailed
from clusterctl.events import silent
from clusterctl.imagebuild import build, tag_for
from clusterctl.links import HostLink
from clusterctl.session import Session
from clusterctl.transfer.models import Options
from tests.clusterctl.hosts import spec_of
from tests.fakes import FakeRuntime, ScriptedTransport

BASE = "vllm/vllm-openai:v0.19.1"
TAG = "clusterctl/vllm-openai:v0.19.1-ray2.60.0"


@pytest.mark.parametrize(
    ("image", "tag"),
    [
        (BASE, TAG),
        ("registry.example:5000/team/vllm", "clusterctl/vllm:latest-ray2.60.0"),
        ("vllm@sha256:abc", "clusterctl/vllm:latest-ray2.60.0"),
    ],
)
def test_the_new_image_is_named_by_its_base_and_ray(image: str, tag: str) -> None:
    assert tag_for(image, "2.60.0") == tag


def held(ray: str | None, torch: str = "2.13.0") -> str:
    held = {"python": "3.12.3", "ray": ray, "torch": torch, "vllm": "0.19.1", "nccl": "2.28.9"}
    return json.dumps(held)


class Builder(FakeRuntime):
    """Looks into the base, then into what was built of it."""

    def __init__(self, before: str, after: str) -> None:
        super().__init__(images=[BASE], replies={"python3": self._look})
        self.said = [before, after]
        self.arguments: Mapping[str, str] = {}

    def _look(self, _: bytes) -> str:
        return self.said.pop(0)

    def build(
        self,
        tag: str,
        dockerfile: bytes,
        arguments: Mapping[str, str],
        on_line: Callable[[str], None],
    ) -> None:
        self.arguments = arguments
        assert dockerfile.startswith(b"# An image with Ray")
        super().build(tag, dockerfile, arguments, on_line)


def built(before: str, after: str) -> tuple[Builder, str]:
    spec, runtime = spec_of("gpu01"), Builder(before, after)
    link = HostLink(spec.nodes[0], ScriptedTransport("gpu01"), runtime)
    arguments = {"PIP_INDEX_URL": "http://mirror.example/simple"}
    with Session(spec, {"gpu01": link}) as session:
        done = build(session, BASE, TAG, "2.60.0", arguments, Options(BASE), silent)
    return runtime, str(done.contents)


def test_ray_is_added_and_the_rest_is_as_before() -> None:
    runtime, contents = built(held(None), held("2.60.0"))
    assert contents == "python 3.12.3, ray 2.60.0, torch 2.13.0, vllm 0.19.1, nccl 2.28.9"
    assert runtime.arguments == {
        "BASE": BASE,
        "RAY": "2.60.0",
        "PIP_INDEX_URL": "http://mirror.example/simple",
    }
    assert TAG in runtime.images


def test_a_build_that_took_torch_away_from_under_vllm_is_refused() -> None:
    with pytest.raises(ClusterctlError, match=r"torch 2\.13\.0.* became .*torch 2\.14\.0"):
        built(held(None), held("2.60.0", torch="2.14.0"))


def test_an_image_that_has_this_ray_needs_no_build() -> None:
    with pytest.raises(PreflightFailed, match="has Ray 2.60.0 already"):
        built(held("2.60.0"), "")
