"""What other tools know of a cluster -> cluster.yaml. PURE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from clusterctl.errors import ConfigError
from clusterctl.foreign import ansible, lists, runcluster, yamlfiles
from clusterctl.foreign.draft import Draft

__all__ = ["KINDS", "Draft", "convert", "kind_of"]


@dataclass(frozen=True)
class Kind:
    recognised: Callable[[str], bool]
    read: Callable[[str], Draft]


def _of_yaml(reads: Callable[[dict[str, Any]], Draft]) -> Callable[[str], Draft]:
    def read(text: str) -> Draft:
        content = _mapping(text)
        if content is None:
            raise ConfigError("this is no YAML mapping")
        return reads(content)

    return read


def _if_yaml(recognises: Callable[[dict[str, Any]], bool]) -> Callable[[str], bool]:
    return lambda text: (content := _mapping(text)) is not None and recognises(content)


def _mapping(text: str) -> dict[str, Any] | None:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    return content if isinstance(content, dict) else None


KINDS: Mapping[str, Kind] = {
    "run_cluster": Kind(runcluster.recognised, runcluster.read),
    "ray": Kind(_if_yaml(yamlfiles.is_ray), _of_yaml(yamlfiles.ray)),
    "sparkrun": Kind(_if_yaml(yamlfiles.is_sparkrun), _of_yaml(yamlfiles.sparkrun)),
    "ansible-yaml": Kind(_if_yaml(ansible.is_yaml), _of_yaml(ansible.read_yaml)),
    "spark-vllm-docker": Kind(lists.is_env_file, lists.env_file),
    "slurm": Kind(lists.is_nodelist, lists.nodelist),
    "ansible": Kind(ansible.is_ini, ansible.read_ini),
}
"""In the order in which they are tried: the first that recognises the text."""


def kind_of(text: str) -> str:
    """Raises ConfigError where none recognises it."""
    for name, kind in KINDS.items():
        if kind.recognised(text):
            return name
    raise ConfigError("what this is was not recognised", hint=f"--from {'|'.join(KINDS)}")


def convert(text: str, kind: str) -> Draft:
    """Raises ConfigError naming what cannot be read."""
    try:
        return KINDS[kind].read(text)
    except (KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"this is not of the form of {kind}: {error}") from error
