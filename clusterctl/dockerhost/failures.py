"""What Docker's refusals mean, and what to do about each. PURE, but for `translated`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import requests
import urllib3
from docker.errors import APIError, DockerException

from clusterctl.errors import ClusterctlError, CommandFailed, NotReady


class DockerUnavailable(ClusterctlError):
    """Docker's API cannot be spoken to on this host."""

    code = "docker"


class ImageMissing(ClusterctlError):
    """The image is not on the host, or not where it was to be pulled from."""

    code = "image"


class NameTaken(ClusterctlError):
    """Another container has this name."""

    code = "name_taken"


@dataclass(frozen=True)
class Meaning:
    """A refusal known by a part of its text (a regular expression, any case)."""

    sign: str
    message: str
    hint: str
    kind: type[ClusterctlError] = ClusterctlError


MEANINGS = (
    Meaning(
        "no space left on device",
        "the disk is full",
        "see `docker system df` there; `docker system prune` frees what nothing uses",
    ),
    Meaning(
        "could not select device driver|unknown or invalid runtime name: nvidia",
        "Docker cannot hand out GPUs on this host",
        "install nvidia-container-toolkit there, then `sudo nvidia-ctk runtime configure "
        "--runtime=docker && sudo systemctl restart docker`",
    ),
    Meaning(
        "is already in use by container",
        "the container's name is taken",
        "look at it with `docker inspect` there; `docker rm -f` it, or name the cluster otherwise",
        NameTaken,
    ),
    Meaning(
        "manifest unknown|manifest for .* not found|no matching manifest",
        "the registry has no such image for this host",
        "check the image's name, its tag, and that it is built for the host's architecture",
        ImageMissing,
    ),
    Meaning(
        "toomanyrequests",
        "the registry allows no more pulls for now",
        "`docker login` on that host raises the limit; or pull from a mirror",
    ),
    Meaning(
        "pull access denied|unauthorized|denied: |no basic auth credentials"
        "|authentication required",
        "the registry did not let this host pull the image",
        "check the name; for a private image, `docker login` on that host",
        ImageMissing,
    ),
    Meaning(
        "server gave http response to https client",
        "the registry speaks plain HTTP",
        "add it to `insecure-registries` in /etc/docker/daemon.json on that host",
    ),
    Meaning(
        "x509: |certificate signed by unknown authority",
        "this host does not trust the registry's certificate",
        "put its CA into /etc/docker/certs.d/REGISTRY/ca.crt on that host",
    ),
    Meaning(
        "connection refused|i/o timeout|no such host|no route to host|tls handshake timeout"
        "|proxyconnect|network is unreachable|context deadline exceeded|client.timeout exceeded",
        "this host cannot reach the registry",
        "Docker needs its own proxy settings: see `docker info` there for the ones it has",
    ),
    Meaning(
        "no such image",
        "the image is not on this host",
        "`docker pull` it there, or let `up` pull it",
        ImageMissing,
    ),
    Meaning(
        "bind source path does not exist",
        "a directory to be mounted is not on this host",
        "make it there, or take it out of `mounts` and `model_dirs`",
    ),
    Meaning(
        "error gathering device information",
        "a device to be passed in is not on this host",
        "look at it with `ls -l` there; `devices` of the container name it",
    ),
    Meaning(
        "error setting rlimit",
        "Docker may not raise a limit on this host",
        "raise LimitMEMLOCK of docker.service there, or lower the container's ulimits",
    ),
    Meaning(
        "executable file not found",
        "the image lacks the program that is to run",
        "use an image that has it",
    ),
)


def explain(text: str, host: str, doing: str) -> ClusterctlError:
    """Docker's own words as an error of ours; unknown ones stay as they are."""
    for meaning in MEANINGS:
        if re.search(meaning.sign, text, re.IGNORECASE):
            return meaning.kind(
                f"{doing}: {meaning.message} ({text})", host=host, hint=meaning.hint
            )
    return ClusterctlError(f"{doing}: {text}", host=host)


def unavailable(reasons: Sequence[ClusterctlError], host: str, socket: str) -> DockerUnavailable:
    """Every way to the socket failed: what they say together."""
    text = " | ".join(dict.fromkeys(_words(reason) for reason in reasons))
    if re.search("permission denied", text, re.IGNORECASE):
        return DockerUnavailable(
            f"this login may not use Docker's socket {socket} ({text})",
            host=host,
            hint="`sudo usermod -aG docker $USER` there, then log in again; "
            "or allow `sudo -n docker` without a password",
        )
    if re.search("docker: (command )?not found", text):
        return DockerUnavailable(
            f"there is no Docker on this host ({text})",
            host=host,
            hint="install Docker Engine there (https://docs.docker.com/engine/install)",
        )
    return DockerUnavailable(
        f"Docker does not answer on {socket} ({text})",
        host=host,
        hint="`sudo systemctl start docker` there; `sudo journalctl -u docker` says why it ended",
    )


def _words(reason: ClusterctlError) -> str:
    if isinstance(reason, CommandFailed):
        return (reason.result.stderr.strip() or reason.message).splitlines()[-1]
    return reason.message


@contextmanager
def translated(host: str, doing: str) -> Iterator[None]:
    """Whatever the SDK and what carries it raise becomes an error of ours that names the host."""
    try:
        yield
    except APIError as error:
        raise explain(str(error.explanation or error), host, doing) from error
    except BROKEN as error:
        if _is_timeout(error):
            raise NotReady(f"{doing}: Docker did not answer in time", host=host) from error
        raise ClusterctlError(
            f"{doing}: the talk with Docker broke off: {error}", host=host
        ) from error


BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, DockerException, OSError)
TOO_LATE = (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)


def _is_timeout(error: BaseException) -> bool:
    """requests calls a body that stops coming a ConnectionError, around the timeout."""
    return isinstance(error, TOO_LATE) or any(isinstance(inner, TOO_LATE) for inner in error.args)
