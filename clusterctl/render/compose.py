"""Render target `compose`: one file for all hosts, a profile for each. PURE.

One file, because it is then the same on every host and one thing to review; each host runs
`docker compose --profile NODE up -d`.
"""

from __future__ import annotations

from typing import Any

from clusterctl.containers import ContainerSpec
from clusterctl.render import declared
from clusterctl.render.document import Asked, File, Rendered
from clusterctl.render.entry import members, script
from clusterctl.render.templates import fill, yaml_text
from clusterctl.spec import MountSpec

TOKEN = "/run/secrets/ray_token"


def render(asked: Asked) -> Rendered:
    found = declared.containers(asked, supervised=False)
    spec = asked.spec
    services = {
        name: _service(asked, name, found.by_node[name], script(asked, member))
        for name, member in members(asked, found).items()
    }
    document: dict[str, Any] = {"services": services}
    if not spec.ray.insecure:
        document["secrets"] = {"ray_token": {"file": "./ray_token"}}
    text = fill(
        "compose.yaml",
        yaml_text,
        cluster=spec.name,
        head=spec.head,
        model=asked.serve.model if asked.serve else None,
        insecure=spec.ray.insecure,
        directories=found.made_directories(spec),
        left_out=found.left_out,
        document=_literal(document),
    )
    return Rendered("compose", (File("compose.yaml", text),), found.left_out)


def _literal(value: Any) -> Any:
    """Compose replaces $VARIABLE in every value."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, dict):
        return {key: _literal(one) for key, one in value.items()}
    return [_literal(one) for one in value] if isinstance(value, list) else value


def _service(asked: Asked, node: str, container: ContainerSpec, inside: str) -> dict[str, Any]:
    token = {} if asked.spec.ray.insecure else {"RAY_AUTH_TOKEN_PATH": TOKEN}
    service: dict[str, Any] = {
        "profiles": [node],
        "image": container.image,
        "container_name": container.name,
        "network_mode": "host",
        "ipc": container.ipc,
        "init": True,
        "user": container.user,
        "restart": container.restart,
        "environment": {**container.env, **token},
        "env_file": ["./secrets.env"],
        "secrets": [] if asked.spec.ray.insecure else ["ray_token"],
        "volumes": [_volume(mount) for mount in container.mounts],
        "devices": [f"{path}:{path}" for path in container.devices],
        "cap_add": [name.removeprefix("CAP_") for name in container.cap_add],
        "group_add": list(container.group_add),
        "ulimits": {one.name: {"soft": one.soft, "hard": one.hard} for one in container.ulimits},
        "deploy": _gpus(container.gpus),
        "entrypoint": ["bash", "-c"],
        "command": [inside],
    }
    return {key: value for key, value in service.items() if value not in ([], {}, None)}


def _volume(mount: MountSpec) -> dict[str, Any]:
    return {
        "type": "bind",
        "source": mount.source,
        "target": mount.target,
        "read_only": mount.read_only,
    }


def _gpus(gpus: str | None) -> dict[str, Any]:
    if gpus is None:
        return {}
    chosen: dict[str, Any] = {"count": "all"} if gpus == "all" else {"device_ids": gpus.split(",")}
    device = {"driver": "nvidia", **chosen, "capabilities": ["gpu"]}
    return {"resources": {"reservations": {"devices": [device]}}}
