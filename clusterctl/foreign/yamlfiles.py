"""YAML of other tools: Ray's cluster launcher (provider local), sparkrun's cluster files."""

from __future__ import annotations

import shlex
from typing import Any

from clusterctl.errors import ConfigError
from clusterctl.foreign import dockerflags
from clusterctl.foreign.draft import Draft

Content = dict[str, Any]


def is_ray(content: Content) -> bool:
    return "provider" in content


def ray(content: Content) -> Draft:
    provider = content["provider"]
    if provider.get("type") != "local":
        raise ConfigError(
            f"provider {provider.get('type')} makes machines; clusterctl takes those there are",
            hint="only `provider: {type: local}` names hosts",
        )
    draft = Draft()
    if "cluster_name" in content:
        draft.data["name"] = content["cluster_name"]
    draft.rest(provider, {"type", "head_ip", "worker_ips"})
    auth = content.get("auth", {})
    draft.rest(auth, {"ssh_user", "ssh_private_key"})
    for address in [provider["head_ip"], *provider.get("worker_ips", [])]:
        draft.hosts.append(_host(address, auth.get("ssh_user"), auth.get("ssh_private_key")))
    _ray_docker(draft, content.get("docker", {}))
    draft.rest(content, {"cluster_name", "provider", "auth", "docker"})
    return draft


def _ray_docker(draft: Draft, docker: Content) -> None:
    if "image" in docker:
        draft.data["image"] = docker["image"]
    draft.rest(docker, {"image", "run_options", "pull_before_run"})
    env: dict[str, str] = {}
    for option in docker.get("run_options", []):
        dockerflags.read(draft, shlex.split(option), env)
    if env:
        draft.data["env"] = env


def is_sparkrun(content: Content) -> bool:
    return isinstance(content.get("hosts"), list)


def sparkrun(content: Content) -> Draft:
    draft = Draft()
    if "name" in content:
        draft.data["name"] = content["name"]
    for address in content["hosts"]:
        draft.hosts.append(_host(address, content.get("user")))
    if "cache_dir" in content:
        draft.data["hf_home"] = content["cache_dir"]
    draft.rest(content, {"name", "hosts", "user", "cache_dir", "description"})
    return draft


def _host(address: str, user: str | None = None, identity: str | None = None) -> Content:
    entry = {
        "name": str(address).replace(":", "-"),
        "address": str(address),
        "user": user,
        "identity": identity,
    }
    return {key: value for key, value in entry.items() if value is not None}
