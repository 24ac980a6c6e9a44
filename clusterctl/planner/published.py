"""A model by name -> its shape: a directory, the Hugging Face cache, or the built-in table.

models.json holds published config.json files, cut down to sizes, each with where it was read.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from clusterctl.errors import ConfigError
from clusterctl.planner.quantised import named_quantisation
from clusterctl.planner.tensors import checkpoint_bytes
from clusterctl.planner.towers import parse_whole
from engine.shapes import (
    DTYPE_BYTES,
    ModelShape,
    ShapeError,
    read_config,
)

_TABLE = Path(__file__).with_name("models.json")
_INDEX = "model.safetensors.index.json"

_DTYPES = {
    "bf16": "bfloat16",
    "half": "float16",
    "fp16": "float16",
    "fp32": "float32",
    "float": "float32",
} | {name: name for name in DTYPE_BYTES if name != "fp8"}
_WEIGHT_WORDS = {"fp4": "nvfp4", "int4-awq": "awq", "w4a16": "int4", "w8a8": "int8"}

# What the end of a repository's name says about its weights.
_SUFFIXES: tuple[tuple[str, str], ...] = (
    (r"[-_]fp8[-_]block$", "fp8-block"),
    (r"[-_]fp8([-_]dynamic|[-_]kv|[-_]static.*)?$", "fp8"),
    (r"([-_]quantized)?[.-]w4a16([-_]g\d+)?$", "int4"),
    (r"([-_]quantized)?[.-]w8a8$", "int8"),
    (r"([-_]quantized)?[.-]w8a16$", "int8"),
    (r"[-_](nv)?fp4$", "nvfp4"),
    (r"[-_]mxfp4$", "mxfp4"),
    (r"[-_]awq([-_]int4|[-_]4bit)?$", "awq"),
    (r"[-_]gptq[-_]int8$", "gptq-int8"),
    (r"[-_]gptq([-_]int4|[-_]4bit)?$", "gptq"),
    (r"([-_]bnb)?[-_]4bit$", "bnb-4bit"),
    (r"[-_]int4$", "int4"),
    (r"[-_]int8$", "int8"),
    (r"[-_]bf16$", ""),
)
# Tunings of the same sizes.
_TUNING = re.compile(
    r"[-_.](instruct|it|chat|base|hf|thinking|pt|preview|dpo|sft|\d{4}|v0\.\d|v\d+(\.\d)?)$"
)


@dataclass(frozen=True)
class Model:
    """`weights_bytes`: of the whole checkpoint, by `weights_source`. `origin`: where its sizes
    were read."""

    name: str
    shape: ModelShape
    weights_bytes: int
    weights_source: Literal["index", "shapes"]
    origin: str

    @property
    def scale(self) -> float:
        """The checkpoint's true size over what its sizes imply."""
        return self.weights_bytes / checkpoint_bytes(self.shape)


def find_model(name: str, dtype: str = "auto") -> Model:
    """Raises ConfigError for a model that is neither here nor known, or cannot be read."""
    return _reading(name, dtype, lambda: _find(name))


def read_model(name: str, directory: Path, origin: str, dtype: str = "auto") -> Model:
    """From a directory that holds its config.json. Raises ConfigError when it cannot be read."""
    return _reading(name, dtype, lambda: _from_directory(name, directory, origin))


def _reading(name: str, dtype: str, read: Callable[[], Model]) -> Model:
    try:
        found = read()
        return found if dtype == "auto" else _in_dtype(found, dtype)
    except ShapeError as error:
        raise ConfigError(f"{name}: {error}") from error


def _find(name: str) -> Model:
    path = Path(name).expanduser()
    if path.is_dir():
        return _from_directory(name, path, f"{path}")
    if name.startswith(("/", "./", "../", "~")):
        raise ConfigError(f"there is no model directory {path}", hint="a directory, or a Hub id")
    if snapshot := _cached_snapshot(name):
        return _from_directory(name, snapshot, "Hugging Face cache")
    return _from_table(name)


def _from_directory(name: str, directory: Path, origin: str) -> Model:
    shape = parse_whole(read_config(directory))
    total = _index_bytes(directory)
    return Model(
        name,
        shape,
        total or checkpoint_bytes(shape),
        "index" if total else "shapes",
        origin,
    )


def _index_bytes(directory: Path) -> int | None:
    """`metadata.total_size` of the index; None where there is no index, or it does not say."""
    index = directory / _INDEX
    if index.is_file():
        try:
            total = json.loads(index.read_text()).get("metadata", {}).get("total_size")
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"{index} cannot be read: {error}") from error
        return int(total) if total else None
    return None


def _cached_snapshot(name: str) -> Path | None:
    """The newest snapshot of a Hub id that has its config.json here."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    snapshots = hub / f"models--{name.replace('/', '--')}" / "snapshots"
    found = [one.parent for one in snapshots.glob("*/config.json")]
    return max(found, key=lambda one: one.stat().st_mtime, default=None)


# --- the built-in table --------------------------------------------------------------------------


@lru_cache(maxsize=1)
def table() -> Mapping[str, Mapping[str, Any]]:
    """Name -> {"source", "config"}."""
    found: dict[str, Mapping[str, Any]] = json.loads(_TABLE.read_text())
    return found


@lru_cache(maxsize=1)
def _by_key() -> dict[str, str]:
    """Every key an entry may be asked by; full names win over shortened ones."""
    keys: dict[str, str] = {}
    for shorten in (_key, _short_key):
        for name in table():
            keys.setdefault(shorten(name), name)
    return keys


def _from_table(name: str) -> Model:
    keys = _by_key()
    exact = keys.get(_key(name))
    if exact is not None:
        return _entry(name, exact)
    base, words = _split_suffix(_key(name))
    if words == "fp8" and name.lower().startswith("qwen/"):
        words = "fp8-block"  # as Qwen publishes its own
    entry = keys.get(base) or keys.get(_short_key(base))
    if entry is None:
        raise _unknown(name)
    found = _entry(name, entry)
    if words is None:
        return found
    shape = _requantised(found.shape, words)
    return Model(
        name, shape, checkpoint_bytes(shape), "shapes", f"{found.origin}, {words or 'bf16'}"
    )


def _entry(name: str, entry: str) -> Model:
    shape = parse_whole(table()[entry]["config"])
    return Model(name, shape, checkpoint_bytes(shape), "shapes", f"built-in table: {entry}")


def _key(name: str) -> str:
    """Without owner and case; Meta's own prefix is on some of its names only."""
    return name.lower().rpartition("/")[2].removeprefix("meta-")


def _short_key(name: str) -> str:
    """Without the words that tell tunings of one size apart."""
    key = _key(name)
    while (shorter := _TUNING.sub("", key)) != key:
        key = shorter
    return key


def _split_suffix(key: str) -> tuple[str, str | None]:
    """(name, quantisation) of a name that ends in one: "" for the plain weights, else None."""
    for pattern, words in _SUFFIXES:
        if match := re.search(pattern, key):
            return key[: match.start()], words
    return key, None


def _unknown(name: str) -> ConfigError:
    shorts = {_key(one): one for one in table()}
    close = difflib.get_close_matches(_key(name), shorts, n=3, cutoff=0.5)
    nearest = f" (nearest: {', '.join(shorts[one] for one in close)})" if close else ""
    return ConfigError(
        f"model {name!r} is neither a directory, nor in the Hugging Face cache, nor in the "
        f"built-in table{nearest}",
        hint="name a directory that holds its config.json; the index beside it, if there is one, "
        "makes the size exact",
    )


# --- another dtype -------------------------------------------------------------------------------


def _in_dtype(model: Model, dtype: str) -> Model:
    """The same model with its weights loaded otherwise. Raises ConfigError for an unknown dtype."""
    word = dtype.lower()
    if word in _DTYPES:
        shape = replace(model.shape, dtype=_DTYPES[word])
        if shape == model.shape:
            return model
        if model.shape.quantisation is not None:
            return replace(model, shape=shape)
    else:
        shape = _requantised(model.shape, _WEIGHT_WORDS.get(word, word))
    return replace(
        model, shape=shape, weights_bytes=checkpoint_bytes(shape), weights_source="shapes"
    )


def _requantised(shape: ModelShape, words: str) -> ModelShape:
    """`words` "": no quantisation at all."""
    if not words:
        return replace(shape, quantisation=None, kv_dtype=None)
    wanted = named_quantisation(words)
    if shape.quantisation is not None and shape.quantisation.method == wanted.method:
        return shape
    dtype = "bfloat16" if shape.dtype == "float32" else shape.dtype
    return replace(shape, quantisation=wanted, dtype=dtype)
