"""Small checkpoints of every architecture, and what a GPU makes of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from engine import LLM, SamplingParams
from tests.engine.conftest import load_script
from tests.engine.test_families import write_checkpoint
from tests.engine.test_models import TOKENS, prompts


def make_checkpoint(kind: str, directory: Path, **sizes: Any) -> Path:
    """Of `kind`, "llama" or one of tests.engine.test_families, with the byte tokenizer."""
    llama: Path = load_script("tiny_llama").make(directory / "llama")
    if kind == "llama":
        return llama
    made = directory / kind
    write_checkpoint(kind, sizes, made)
    for file in llama.glob("tokenizer*"):
        shutil.copy(file, made)
    return made


def generate(
    model: Path, sampling: SamplingParams | None = None, **options: Any
) -> list[list[int]]:
    """Tokens of every prompt of test_models; without `sampling` greedy ones. fp32, on CUDA."""
    greedy = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    settings = {"device": "cuda", "dtype": "float32", "kv_cache_memory_bytes": 1 << 26, **options}
    with LLM(str(model), **settings) as llm:
        outputs = llm.generate(prompts(), sampling or greedy)
    return [list(output.outputs[0].token_ids) for output in outputs]
