"""Two GPUs of one host, a process each over NCCL: transformers' tokens, cut either way."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from engine import LLM, SamplingParams
from tests.engine.conftest import load_script
from tests.engine.test_families import write_checkpoint
from tests.engine.test_models import TOKENS, prompts, transformers_greedy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]

SIZES = {"hidden_size": 256, "head_dim": 32, "intermediate_size": 512}
CHANGES = {"qwen2": {}, "qwen3": {}, "mistral": {"sliding_window": None}}


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("kind", ["llama", *CHANGES])
def test_tokens_are_transformers_own(tmp_path: Path, kind: str, tp: int, pp: int) -> None:
    model = checkpoint(kind, tmp_path)
    with LLM(
        str(model),
        dtype="float32",
        device="cuda",
        tensor_parallel_size=tp,
        pipeline_parallel_size=pp,
        distributed_executor_backend="mp",
        kv_cache_memory_bytes=1 << 28,
    ) as llm:
        sampling = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
        outputs = llm.generate(prompts(), sampling)
    assert [list(o.outputs[0].token_ids) for o in outputs] == transformers_greedy(model)


def checkpoint(kind: str, directory: Path) -> Path:
    """Of `kind`, with the byte tokenizer."""
    llama: Path = load_script("tiny_llama").make(directory / "llama", **SIZES)
    if kind == "llama":
        return llama
    made = directory / kind
    write_checkpoint(kind, {**SIZES, **CHANGES[kind]}, made)
    for file in llama.glob("tokenizer*"):
        shutil.copy(file, made)
    return made
