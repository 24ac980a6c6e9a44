"""A model directory as each node sees it, and whether they all see the same. PURE."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from clusterctl.errors import ConfigError

_HUB_ID = re.compile(r"^[\w-][\w.-]*/[\w-][\w.-]*$")

# Sizes tell a broken copy apart at once; hashing gigabytes of weights on every serve would not.
PROBE = """
import hashlib, json, sys
from pathlib import Path
root = Path(sys.argv[1])
names = ("*.safetensors", "*.gguf", "*.json", "tokenizer*")
paths = [root] if root.is_file() else sorted({p for n in names for p in root.glob(n)})
sizes = {p.name: p.stat().st_size for p in paths if p.is_file()}
config = root / "config.json"
digest = hashlib.sha256(config.read_bytes()).hexdigest() if config.is_file() else ""
print(json.dumps({"exists": root.exists(), "config": digest, "sizes": sizes}))
"""


# The commit that a branch or tag stands for, where huggingface_hub puts what it downloads.
REVISION_PROBE = """
import json, os, sys
from pathlib import Path
model, wanted = sys.argv[1:]
home = Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface"))
cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
root = cache / ("models--" + model.replace("/", "--"))
ref = root / "refs" / wanted
commit = ref.read_text().strip() if ref.is_file() else wanted
print(json.dumps(commit if (root / "snapshots" / commit).is_dir() else None))
"""


@dataclass(frozen=True)
class ModelFiles:
    """`config`: SHA-256 of config.json, "" where there is none; `sizes`: bytes by file name."""

    exists: bool
    config: str
    sizes: Mapping[str, int]

    @property
    def is_model(self) -> bool:
        return any(name.endswith((".safetensors", ".gguf")) for name in self.sizes)

    @property
    def fingerprint(self) -> str:
        """Tells two states of a model's files apart, as far as sizes and config.json do."""
        said = json.dumps([self.config, sorted(self.sizes.items())])
        return hashlib.sha256(said.encode()).hexdigest()[:16]


def kind_of(model: str) -> Literal["path", "hub"]:
    """A path on the hosts or a Hub id. Raises ConfigError for what is neither."""
    if model.startswith("/"):
        return "path"
    if _HUB_ID.match(model):
        return "hub"
    raise ConfigError(
        f"{model!r} is neither an absolute path on the hosts nor a Hub id (ORGANISATION/NAME)",
        hint="give the model's absolute path, equal on every host",
    )


def asked_revision(flags: Sequence[str]) -> str:
    """The branch, tag or commit of a Hub id that an engine's flags name."""
    for word, value in pairwise((*flags, "")):
        name, equals, own = word.partition("=")
        if name == "--revision":
            return own if equals else value
    return "main"


def parse(output: str) -> ModelFiles:
    return ModelFiles(**json.loads(output))


def difference(here: ModelFiles, there: ModelFiles, there_name: str) -> str | None:
    """The first thing in which `here` differs from `there`, in words; None when they agree."""
    for name in sorted({*here.sizes, *there.sizes}):
        ours, theirs = here.sizes.get(name), there.sizes.get(name)
        if ours != theirs:
            return f"{name} {_size(ours)}; on {there_name} it {_size(theirs)}"
    if here.config != there.config:
        return f"config.json has other content than on {there_name}"
    return None


def _size(size: int | None) -> str:
    return "is absent" if size is None else f"has {size:,} bytes"
