"""Flags of `docker run` -> what cluster.yaml says of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clusterctl.config.schema import is_secret
from clusterctl.foreign.draft import Draft, written_out

_ALONE = {"--privileged", "--rm", "-d", "--detach", "-it", "-i", "-t", "--init"}
_SHORT = {"-e": "--env", "-v": "--volume"}
_WHY = {
    "--privileged": "containers get what they need instead: /dev/infiniband, IPC_LOCK and memlock "
    "where the host has RDMA",
    "--cap-add": "a capability for profiling has no key; IPC_LOCK is given where there is RDMA",
    "--ulimit": "memlock and stack are set where the host has RDMA",
    "--device": "GPUs and RDMA devices are found on each host",
    "--gpus": "GPUs are given by `devices:`",
    "--shm-size": "`--ipc host` is used instead",
    "--ipc": "is `host` always",
    "--network": "is `host` always",
    "--name": "containers have names of their own",
    "--restart": "is `always`",
}
_SET_BY_UP = {"--rm", "-d", "--detach", "-it", "-i", "-t", "--init"}


def flags(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(flag, value) of `-e A=1`, `-eA=1`, `--env A=1`, `--env=A=1`; a bare flag has value ""."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        short = word[:2]
        if word in _ALONE or not word.startswith("-"):
            yield word, ""
        elif word.startswith("--") and "=" in word:
            flag, _, value = word.partition("=")
            yield flag, value
        elif short in _SHORT and len(word) > 2 and not word.startswith("--"):
            yield _SHORT[short], word[2:]
        else:
            yield _SHORT.get(word, word), rest.pop(0) if rest else ""


def read(draft: Draft, words: Sequence[str], env: dict[str, str]) -> None:
    """Into `env` and the draft's mounts; the rest is said."""
    for flag, value in flags(words):
        if flag == "--env":
            _variable(draft, value, env)
        elif flag == "--volume":
            _mount(draft, value)
        elif flag not in _SET_BY_UP:
            shown = f"{flag} {value}".strip()
            draft.lose(shown, _WHY.get(flag, "has no key in cluster.yaml"))


def _variable(draft: Draft, text: str, env: dict[str, str]) -> None:
    name, equals, value = text.partition("=")
    if is_secret(name):
        draft.lose_secret(name)
    elif not equals:
        draft.lose(f"-e {name}", "takes its value from the shell it is typed in")
    else:
        env[name] = written_out(value, name)


def _mount(draft: Draft, text: str) -> None:
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not (source.startswith("/") and target.startswith("/")):
        draft.lose(f"-v {text}", "only absolute paths of the host are mounted")
        return
    if target == "/root/.cache/huggingface":
        draft.data["hf_home"] = source
        return
    mount = f"{source}:{target}:ro" if "ro" in mode.split(",") else f"{source}:{target}"
    mounts = draft.data.setdefault("mounts", [])
    if mount not in mounts:
        mounts.append(mount)
