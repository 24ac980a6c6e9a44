"""The host's Docker, asked through its own client, or through curl where there is none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from clusterctl.facts.sections import NOT_FOUND, Section
from clusterctl.facts.types import DockerFacts

SOCKET = "DOCKER_SOCKET"  # the variable that the probes read

_ASK = """
S=$DOCKER_SOCKET sudo=
[ -S "$S" ] || exit 66
[ -w "$S" ] || sudo='sudo -n'
ask() {
  if command -v docker >/dev/null 2>&1; then $sudo docker -H "unix://$S" "$1" --format '{{json .}}'
  elif command -v curl >/dev/null 2>&1; then $sudo curl -sS --unix-socket "$S" "http://localhost/$1"
  else exit 127; fi
}
"""
NO_SOCKET = 66

PROBES: Mapping[str, str] = {
    "docker_installed": "command -v dockerd || command -v docker",
    "docker_access": '[ ! -e "$DOCKER_SOCKET" ] || [ -w "$DOCKER_SOCKET" ] || echo sudo',
    "docker_info": f"{_ASK}ask info",
    "docker_version": f"{_ASK}ask version",
    "disks": f"""
root=$({_ASK}ask info 2>/dev/null | sed -n 's/.*"DockerRootDir":"\\([^"]*\\)".*/\\1/p')
for path in "$root" /dev/shm /; do
  [ -e "$path" ] && printf '%s\\t%s\\n' "$path" "$(df -Pk "$path" | tail -n 1)"
done
exit 0""",
}


def parse_docker(sections: Mapping[str, Section], socket: str) -> DockerFacts:
    info, version = sections["docker_info"], sections["docker_version"]
    needs_sudo = sections["docker_access"].stdout.strip() == "sudo"
    installed = sections["docker_installed"].ok
    if error := _error(info, socket, installed=installed, needs_sudo=needs_sudo):
        return DockerFacts(needs_sudo=needs_sudo, error=error)
    return parse_info(json.loads(info.stdout), json.loads(version.stdout), needs_sudo=needs_sudo)


def _error(info: Section, socket: str, *, installed: bool, needs_sudo: bool) -> str | None:
    if info.exit_code == NO_SOCKET:
        state = "is dockerd running?" if installed else "Docker is not installed"
        return f"no Docker socket at {socket}: {state}"
    if info.exit_code == NOT_FOUND:
        return f"{socket} is there, but neither docker nor curl is, to ask it"
    if info.ok:
        return None
    if needs_sudo:
        return f"this user may not open {socket}, nor use it through sudo: {info.complaint}"
    return info.complaint


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
    )
