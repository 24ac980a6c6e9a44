"""The API of a deployment, or of any URL, ready to be asked from this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clusterctl import deployments
from clusterctl.apiclient import ApiClient, only, signed_by
from clusterctl.errors import ClusterctlError, ConfigError
from clusterctl.events import Report
from clusterctl.members import Member, head_of
from clusterctl.secret import Secret
from clusterctl.serving.records import Deployment
from clusterctl.session import Session
from clusterctl.spec import ClusterSpec
from clusterctl.tunnel import HERE, forwarded, to_api


def is_url(target: str | None) -> bool:
    return target is not None and target.startswith(("http://", "https://"))


@contextmanager
def api(
    target: str | None,
    key: Secret | None,
    spec: Callable[[], ClusterSpec],
    report: Report,
    ca_file: Path | None = None,
) -> Iterator[tuple[ApiClient, str]]:
    """A client of a URL, or of a deployment by name (None: the only one), and its first model.

    A deployment is reached over SSH, with the key that lies on its head unless one is given, and
    must show the certificate that it was served with. `ca_file`: who has signed that of a URL.
    """
    if target is not None and is_url(target):
        trust = signed_by(ca_file) if ca_file else None
        with ApiClient(with_version(target), key, trust=trust) as client:
            yield client, first_model(client)
        return
    if ca_file is not None:
        raise ConfigError("--ca-file belongs to a URL", hint="a deployment's certificate is known")
    wanted = spec()
    with Session.connect(wanted, names=[wanted.head], report=report) as session:
        head = head_of(session)
        chosen = deployments.choose(deployments.on_head(head, probe=0), target)
        forward = to_api(wanted.head, chosen, 0)
        with (
            forwarded(session.head, forward, report) as here,
            ApiClient(
                f"{here.scheme}://{HERE}:{here.local_port}/v1",
                key or key_of(head, chosen),
                trust=only(chosen.certificate) if chosen.certificate else None,
            ) as client,
        ):
            yield client, first_model(client)


def with_version(url: str) -> str:
    """`http://host:8000` is http://host:8000/v1."""
    return url.rstrip("/") if url.rstrip("/").endswith("/v1") else f"{url.rstrip('/')}/v1"


def first_model(client: ApiClient) -> str:
    models = client.models()
    if not models:
        raise ClusterctlError(f"{client.url} serves no model")
    return models[0]


def key_of(head: Member, deployment: Deployment) -> Secret | None:
    info = deployments.read_json(head, deployment.name, "info.json")
    data = head.link.runtime.read_file(head.container.id, info["api_key_file"])
    return Secret(data.decode().strip()) if data else None
