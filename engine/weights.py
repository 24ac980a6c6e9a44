"""Safetensors -> parameters: every rank reads only the parts of the files that it holds."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from engine.communicators import Solo
from engine.layers.base import Build, Shard, model_shards
from engine.models import build_model
from engine.models.base import CausalLM
from engine.shapes import ModelShape

logger = logging.getLogger(__name__)

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_HEAD = "lm_head.weight"
_NAMED_AT_MOST = 8


class WeightsError(ValueError):
    """The checkpoint is not this model's. The message names the tensors or the file."""


def load_weights(model: CausalLM, shape: ModelShape, directory: Path) -> None:
    """Fill `model`, a stage on one rank, converting to its dtype and moving to its device.

    Raises WeightsError for a missing file, and for missing, unexpected or ill-shaped tensors.
    """
    files = tensor_files(directory)
    names = stored_names(files, model.optional_prefix)
    check_names(names, shape, directory)
    wanted: dict[Path, list[tuple[str, Shard]]] = defaultdict(list)
    for shard in model_shards(model):
        stored = names[shard.source]
        wanted[files[stored]].append((stored, shard))
    for number, (path, shards) in enumerate(sorted(wanted.items()), start=1):
        logger.info("Loading safetensors shard %d/%d", number, len(wanted))
        _read(path, shards)


def fill_at_random(model: CausalLM, seed: int) -> None:
    """Weights that are no model's: for measuring speed. Small, so that nothing overflows."""
    for number, parameter in enumerate(model.parameters()):
        generator = torch.Generator(parameter.device).manual_seed(seed + number)
        parameter.data.normal_(0.0, 0.02, generator=generator)


def tensor_files(directory: Path) -> Mapping[str, Path]:
    """Which file holds which tensor, in a checkpoint of one file or of several with an index."""
    index = directory / _INDEX
    if index.is_file():
        names: dict[str, str] = json.loads(index.read_text())["weight_map"]
        return {name: directory / file for name, file in names.items()}
    single = directory / _SINGLE
    if not single.is_file():
        raise WeightsError(f"{directory} has neither {_SINGLE} nor {_INDEX}")
    with _open(single) as file:
        return dict.fromkeys(file.keys(), single)


def stored_names(files: Iterable[str], prefix: str | None) -> Mapping[str, str]:
    """The model's names of the checkpoint's tensors -> the checkpoint's own, which may lack
    `prefix` (the published GPT-2 and OPT files do)."""
    names = list(files)
    bare = prefix is not None and not any(name.startswith(prefix) for name in names)
    return {f"{prefix}{name}" if bare and name != _HEAD else name: name for name in names}


def check_names(names: Iterable[str], shape: ModelShape, directory: Path) -> None:
    """Raises WeightsError unless `names` are the whole model's tensors, no more and no less."""
    # The whole model, without memory: what any rank of any stage would read.
    build = Build(Solo(), torch.device("meta"), torch.float32)
    model = build_model(build, shape, range(shape.num_layers))
    expected = {shard.source for shard in model_shards(model)}
    present = {name for name in names if not _is_ignored(name, shape, model.passed_over)}
    if missing := expected - present:
        raise WeightsError(f"{directory} lacks {_listed(missing)}")
    if unexpected := present - expected:
        raise WeightsError(f"{directory} has unexpected {_listed(unexpected)}")


def _is_ignored(name: str, shape: ModelShape, passed_over: tuple[str, ...]) -> bool:
    """Old checkpoints carry computed frequencies, and some a copy of the tied embedding."""
    if shape.tie_embeddings and name == _HEAD:
        return True
    return name.endswith(("rotary_emb.inv_freq", *passed_over))


def _listed(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:_NAMED_AT_MOST])
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    plural = "" if len(names) == 1 else "s"
    return f"{len(names)} tensor{plural}: {shown}{more}"


def _read(path: Path, shards: list[tuple[str, Shard]]) -> None:
    with _open(path) as file:
        for name, shard in shards:
            stored = file.get_slice(name)
            turn = -1 if shard.transposed else 1
            if tuple(stored.get_shape()) != shard.shape[::turn]:
                raise WeightsError(
                    f"{name} in {path} is {stored.get_shape()}, "
                    f"but config.json makes it {list(shard.shape[::turn])}"
                )
            part = stored[shard.index[::turn]]
            shard.target.copy_(part.T if shard.transposed else part)


def _open(path: Path) -> Any:  # safe_open is untyped
    if not path.is_file():
        raise WeightsError(f"{path} is named by the index but absent")
    return safe_open(path, framework="pt", device="cpu")
