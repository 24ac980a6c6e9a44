"""A Slurm nodelist, and the .env of spark-vllm-docker."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from clusterctl.config.hostlist import expand
from clusterctl.config.schema import is_secret
from clusterctl.errors import ConfigError
from clusterctl.foreign.draft import Draft

_BRACKETS = re.compile(r"\[([^\]]*)\]")
_ASSIGNED = re.compile(r"^\s*(?:export\s+)?([A-Za-z_]\w*)=(.*)$")
_NODES = "CLUSTER_NODES"


def is_nodelist(text: str) -> bool:
    return re.fullmatch(r"\s*[\w.-]+(\[[\d,-]+\])?[\w.,\[\]-]*\s*", text) is not None


def nodelist(text: str) -> Draft:
    """`gpu[01-04,07],login1`, as SLURM_JOB_NODELIST has it."""
    draft = Draft()
    for part in re.split(r",(?![^\[]*\])", text.strip()):
        for name in _expanded(part):
            draft.hosts.append({"name": name})
    return draft


def _expanded(part: str) -> Iterator[str]:
    match = _BRACKETS.search(part)
    if match is None:
        yield part
        return
    for piece in match[1].split(","):
        if not re.fullmatch(r"\d+(-\d+)?", piece):
            raise ConfigError(f"{part}: {piece!r} is no number and no range")
        numbers = expand(f"[{piece}]") if "-" in piece else [piece]
        for number in numbers:
            yield from _expanded(part[: match.start()] + number + part[match.end() :])


def is_env_file(text: str) -> bool:
    return re.search(rf"^\s*(export\s+)?{_NODES}=", text, re.MULTILINE) is not None


def env_file(text: str) -> Draft:
    """The first of CLUSTER_NODES is the head; ETH_IF carries Ray, IB_IF names NCCL's adapters."""
    draft = Draft()
    said = dict(_assignments(text))
    for address in filter(None, re.split(r"[,\s]+", said[_NODES])):
        draft.hosts.append({"name": address, "cluster_address": address})
    if interface := said.get("ETH_IF"):
        draft.data["network"] = {"interface": interface}
    if adapters := said.get("IB_IF"):
        draft.data["env"] = {"NCCL_IB_HCA": adapters}
    for name in said:
        if is_secret(name):
            draft.lose_secret(name)
        elif name not in (_NODES, "ETH_IF", "IB_IF"):
            draft.lose(name, "has no key in cluster.yaml")
    return draft


def _assignments(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        if match := _ASSIGNED.match(line):
            yield match[1], " ".join(shlex.split(match[2], comments=True))
