"""Every signature reads its own samples, and not what only looks alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from clusterctl.doctor.logs import diagnose_sources
from clusterctl.doctor.logs.reading import Source, said
from clusterctl.doctor.logs.signature import signatures

SAMPLES = [(one.id, text) for one in signatures().values() for text in one.samples]
VARIANTS = yaml.safe_load((Path(__file__).parents[1] / "data/logs/variants.yaml").read_text())
NOT_SAMPLES = [(one.id, text) for one in signatures().values() for text in one.not_samples]


def causes(text: str) -> list[str | None]:
    return [one.cause for one in diagnose_sources([Source("a.log", text.encode())])]


@pytest.mark.parametrize(("cause", "text"), SAMPLES)
def test_a_sample_is_read_as_its_cause(cause: str, text: str) -> None:
    assert causes(text)[0] == cause


@pytest.mark.parametrize(("cause", "text"), NOT_SAMPLES)
def test_what_looks_alike_is_not_read_so(cause: str, text: str) -> None:
    assert cause not in causes(text)


@pytest.mark.parametrize(
    "variant", VARIANTS, ids=[f"{n}-{one['cause']}" for n, one in enumerate(VARIANTS)]
)
def test_a_log_is_read_whatever_carried_it(variant: dict[str, str]) -> None:
    read = causes(variant["log"])
    assert (read[0] if read else "healthy") == variant["cause"]


def test_marks_of_ray_and_vllm_are_stripped() -> None:
    line = "(EngineCore pid=1) ERROR 08-07 21:51:35 [core.py:1330] ValueError: x"
    assert said(line) == "ValueError: x"


def test_unknown_is_said_to_be_unknown_and_a_good_log_says_nothing() -> None:
    assert causes("strange.OddError: 7\n") == [None]
    assert causes("INFO: Application startup complete.\n") == []
    assert causes("CUDA out of memory\nINFO: Application startup complete.\n") == []
