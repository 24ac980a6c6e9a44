"""Where a model lies, here and on the nodes. PURE.

A path is the same on every node. A model of the Hub lies in the node's Hugging Face home, which
every node's container sees under one path (launch.HF_TARGET).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from clusterctl.errors import ConfigError
from clusterctl.serving.modelfiles import kind_of
from clusterctl.spec import ClusterSpec

HUB_PREFIX = "models--"


@dataclass(frozen=True)
class Place:
    """A directory `name` below a parent on every node. `keep`: it is a cache, in which other
    revisions stay."""

    name: str
    parents: Mapping[str, str]
    keep: bool = False

    def path(self, node: str) -> str:
        return f"{self.parents[node].rstrip('/')}/{self.name}"

    @property
    def paths(self) -> tuple[str, ...]:
        """Without repeats, as people should read them."""
        return tuple(dict.fromkeys(self.path(node) for node in self.parents))


def hub_name(model: str) -> str:
    """The directory of ORGANISATION/NAME in a Hugging Face cache."""
    return HUB_PREFIX + model.replace("/", "--")


def hub_caches(spec: ClusterSpec, homes: Mapping[str, str]) -> dict[str, str]:
    """Each node's Hugging Face cache; `homes` are the logins' home directories."""
    return {
        name: f"{spec.hf_home or home + '/.cache/huggingface'}/hub" for name, home in homes.items()
    }


def place_of(
    spec: ClusterSpec, homes: Mapping[str, str], model: str, *, to: str | None = None
) -> Place:
    """`model`: an absolute path, a name below model_dirs, or a Hub id. Raises ConfigError where it
    cannot be placed."""
    if to is None and (_is_hub_id(model) or _name(model).startswith(HUB_PREFIX)):
        name = hub_name(model) if _is_hub_id(model) else _name(model)
        return Place(name, hub_caches(spec, homes), keep=True)
    path = PurePosixPath(to or _below_model_dirs(spec, model))
    if not path.is_absolute() or path.name in ("", ".."):
        raise ConfigError(f"{path} is no absolute path of a model", hint="--to /models/NAME")
    return Place(path.name, dict.fromkeys(homes, str(path.parent)))


def _is_hub_id(model: str) -> bool:
    return "/" in model and kind_of(model) == "hub"


def _below_model_dirs(spec: ClusterSpec, model: str) -> str:
    """Where the nodes' containers will see it."""
    if any(f"{model}/".startswith(f"{top.rstrip('/')}/") for top in spec.model_dirs):
        return model
    if spec.model_dirs:
        return f"{spec.model_dirs[0].rstrip('/')}/{_name(model)}"
    raise ConfigError(
        "where shall it lie on the nodes? cluster.yaml has no model_dirs",
        hint=f"--to /models/{_name(model)}, and model_dirs: [/models] in cluster.yaml",
    )


def _name(path: str) -> str:
    return PurePosixPath(path).name


def image_place(roots: Mapping[str, str], image_id: str) -> Place:
    """Where an image lies unpacked on its way: beside the Engine's own directory, whose disk must
    take the image in any case. `roots`: that directory, by node."""
    parents = {
        node: str(PurePosixPath(root).parent / "clusterctl-images") for node, root in roots.items()
    }
    return Place(f"image-{image_id.removeprefix('sha256:')[:12]}", parents)


def local_path(model: str, environment: Mapping[str, str]) -> Path:
    """The model on this machine: a directory, or a Hub id in this user's cache."""
    path = Path(model).expanduser()
    if path.is_dir():
        return Path(path.absolute())
    cache = local_hub_cache(environment)
    if "/" in model and (cache / hub_name(model)).is_dir():
        return cache / hub_name(model)
    raise ConfigError(
        f"{model} is neither a directory here nor a model in {cache}",
        hint="give its directory, or --from NODE where it lies on a node, or `model pull` it",
    )


def local_hub_cache(environment: Mapping[str, str]) -> Path:
    """As huggingface_hub finds it."""
    home = environment.get("HF_HOME") or "~/.cache/huggingface"
    return Path(environment.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()
