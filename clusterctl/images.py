"""The image on every host: brought there, and asked what it holds."""

from __future__ import annotations

import json
from collections.abc import Sequence

from clusterctl.errors import ClusterctlError, PreflightFailed, Unreachable
from clusterctl.events import Event, Report
from clusterctl.journal import Journal
from clusterctl.links import HostLink
from clusterctl.preflight import ImageContents
from clusterctl.runtime import PullProgress
from clusterctl.session import Session, results

# Metadata only: importing torch and ray would cost ten seconds a host.
_PROBE = """
import importlib.metadata, json, platform
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
nccl = version("nvidia-nccl-cu13") or version("nvidia-nccl-cu12")
held = [version("ray"), version("torch"), version("vllm"), nccl]
print(json.dumps([platform.python_version(), *held]))
"""


def pull(session: Session, image: str, names: Sequence[str], report: Report) -> None:
    """On all these hosts at once. Raises PreflightFailed naming every host that cannot get it."""

    def bring(link: HostLink) -> None:
        def say(progress: PullProgress) -> None:
            report(
                Event("progress", "pull", progress.status, link.name, progress.done, progress.total)
            )

        report(Event("begin", "pull", image, link.name))
        try:
            link.runtime.pull(image, say)
        except Unreachable:
            raise
        except ClusterctlError as error:
            raise PreflightFailed(
                error.message,
                host=link.name,
                hint=error.hint or f"docker pull {image} on {link.name}, or --image with another",
            ) from error
        report(Event("done", "pull", image, link.name))

    results(session.each(bring, names))


def contents(
    session: Session, image: str, names: Sequence[str], journal: Journal
) -> dict[str, ImageContents]:
    """By host. Starts one short container on each, whose removal an undo waits for."""

    def look(link: HostLink) -> ImageContents:
        with journal.acting(link.name):
            return _contents(link, image)

    return results(session.each(look, names))


def _contents(link: HostLink, image: str) -> ImageContents:
    result = link.runtime.run_once(image, ["python3", "-c", _PROBE])
    if not result.ok:
        return ImageContents(None, None, None)
    return ImageContents(*json.loads(result.stdout.splitlines()[-1]))
