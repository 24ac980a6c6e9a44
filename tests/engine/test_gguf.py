"""Models that come as GGUF: found, converted once, and computed as transformers computes them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine import gguf
from engine.checkpoint import checkpoint_directory
from engine.llm import LLM
from engine.sampling_params import SamplingParams
from tests.engine.conftest import load_script


def test_which_file_is_the_model(tmp_path: Path) -> None:
    model = tmp_path / "a.gguf"
    assert gguf.gguf_file(model) is None
    model.touch()
    assert gguf.gguf_file(model) == gguf.gguf_file(tmp_path) == model
    (tmp_path / "b.gguf").touch()
    assert gguf.gguf_file(model) == model
    with pytest.raises(ValueError, match=r"holds several models: name one of a\.gguf, b\.gguf"):
        gguf.gguf_file(tmp_path)
    (tmp_path / "config.json").touch()  # a checkpoint, whatever else lies there
    assert gguf.gguf_file(tmp_path) is None


def test_it_is_converted_once_whoever_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def convert(source: Path, directory: Path) -> None:
        made.append(source)
        directory.mkdir()

    monkeypatch.setattr(gguf, "convert", convert)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = tmp_path / "a.gguf"
    model.write_bytes(b"one")
    ranks = [threading.Thread(target=checkpoint_directory, args=(str(model),)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    first = checkpoint_directory(str(tmp_path))
    assert made == [model]
    model.write_bytes(b"another")
    assert checkpoint_directory(str(model)) != first
    assert made == [model, model]


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # what others deprecate is no fault here
def test_a_published_gguf_gives_transformers_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmolLM2 in Q4_1, in fp32: weights equal to the bit, and the same greedy text."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = load_script("smollm2").download(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    with LLM(str(path), dtype="float32", device="cpu", max_model_len=256) as llm:
        params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
        (ours,) = llm.generate("The capital of France is", params)
    prompt = torch.tensor([ours.prompt_token_ids])
    with torch.inference_mode():
        answer = theirs.generate(
            prompt, max_new_tokens=24, min_new_tokens=24, do_sample=False, pad_token_id=0
        )
    expected = answer[0, prompt.shape[1] :].tolist()
    assert list(ours.outputs[0].token_ids) == expected
