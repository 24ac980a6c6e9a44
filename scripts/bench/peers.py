"""Other engines' time for the same batches, on the same machine and in the same run."""

from __future__ import annotations

import time
from collections.abc import Sequence

Batch = Sequence[tuple[Sequence[int], int]]  # prompt, and how many tokens its answer has


def transformers(model: str, dtype: str, runs: Sequence[Batch]) -> list[float]:
    """`generate` on the whole batch at once: all its prompts and answers must be equally long."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    loaded.generation_config.eos_token_id = None  # as ignore_eos
    seconds = []
    for run in runs:
        (answer,) = {answer for _, answer in run}
        prompts = torch.tensor([prompt for prompt, _ in run])
        began = time.perf_counter()
        made = loaded.generate(
            prompts, max_new_tokens=answer, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        seconds.append(time.perf_counter() - began)
        assert made.shape[1] == prompts.shape[1] + answer
    return seconds


PEERS = {"transformers": transformers}
