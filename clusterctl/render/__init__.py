"""The same cluster and deployment in the languages of other platforms: one module a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from clusterctl.render import compose, kuberay, lws, sanityjob, shell, slurm, systemd
from clusterctl.render.document import Asked, File, Rendered

__all__ = ["TARGETS", "Asked", "File", "Rendered"]

TARGETS: Mapping[str, Callable[[Asked], Rendered]] = {
    "shell": shell.render,
    "compose": compose.render,
    "systemd": systemd.render,
    "kuberay": kuberay.render,
    "lws": lws.render,
    "slurm": slurm.render,
    "k8s-job": sanityjob.render,
}
