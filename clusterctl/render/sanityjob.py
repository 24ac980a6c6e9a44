"""Render target `k8s-job`: the collective check of `clusterctl sanity` as an Indexed Job. PURE.

The check travels in a ConfigMap, so that any image with torch will do.
"""

from __future__ import annotations

import re
from importlib.resources import files

from clusterctl.render import pods
from clusterctl.render.document import Asked, File, Rendered
from clusterctl.render.pods import Manifest
from clusterctl.render.templates import fill, shell_words, yaml_text

HOME = "/opt/clusterctl"
PORT = 29500
_INDEX = "\0index"


def render(asked: Asked) -> Rendered:
    name = f"{pods.resource_name(asked.spec.name)}-sanity"
    left_out = pods.left_out(asked)
    text = fill(
        "k8s-job.yaml",
        yaml_text,
        name=name,
        nodes=len(asked.spec.nodes),
        manifests=[_code(name), _service(name), _job(asked, name)],
        left_out=left_out,
    )
    return Rendered("k8s-job", (File("k8s-job.yaml", text),), left_out)


def check_files() -> dict[str, str]:
    """The modules of the check: what its two entry points need of our own."""
    found: dict[str, str] = {}
    wanted = ["__init__", "sanity", "sanity_rank"]
    while wanted:
        module = wanted.pop(0)
        if f"{module}.py" not in found:
            text = files("engine").joinpath(f"{module}.py").read_text(encoding="utf-8")
            found[f"{module}.py"] = text
            wanted += re.findall(r"^from engine\.(\w+) import", text, re.MULTILINE)
    return found


def _code(name: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": check_files(),
    }


def _service(name: str) -> Manifest:
    """Gives the pods names, before they are ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"job-name": name},
            "ports": [{"name": "rendezvous", "port": PORT}],
        },
    }


def _job(asked: Asked, name: str) -> Manifest:
    nodes = len(asked.spec.nodes)
    inside = pods.container(asked, "sanity", _script(asked, name))
    kept = ("VLLM_API_KEY", "HF_TOKEN", "HF_HOME")
    inside["env"] = [one for one in inside["env"] if one["name"] not in kept]
    inside["env"].append({"name": "PYTHONPATH", "value": HOME})
    inside["volumeMounts"].append({"name": "check", "mountPath": f"{HOME}/engine"})
    pod = pods.pod(asked, inside, restartPolicy="Never", subdomain=name, affinity=_apart(name))
    pod["volumes"].append({"name": "check", "configMap": {"name": name}})
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "completionMode": "Indexed",
            "completions": nodes,
            "parallelism": nodes,
            "backoffLimit": 0,
            "template": {"metadata": {"labels": {"job-name": name}}, "spec": pod},
        },
    }


def _script(asked: Asked, name: str) -> str:
    first = f"{name}-0.{name}"
    argv = [
        *("python3", "-m", "engine.sanity", "--json"),
        *("--node-rank", _INDEX, "--nnodes", str(len(asked.spec.nodes))),
        *("--nproc-per-node", str(asked.devices_per_node())),
        *("--master-addr", first, "--master-port", str(PORT)),
        *("--backend", "gloo" if asked.on_cpus else "auto"),
    ]
    words = shell_words(argv, {_INDEX: '"$JOB_COMPLETION_INDEX"'})
    return f"set -eu\nuntil getent hosts {first} >/dev/null; do sleep 1; done\nexec {words}\n"


def _apart(name: str) -> Manifest:
    """One pod a host: what is to be tried is the way between hosts."""
    term = {
        "labelSelector": {"matchLabels": {"job-name": name}},
        "topologyKey": "kubernetes.io/hostname",
    }
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
