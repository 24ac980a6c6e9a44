"""transformers' own continuations, which a served model is held against."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def greedy(model_directory: Path, prompts: Iterable[str], max_tokens: int) -> dict[str, str]:
    """Prompt -> text: greedy, float32, on this machine."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    model: Any = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    texts = {}
    for prompt in prompts:
        tokens = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**tokens, do_sample=False, max_new_tokens=max_tokens)
        new = out[0, tokens["input_ids"].shape[1] :]
        texts[prompt] = str(tokenizer.decode(new, skip_special_tokens=True))
    return texts
