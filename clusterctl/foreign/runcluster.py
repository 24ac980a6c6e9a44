"""`bash run_cluster.sh IMAGE HEAD_IP --head|--worker HF_HOME [docker flags]`, a line a node."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from clusterctl.errors import ConfigError
from clusterctl.foreign import dockerflags
from clusterctl.foreign.draft import Draft, written_out

SCRIPT = "run_cluster.sh"
USAGE = f"{SCRIPT} IMAGE HEAD_IP --head|--worker HF_HOME [docker flags]"


def recognised(text: str) -> bool:
    return SCRIPT in text


def read(text: str) -> Draft:
    draft = Draft()
    environments: list[dict[str, str]] = []
    for words in _lines(text):
        _line(draft, words, environments)
    _environment(draft, environments)
    return draft


def _lines(text: str) -> Iterator[list[str]]:
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        at = [i for i, word in enumerate(words) if PurePosixPath(word).name == SCRIPT]
        if at:
            yield words[at[0] + 1 :]


def _line(draft: Draft, words: Sequence[str], environments: list[dict[str, str]]) -> None:
    if len(words) < 4 or words[2] not in ("--head", "--worker"):
        raise ConfigError(f"not a line of {SCRIPT}: {shlex.join(words)}", hint=USAGE)
    image, head, role, hf_home = words[:4]
    _same(draft, "image", written_out(image, "the image"))
    _same(draft, "hf_home", written_out(hf_home, "the Hugging Face home"))
    env: dict[str, str] = {}
    dockerflags.read(draft, words[4:], env)
    head = written_out(head, "the head's address")
    own = env.pop("VLLM_HOST_IP", head if role == "--head" else None)
    if own is None:
        draft.lose(f"a {role[2:]}", "without -e VLLM_HOST_IP=ADDRESS nothing says which host it is")
        return
    if role == "--head":
        draft.data["head"] = own
        if own != head:
            draft.lose(f"the head's address {head}", f"VLLM_HOST_IP {own} wins, as in {SCRIPT}")
    host = {"name": own.replace(":", "-"), "address": own, "cluster_address": own}
    draft.hosts.insert(0 if role == "--head" else len(draft.hosts), host)
    environments.insert(0 if role == "--head" else len(environments), env)


def _same(draft: Draft, key: str, value: str) -> None:
    """One value for all nodes: the first."""
    if draft.data.setdefault(key, value) != value:
        draft.lose(f"{key} {value}", f"all nodes have one, {draft.data[key]}")


def _environment(draft: Draft, environments: Sequence[Mapping[str, str]]) -> None:
    """What all nodes share is the cluster's; the rest is the host's own."""
    if not environments:
        return
    shared = dict(set.intersection(*(set(env.items()) for env in environments)))
    if shared:
        draft.data["env"] = {key: shared[key] for key in environments[0] if key in shared}
    for host, env in zip(draft.hosts, environments, strict=True):
        own = {key: value for key, value in env.items() if key not in shared}
        if own:
            host["env"] = own
