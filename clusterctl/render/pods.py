"""What every Kubernetes target has in common: a node of the cluster as a pod. PURE."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from clusterctl.launch import HF_TARGET
from clusterctl.render.declared import declares_rdma
from clusterctl.render.document import Asked
from clusterctl.render.templates import no_expansion
from clusterctl.serving.vllm import API_KEY_VARIABLE
from clusterctl.spec import MountSpec

Manifest = dict[str, Any]

_POD_ADDRESS = {"name": "VLLM_HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}


def resource_name(name: str) -> str:
    """As Kubernetes names things: lower case, digits and '-', with room for what is appended."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "cluster"


def secret_name(asked: Asked) -> str:
    return f"{resource_name(asked.spec.name)}-secrets"


def container(asked: Asked, name: str, script: str | None, **more: Any) -> Manifest:
    """`script` None: the operator writes the command. `more`: further fields."""
    said: Manifest = {
        "name": name,
        "image": asked.spec.image,
        "command": ["bash", "-c", no_expansion(script)] if script else None,
        "env": environment(asked),
        "resources": resources(asked),
        "securityContext": _privileges(asked),
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},
            *(
                {"name": f"host-{index}", "mountPath": mount.target, "readOnly": mount.read_only}
                for index, mount in enumerate(mounts(asked))
            ),
        ],
        **more,
    }
    return {key: value for key, value in said.items() if value is not None}


def pod(asked: Asked, inside: Manifest, **more: Any) -> Manifest:
    volumes: list[Manifest] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    for index, mount in enumerate(mounts(asked)):
        volumes.append({"name": f"host-{index}", "hostPath": {"path": mount.source}})
    return {**more, "containers": [inside], "volumes": volumes}


def environment(asked: Asked) -> list[Manifest]:
    spec = asked.spec
    own = {"HF_HOME": HF_TARGET, **_proxies(asked), **spec.env}
    return [
        _POD_ADDRESS,
        *({"name": name, "value": no_expansion(value)} for name, value in own.items()),
        secret_variable(asked, API_KEY_VARIABLE, "api-key", optional=asked.serve is None),
        secret_variable(asked, "HF_TOKEN", "hf-token", optional=True),
    ]


def ray_token(asked: Asked) -> list[Manifest]:
    """Where no operator sees to it."""
    if asked.spec.ray.insecure or asked.without_ray:
        return []
    mode = {"name": "RAY_AUTH_MODE", "value": "token"}
    return [mode, secret_variable(asked, "RAY_AUTH_TOKEN", "ray-token", optional=False)]


def secret_variable(asked: Asked, variable: str, key: str, *, optional: bool) -> Manifest:
    reference = {"name": secret_name(asked), "key": key, "optional": optional}
    return {"name": variable, "valueFrom": {"secretKeyRef": reference}}


def _proxies(asked: Asked) -> Mapping[str, str]:
    said = asked.spec.proxies
    named = {"HTTP_PROXY": said.http, "HTTPS_PROXY": said.https, "NO_PROXY": said.no_proxy}
    return {name: value for name, value in named.items() if value is not None}


def resources(asked: Asked) -> Manifest | None:
    if asked.on_cpus:
        return None
    return {"limits": {"nvidia.com/gpu": str(asked.devices_per_node())}}


def _privileges(asked: Asked) -> Manifest | None:
    return {"capabilities": {"add": ["IPC_LOCK"]}} if declares_rdma(asked.spec) else None


def mounts(asked: Asked) -> tuple[MountSpec, ...]:
    spec = asked.spec
    return (
        *([MountSpec(spec.hf_home, HF_TARGET)] if spec.hf_home else []),
        *(MountSpec(path, path, read_only=True) for path in spec.model_dirs),
        *spec.mounts,
    )


def left_out(asked: Asked) -> tuple[str, ...]:
    """What a pod has no place for."""
    spec = asked.spec
    said = []
    if own := [node.name for node in spec.nodes if node.env]:
        said.append(f"env of {', '.join(own)} alone: all pods of a group are alike")
    if spec.network.interface:
        said.append(
            f"network.interface {spec.network.interface}: it is the hosts', pods have their own"
        )
    if spec.hf_home is None:
        said.append("a volume for models that are downloaded: declare hf_home")
    if declares_rdma(spec):
        said.append("the RDMA device plugin's resource, whose name is the cluster's own: add it")
    return tuple(said)


def service(name: str, selector: Mapping[str, str], port: int) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "selector": dict(selector),
            "ports": [{"name": "http", "port": port, "targetPort": port}],
        },
    }
