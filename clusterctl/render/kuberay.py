"""Render target `kuberay`. PURE.

no model      RayCluster
vllm          RayService: Ray Serve's LLM application starts vLLM
native        RayJob, whose entrypoint is the engine, and a Service in front of it
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from clusterctl.errors import ConfigError
from clusterctl.raycluster import CPU_SLOT
from clusterctl.render import pods
from clusterctl.render.document import Asked, File, Rendered
from clusterctl.render.entry import Member, engine_argv
from clusterctl.render.pods import Manifest
from clusterctl.render.templates import fill, shell_words, yaml_block, yaml_text
from clusterctl.serving import native
from clusterctl.spec import ServeSpec

SERVE_PORT = 8000  # Ray Serve's own
_ROLE, _CLUSTER = "clusterctl.role", "clusterctl.cluster"


def render(asked: Asked) -> Rendered:
    _check(asked)
    manifests, more = _manifests(asked)
    left_out = (*pods.left_out(asked), *more)
    text = fill(
        "kuberay.yaml",
        yaml_text,
        kind=manifests[0]["kind"],
        name=pods.resource_name(asked.spec.name),
        model=asked.serve.model if asked.serve else None,
        secret=pods.secret_name(asked),
        manifests=manifests,
        left_out=left_out,
    )
    return Rendered("kuberay", (File("kuberay.yaml", text),), left_out)


def _check(asked: Asked) -> None:
    if asked.serve is not None and asked.serve.executor not in ("auto", "ray"):
        raise ConfigError(
            f"KubeRay is Ray, and executor {asked.serve.executor} runs without it",
            hint="clusterctl render lws, or --executor ray",
        )


def _manifests(asked: Asked) -> tuple[list[Manifest], tuple[str, ...]]:
    if asked.serve is None:
        return [_manifest(asked, "RayCluster", _cluster(asked))], ()
    if asked.serve.engine == native.ENGINE:
        return _job(asked), ()
    kwargs, unread = engine_kwargs(asked.serve)
    more = ["the API key: Ray Serve's ingress asks for none; put a gateway that does before it"]
    if asked.serve.port != SERVE_PORT:
        more.append(f"port {asked.serve.port}: Ray Serve listens on {SERVE_PORT}")
    more += [f"{word}: not a flag with a name" for word in unread]
    service = {"serveConfigV2": _application(asked, kwargs), "rayClusterConfig": _cluster(asked)}
    return [_manifest(asked, "RayService", service)], tuple(more)


def _manifest(asked: Asked, kind: str, spec: Manifest) -> Manifest:
    return {
        "apiVersion": "ray.io/v1",
        "kind": kind,
        "metadata": {"name": pods.resource_name(asked.spec.name)},
        "spec": spec,
    }


def _cluster(asked: Asked) -> Manifest:
    workers = len(asked.spec.nodes) - 1
    group = {
        "groupName": "workers",
        "replicas": workers,
        "minReplicas": workers,
        "maxReplicas": workers,
        "rayStartParams": _start_params(asked),
        "template": _template(asked, "worker"),
    }
    return {
        "authOptions": {"mode": "disabled" if asked.spec.ray.insecure else "token"},
        "headGroupSpec": {
            "rayStartParams": _start_params(asked),
            "template": _template(asked, "head"),
        },
        **({"workerGroupSpecs": [group]} if workers else {}),
    }


def _start_params(asked: Asked) -> dict[str, str]:
    if not asked.on_cpus:
        return {"num-gpus": str(asked.devices_per_node())}
    slots = json.dumps({CPU_SLOT: asked.devices_per_node()})
    return {"num-gpus": "0", "resources": json.dumps(slots)}  # quoted twice: a shell reads it


def _template(asked: Asked, role: Literal["head", "worker"]) -> Manifest:
    inside = pods.container(asked, f"ray-{role}", None)
    labels = {_CLUSTER: pods.resource_name(asked.spec.name), _ROLE: role}
    return {"metadata": {"labels": labels}, "spec": pods.pod(asked, inside)}


def _application(asked: Asked, kwargs: Manifest) -> str:
    serve = asked.deployment
    model = {
        "model_id": serve.served_model_name or serve.model,
        "model_source": serve.model,
    }
    config = {
        "model_loading_config": model,
        "deployment_config": {"num_replicas": 1},
        "engine_kwargs": kwargs,
    }
    application = {
        "name": "llm",
        "import_path": "ray.serve.llm:build_openai_app",
        "route_prefix": "/",
        "args": {"llm_configs": [config]},
    }
    return yaml_block({"applications": [application]}) + "\n"


def engine_kwargs(serve: ServeSpec) -> tuple[Manifest, list[str]]:
    """vLLM's arguments by name, and the words of `extra` that have none."""
    kwargs: Manifest = {
        "tensor_parallel_size": serve.tp,
        "pipeline_parallel_size": serve.pp,
        "distributed_executor_backend": "ray",
        "dtype": serve.dtype,
    }
    if serve.max_model_len:
        kwargs["max_model_len"] = serve.max_model_len
    flags, unread = _named(serve.extra)
    return kwargs | flags, unread


def _named(words: Sequence[str]) -> tuple[Manifest, list[str]]:
    """`--max-num-seqs 8 --enforce-eager` -> {"max_num_seqs": 8, "enforce_eager": True}"""
    found: Manifest = {}
    unread: list[str] = []
    name: str | None = None
    for word in words:
        match = re.fullmatch(r"--([a-z][a-z0-9-]*)(?:=(.*))?", word, re.DOTALL)
        if match:
            name = match[1].replace("-", "_")
            found[name] = True if match[2] is None else _value(match[2])
            name = name if match[2] is None else None
        elif name is not None:
            found[name], name = _value(word), None
        else:
            unread.append(word)
    return found, unread


def _value(text: str) -> Any:
    """A number or JSON as what it is, else text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _job(asked: Asked) -> list[Manifest]:
    serve = asked.deployment
    name = pods.resource_name(asked.spec.name)
    member = Member("head", "", "", api_host="0.0.0.0")
    job = {
        "entrypoint": str(shell_words(engine_argv(asked, member))),
        "submissionMode": "K8sJobMode",
        "rayClusterSpec": _cluster(asked),
    }
    selector = {_CLUSTER: name, _ROLE: "head"}
    return [
        _manifest(asked, "RayJob", job),
        pods.service(f"{name}-api", selector, serve.port),
    ]
