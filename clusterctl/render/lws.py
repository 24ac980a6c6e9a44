"""Render target `lws`: a LeaderWorkerSet. PURE."""

from __future__ import annotations

from typing import Any, Literal

from clusterctl.render import pods
from clusterctl.render.document import Asked, File, Rendered
from clusterctl.render.entry import ADDRESS, HEAD, RANK, Member, script
from clusterctl.render.templates import fill, yaml_text

_VARIABLES = {
    HEAD: '"$LWS_LEADER_ADDRESS"',
    ADDRESS: '"$VLLM_HOST_IP"',
    RANK: '"$LWS_WORKER_INDEX"',
}
_NAME = "leaderworkerset.sigs.k8s.io/name"
_INDEX = "leaderworkerset.sigs.k8s.io/worker-index"


def render(asked: Asked) -> Rendered:
    serve, nodes = asked.deployment, len(asked.spec.nodes)
    name = pods.resource_name(asked.spec.name)
    left_out = pods.left_out(asked)
    leader, worker = _template(asked, "head"), _template(asked, "worker")
    text = fill(
        "lws.yaml",
        yaml_text,
        name=name,
        model=serve.model,
        secret=pods.secret_name(asked),
        ray_token=bool(pods.ray_token(asked)),
        size=nodes,
        leader=leader if nodes > 1 else None,
        worker=worker if nodes > 1 else leader,
        service=pods.service(name, {_NAME: name, _INDEX: "0"}, serve.port),
        left_out=left_out,
    )
    return Rendered("lws", (File("lws.yaml", text),), left_out)


def _template(asked: Asked, role: Literal["head", "worker"]) -> dict[str, Any]:
    member = Member(
        role=role,
        address=ADDRESS,
        head=HEAD,
        api_host="0.0.0.0",
        rank=0 if role == "head" else RANK,
        devices=asked.devices_per_node(),
        variables=_VARIABLES,
    )
    api = {"ports": [{"containerPort": asked.deployment.port}], "readinessProbe": _probe(asked)}
    inside = pods.container(
        asked, "engine", script(asked, member), **(api if role == "head" else {})
    )
    inside["env"] = [*inside["env"], *pods.ray_token(asked)]
    return {"spec": pods.pod(asked, inside)}


def _probe(asked: Asked) -> dict[str, Any]:
    return {"httpGet": {"path": "/health", "port": asked.deployment.port}, "periodSeconds": 10}
