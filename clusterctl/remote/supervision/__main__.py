"""Ray, this node, and the way to or from the head."""

from __future__ import annotations

import argparse
import secrets
import signal
import socket
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

from .deployment import Deployment
from .node import Node, Report
from .processes import Group, say
from .raynodes import RayNodes
from .ways import Follow, Lead

POLL_S = 0.2
SHUTDOWN_GRACE_S = 5.0  # Docker kills ten seconds after it asked
SAID_AGAIN_S = 10.0
TOKEN_FILE = "secrets/ray_token"
CLIENT_PORT = "--ray-client-server-port="

stopping = threading.Event()


def completed(command: list[str], boot: str) -> list[str]:
    """With what is known in this container alone. Ray has its client server where there is grpc,
    and elsewhere refuses a port for it."""
    has_client = find_spec("grpc") is not None
    words = (word for word in command if has_client or not word.startswith(CLIENT_PORT))
    return [word.replace("{boot}", boot) for word in words]


class Ray:
    """`ray start`, once the head answers. Nothing to keep: it never ends."""

    def __init__(self, argv: list[str], wait_for: str | None) -> None:
        self._argv = argv
        self._wait_for = wait_for
        self._said_at: float | None = None
        self._group: Group | None = None
        self._never_began: int | None = None

    @property
    def exit_code(self) -> int | None:
        return self._group.exit_code if self._group else self._never_began

    def step(self) -> None:
        if not self._argv or self._group is not None or not self._head_answers():
            return
        try:
            self._group = Group(self._argv)
        except OSError as error:
            say(f"{self._argv[0]}: {error.strerror}".encode())
            self._never_began = 127

    def end(self) -> None:
        if self._group is not None:
            self._group.end(SHUTDOWN_GRACE_S)

    def _head_answers(self) -> bool:
        """Says what it waits for at first and then every ten seconds."""
        if self._wait_for is None:
            return True
        host, port = self._wait_for.rsplit(":", 1)
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError as error:
            now = time.monotonic()
            if self._said_at is None or now - self._said_at > SAID_AGAIN_S:
                self._said_at = now
                say(f"waiting for the head at {self._wait_for}: {error}".encode())
            return False
        return True


class Leading:
    """The head: it makes the orders."""

    def __init__(self, node: Node, home: Path, way: Lead | None) -> None:
        self._node = node
        self._way = way
        self._home = home
        self._deployments: dict[str, Deployment] = {}

    def step(self) -> None:
        for spec in sorted(self._node.root.glob("*/spec.json")):
            if spec.parent.name not in self._deployments:
                self._deployments[spec.parent.name] = self._deployment(spec.parent)
        reports: dict[str, Report] = self._way.reports() if self._way else {}
        reports[self._node.name] = {**self._node.report(), "heard": time.monotonic()}
        for deployment in self._deployments.values():
            deployment.step(reports)
        if self._way:
            self._way.tell({name: one.order for name, one in self._deployments.items()})
        self._node.obey({name: one.own_order for name, one in self._deployments.items()})

    def close(self, cause: str, *, asked: bool) -> None:
        for deployment in self._deployments.values():
            deployment.close(cause, asked=asked)

    def _deployment(self, directory: Path) -> Deployment:
        ray = RayNodes(self._home / "ray_probe.py")
        return Deployment(directory, self._node.name, self._home / "crashes", ray)


class Following:
    """Any other node."""

    def __init__(self, node: Node, way: Follow) -> None:
        self._node = node
        self._way = way

    def step(self) -> None:
        self._way.tell(self._node.report())
        self._node.obey(self._way.orders())
        self._node.write_states()

    def close(self, cause: str, *, asked: bool) -> None:
        """What ends here ends the epoch of its group: the head sees that we are gone."""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Keeps what a node runs.")
    parser.add_argument("--wait-for", metavar="HOST:PORT")
    parser.add_argument("--node", default="this node", metavar="NAME")
    parser.add_argument("--group", metavar="HOST:PORT", help="where the head's supervisor listens")
    parser.add_argument("--lead", action="store_true", help="this is the head's")
    parser.add_argument("--stop-grace", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("command", nargs="*", help="what to keep running, after --")
    return parser.parse_args(argv)


def role(options: argparse.Namespace, node: Node, home: Path) -> Leading | Following:
    if options.group is None:
        return Leading(node, home, None)
    host, port = options.group.rsplit(":", 1)
    address, token = (host.strip("[]"), int(port)), (home / TOKEN_FILE).read_bytes().strip()
    if options.lead:
        return Leading(node, home, Lead(address, token))
    return Following(node, Follow(address, token))


def keep(ray: Ray, part: Leading | Following) -> None:
    """Until Ray ends or we are asked to end."""
    while ray.exit_code is None and not stopping.is_set():
        ray.step()
        part.step()
        stopping.wait(POLL_S)


def main(argv: list[str]) -> int:
    options = parse(argv)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    home = Path(__file__).resolve().parent.parent
    boot = secrets.token_hex(4)
    (home / "boot").write_text(boot)
    node = Node(options.node, boot, home / "deployments", options.stop_grace)
    part = role(options, node, home)
    ray = Ray(completed(options.command, boot), options.wait_for)
    keep(ray, part)
    code = ray.exit_code
    if code is None:
        part.close(f"{node.name}'s container was asked to end", asked=True)
    else:
        part.close(f"Ray on {node.name} ended with exit code {code}", asked=False)
    node.end(SHUTDOWN_GRACE_S)
    ray.end()
    return 128 + signal.SIGTERM if code is None else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
