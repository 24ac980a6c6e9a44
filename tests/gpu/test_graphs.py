"""CUDA graphs: what a step in flight reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.llm import LLM
from engine.sampling_params import SamplingParams
from tests.engine.conftest import load_script

pytestmark = pytest.mark.gpu


def test_bug_a_step_in_flight_reads_what_the_next_one_sends(tmp_path: Path) -> None:
    """Requests that come and go at every step, two steps in flight, again and again: the tokens are
    those of one step at a time, without graphs."""
    model = str(load_script("tiny_llama").make(tmp_path))
    prompts = [[2 + number, 7, 9 + number % 5] for number in range(48)]
    params = [
        SamplingParams(temperature=0, max_tokens=4 + number % 23, ignore_eos=True)
        for number in range(48)
    ]
    common: dict[str, Any] = {"dtype": "float32", "device": "cuda", "max_num_seqs": 13}

    def tokens(llm: LLM) -> list[tuple[int, ...]]:
        made = llm.generate(prompts, params, use_tqdm=False)
        return [one.outputs[0].token_ids for one in made]

    with LLM(model, **common, enforce_eager=True, async_scheduling=False) as llm:
        expected = tokens(llm)
    with LLM(model, **common, enable_prefix_caching=False) as llm:
        for _ in range(5):
            assert tokens(llm) == expected
