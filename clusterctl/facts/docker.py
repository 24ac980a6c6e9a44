"""The host's Docker, asked through its own client, or through curl where there is none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from clusterctl.facts.sections import Section
from clusterctl.facts.types import DockerContainer, DockerFacts

SOCKET, IMAGE = "DOCKER_SOCKET", "IMAGE"  # the variables that the probes read

_ASK = """
S=$DOCKER_SOCKET sudo=
[ -S "$S" ] || exit 66
[ -w "$S" ] || sudo='sudo -n'
ask() {
  if command -v docker >/dev/null 2>&1; then $sudo docker -H "unix://$S" "$1" --format '{{json .}}'
  elif command -v curl >/dev/null 2>&1; then $sudo curl -sS --unix-socket "$S" "http://localhost/$1"
  else exit 67; fi
}
"""
NO_SOCKET, NO_CLIENT = 66, 67

PROBES: Mapping[str, str] = {
    "docker_installed": "command -v dockerd || command -v docker",
    "docker_access": '[ ! -e "$DOCKER_SOCKET" ] || [ -w "$DOCKER_SOCKET" ] || echo sudo',
    # One question, and the disk of the directory that its answer names: "PATH<tab>df's line".
    "docker_info": f"""{_ASK}
info=$(ask info); rc=$?
printf '%s\\n' "$info"
root=$(printf '%s' "$info" | sed -n 's/.*"DockerRootDir":"\\([^"]*\\)".*/\\1/p')
[ -n "$root" ] &&
  printf '%s\\t%s\\t%s\\n' "$root" "$(df -Pk "$root" | tail -n 1)" "$(df -Pi "$root" | tail -n 1)"
exit $rc""",
    "docker_version": f"{_ASK}ask version",
    "docker_containers": f"""{_ASK}
if command -v docker >/dev/null 2>&1; then
  $sudo docker -H "unix://$S" ps -a --no-trunc --format '{{{{json .}}}}'
else ask 'containers/json?all=1'; fi""",
    # Its id, or nothing where it is not there.
    "docker_image": f"""{_ASK}
[ -n "$IMAGE" ] || exit 3
if command -v docker >/dev/null 2>&1; then
  $sudo docker -H "unix://$S" image inspect --format '{{{{.Id}}}}' "$IMAGE"
else ask "images/$IMAGE/json" | sed -n 's/.*"Id":"\\(sha256:[0-9a-f]*\\)".*/\\1/p'; fi""",
}


def parse_docker(sections: Mapping[str, Section], socket: str) -> DockerFacts:
    info, version = sections["docker_info"], sections["docker_version"]
    needs_sudo = sections["docker_access"].stdout.strip() == "sudo"
    installed = sections["docker_installed"].ok
    failed = version if info.ok else info
    if error := _error(failed, socket, installed=installed, needs_sudo=needs_sudo):
        return DockerFacts(needs_sudo=needs_sudo, error=error)
    answer = json.loads(info.stdout.partition("\n")[0])
    return replace(
        parse_info(answer, json.loads(version.stdout), needs_sudo=needs_sudo),
        containers=parse_containers(sections["docker_containers"]),
        image_id=sections["docker_image"].text,
    )


def root_disk(info: Section) -> str:
    """The line of the disk that holds Docker's root, as host.parse_disks reads it."""
    return info.stdout.partition("\n")[2].strip()


def _error(asked: Section, socket: str, *, installed: bool, needs_sudo: bool) -> str | None:
    if asked.exit_code == NO_SOCKET:
        state = "is dockerd running?" if installed else "Docker is not installed"
        return f"no Docker socket at {socket}: {state}"
    if asked.exit_code == NO_CLIENT:
        return f"{socket} is there, but neither docker nor curl is, to ask it"
    if asked.ok:
        return None
    if needs_sudo:
        return f"this user may not open {socket}, nor use it through sudo: {asked.complaint}"
    return asked.complaint


def parse_info(
    info: Mapping[str, Any], version: Mapping[str, Any], *, needs_sudo: bool
) -> DockerFacts:
    """The API's /info and /version; the client wraps the latter's answer in "Server"."""
    server = version.get("Server", version)
    return DockerFacts(
        version=server["Version"],
        api_version=server["ApiVersion"],
        root_dir=info["DockerRootDir"],
        runtimes=tuple(sorted(info["Runtimes"])),
        cgroup_driver=info["CgroupDriver"] or None,
        http_proxy=info["HttpProxy"] or None,
        https_proxy=info["HttpsProxy"] or None,
        no_proxy=info["NoProxy"] or None,
        needs_sudo=needs_sudo,
        rootless="name=rootless" in info.get("SecurityOptions", ()),
        cgroup_version=info.get("CgroupVersion"),
    )


def parse_containers(asked: Section) -> tuple[DockerContainer, ...] | None:
    """`docker ps -a` as JSON lines, or the API's list."""
    if not asked.ok:
        return None
    text = asked.stdout.strip()
    rows = json.loads(text) if text.startswith("[") else map(json.loads, text.splitlines())
    return tuple(map(_container, rows))


def _container(row: Mapping[str, Any]) -> DockerContainer:
    """The client says ID, Names and Labels as one text; the API Id, a list and an object."""
    labels = row["Labels"] or {}
    if isinstance(labels, str):
        labels = dict(pair.partition("=")[::2] for pair in labels.split(","))
    names = row["Names"]
    return DockerContainer(
        id=row.get("ID") or row["Id"],
        name=(names if isinstance(names, str) else names[0]).lstrip("/"),
        image=row["Image"],
        state=row["State"],
        labels=labels,
    )
