"""Two GPUs of one host, a process each over NCCL: transformers' tokens, cut either way, from CUDA
graphs that hold the collectives and without them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.engine.test_families import FAMILIES
from tests.engine.test_models import transformers_greedy
from tests.gpu.conftest import generate, make_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


@pytest.mark.parametrize("eager", [False, True], ids=["graphs", "eager"])
@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("kind", ["llama", *FAMILIES])
def test_tokens_are_transformers_own(
    tmp_path: Path, kind: str, tp: int, pp: int, eager: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make_checkpoint(kind, tmp_path)
    cut = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}
    tokens = generate(model, **cut, distributed_executor_backend="mp", enforce_eager=eager)
    assert tokens == transformers_greedy(model)
    said = capfd.readouterr().err
    assert said.count("CUDA graphs") == (0 if eager else 2)  # one line a rank
