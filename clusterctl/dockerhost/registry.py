"""The host's own login to a registry: what `docker pull` typed there would send."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from docker.auth import INDEX_NAME, resolve_index_name, resolve_repository_name

from clusterctl.transport.base import Transport

HUB = "https://index.docker.io/v1/"
READ_CONFIG = ("sh", "-c", 'cat "${DOCKER_CONFIG:-$HOME/.docker}/config.json"')

Login = Mapping[str, str]
NO_LOGIN: Login = {}


def host_login(transport: Transport, reference: str) -> Login:
    """For the X-Registry-Auth header; empty where the host has no login for this registry."""
    found = transport.run(READ_CONFIG, check=False)
    if not found.ok:
        return NO_LOGIN
    config = json.loads(found.stdout)
    registry = registry_of(reference)
    helper = helper_for(config, registry)
    return _ask(transport, helper, registry) if helper else stored_login(config, registry)


def registry_of(reference: str) -> str:
    """The registry as Docker's config names it."""
    index, _ = resolve_repository_name(reference)
    return HUB if index == INDEX_NAME else str(index)


def helper_for(config: Mapping[str, Any], registry: str) -> str | None:
    return config.get("credHelpers", {}).get(registry) or config.get("credsStore")


def stored_login(config: Mapping[str, Any], registry: str) -> Login:
    for name, entry in config.get("auths", {}).items():
        if _same_registry(name, registry) and entry.get("auth"):
            user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
            return {"username": user, "password": password, "serveraddress": registry}
    return NO_LOGIN


def _same_registry(name: str, registry: str) -> bool:
    return name == registry or resolve_index_name(_bare(name)) == resolve_index_name(
        _bare(registry)
    )


def _bare(name: str) -> str:
    return name.removeprefix("https://").removeprefix("http://").split("/")[0]


def _ask(transport: Transport, helper: str, registry: str) -> Login:
    said = transport.run(
        (f"docker-credential-{helper}", "get"), stdin=registry.encode(), check=False
    )
    if not said.ok:
        return NO_LOGIN
    answer = json.loads(said.stdout)
    if answer["Username"] == "<token>":
        return {"identitytoken": answer["Secret"], "serveraddress": registry}
    return {
        "username": answer["Username"],
        "password": answer["Secret"],
        "serveraddress": registry,
    }
