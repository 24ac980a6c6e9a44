from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from engine import weights
from engine.communicators import Solo, thread_world
from engine.layers.base import Build, model_shards
from engine.models import build_model
from engine.models.base import CausalLM
from engine.shapes import read_shape, stage_layers
from engine.weights import WeightsError, load_weights, tensor_files
from tests.engine.conftest import MakeCheckpoint

CPU = torch.device("cpu")


def load(directory: Path, dtype: torch.dtype = torch.float32) -> CausalLM:
    shape = read_shape(directory)
    model = build_model(Build(Solo(), CPU, dtype), shape, range(shape.num_layers))
    load_weights(model, shape, directory)
    return model


@pytest.fixture
def edited(checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    """A checkpoint of one file that a test may spoil."""
    return Path(shutil.copytree(checkpoint(), tmp_path / "edited"))


def edit(directory: Path, change: dict[str, torch.Tensor | None]) -> None:
    path = directory / "model.safetensors"
    tensors = {**load_file(path), **change}
    save_file({name: t for name, t in tensors.items() if t is not None}, path)


def test_fused_parameters_hold_the_checkpoints_matrices(checkpoint: MakeCheckpoint) -> None:
    tensors = load_file(checkpoint() / "model.safetensors")
    parameters = dict(load(checkpoint()).named_parameters())
    prefix = "model.layers.2.self_attn."
    fused = torch.cat([tensors[f"{prefix}{part}_proj.weight"] for part in "qkv"])
    assert torch.equal(parameters[f"{prefix}qkv_proj.weight"], fused)
    assert torch.equal(parameters["model.norm.weight"], tensors["model.norm.weight"])
    assert torch.equal(parameters["lm_head.weight"], tensors["lm_head.weight"])


def test_several_files_and_an_index(
    checkpoint: MakeCheckpoint, caplog: pytest.LogCaptureFixture
) -> None:
    split = checkpoint(max_shard="200KB")
    assert (split / "model.safetensors.index.json").is_file()
    count = len(list(split.glob("*.safetensors")))
    with caplog.at_level(logging.INFO, logger="engine.weights"):
        several = load(split)
    assert [r.message for r in caplog.records] == [
        f"Loading safetensors shard {number}/{count}" for number in range(1, count + 1)
    ]
    one = load(checkpoint()).state_dict()
    assert all(torch.equal(one[name], value) for name, value in several.state_dict().items())


def test_a_rank_reads_its_part_alone(checkpoint: MakeCheckpoint) -> None:
    """tp=2 x pp=2: the parts of all ranks cover the checkpoint, norms and the vocabulary's
    padding row apart exactly once."""
    shape = read_shape(checkpoint())
    held: dict[str, int] = {}
    for context in thread_world(2, 2, CPU).contexts:
        build = Build(context.tp, CPU, torch.float32)
        model = build_model(build, shape, stage_layers((2, 2), context.pp.rank))
        for shard in model_shards(model):
            held[shard.source] = held.get(shard.source, 0) + shard.target.numel()
    tensors = load_file(checkpoint() / "model.safetensors")
    assert held == {name: t.numel() * (2 if "norm" in name else 1) for name, t in tensors.items()}


def test_bug_a_rank_reads_whole_files(
    checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What leaves the file is what this rank holds, element for element."""
    read: list[int] = []

    class Counted:
        def __init__(self, stored: Any) -> None:
            self.get_shape = stored.get_shape
            self._stored = stored

        def __getitem__(self, index: Any) -> torch.Tensor:
            part: torch.Tensor = self._stored[index]
            read.append(part.numel())
            return part

    class Opened:
        def __init__(self, path: Path) -> None:
            self._file = safe_open(path, framework="pt", device="cpu")
            self.keys = self._file.keys

        def __enter__(self) -> Opened:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def get_slice(self, name: str) -> Counted:
            return Counted(self._file.get_slice(name))

    monkeypatch.setattr(weights, "_open", Opened)
    shape = read_shape(checkpoint())
    context = thread_world(4, 1, CPU).contexts[1]
    model = build_model(Build(context.tp, CPU, torch.float32), shape, range(shape.num_layers))
    load_weights(model, shape, checkpoint())
    assert read == [shard.target.numel() for shard in model_shards(model)]


def test_weights_are_converted_to_the_engines_dtype(checkpoint: MakeCheckpoint) -> None:
    stored = load_file(checkpoint() / "model.safetensors")["lm_head.weight"]
    weight = dict(load(checkpoint(), torch.bfloat16).named_parameters())["lm_head.weight"]
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, stored.bfloat16())


def test_tied_embeddings_share_memory_on_one_stage(checkpoint: MakeCheckpoint) -> None:
    model = load(checkpoint(tie_word_embeddings=True))
    names = dict(model.named_parameters(remove_duplicate=False))
    assert names["lm_head.weight"] is names["model.embed_tokens.weight"]


def test_tied_embeddings_are_read_by_the_first_and_the_last_stage(
    checkpoint: MakeCheckpoint,
) -> None:
    shape = read_shape(checkpoint(tie_word_embeddings=True))
    build = Build(Solo(), CPU, torch.float32)
    first, last = (build_model(build, shape, layers) for layers in (range(2), range(2, 4)))
    for model in (first, last):
        load_weights(model, shape, checkpoint(tie_word_embeddings=True))
    embedding = dict(first.named_parameters())["model.embed_tokens.weight"]
    assert torch.equal(embedding, dict(last.named_parameters())["lm_head.weight"])


def test_harmless_extras_of_real_checkpoints_are_passed_over(
    checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    tied = Path(shutil.copytree(checkpoint(tie_word_embeddings=True), tmp_path / "tied"))
    edit(tied, {
        "lm_head.weight": torch.ones(261, 64),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    })  # fmt: skip
    head = dict(load(tied).named_parameters(remove_duplicate=False))["lm_head.weight"]
    assert not torch.equal(head, torch.ones(261, 64))


def test_missing_tensors_are_named(edited: Path) -> None:
    edit(edited, {"model.norm.weight": None, "model.layers.3.mlp.up_proj.weight": None})
    with pytest.raises(WeightsError) as caught:
        load(edited)
    assert str(caught.value) == (
        f"{edited} lacks 2 tensors: model.layers.3.mlp.up_proj.weight, model.norm.weight"
    )


def test_unexpected_tensors_are_named_and_many_are_counted(edited: Path) -> None:
    edit(edited, {f"model.layers.{n}.input_layernorm.weight": torch.ones(64) for n in range(4, 14)})
    with pytest.raises(
        WeightsError, match=r"unexpected 10 tensors: model\.layers\.10.* and 2 more"
    ):
        load(edited)


def test_a_stage_complains_of_tensors_that_only_others_need(edited: Path) -> None:
    edit(edited, {"lm_head.weight": None})
    shape = read_shape(edited)
    first = build_model(Build(Solo(), CPU, torch.float32), shape, range(2))
    with pytest.raises(WeightsError, match=r"lacks 1 tensor: lm_head\.weight"):
        load_weights(first, shape, edited)


def test_a_tensor_of_another_size_is_named_with_both_sizes(edited: Path) -> None:
    edit(edited, {"model.norm.weight": torch.ones(32)})
    with pytest.raises(
        WeightsError, match=r"model\.norm\.weight in .* is \[32\].* makes it \[64\]"
    ):
        load(edited)


def test_no_weights_at_all(edited: Path) -> None:
    (edited / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"has neither model\.safetensors nor"):
        load(edited)


def test_a_file_that_the_index_names_but_is_absent(edited: Path) -> None:
    (index := edited / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(tensor_files(edited), "gone.safetensors")})
    )
    assert index.is_file()
    with pytest.raises(WeightsError, match=r"gone\.safetensors is named by the index but absent"):
        load(edited)
