"""Names, addresses and paths of one testbed."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from .shell import Failure

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = Path("/var/cache/infercluster-testbed")  # survives `down`: root file systems, images
DATA = Path("/var/lib/infercluster-testbed")  # on a real file system, as overlayfs wants
RUN = Path("/run/infercluster-testbed")  # short paths, as unix sockets want

DEFAULT_NAME = "tb"
DEFAULT_SUBNET = 3
REGISTRY_PORT = 5000
IMAGE_VERSION = "1"
MAX_HOSTS = 99
MAX_NAME = 8  # an interface is called NAME-HOST, in 15 letters


@dataclass(frozen=True)
class Testbed:
    """One set of hosts on a bridge of its own; several live beside each other by name."""

    __test__ = False

    name: str
    subnet: int
    state: Path  # what people use: ssh_config, cluster.yaml, keys

    @property
    def address(self) -> str:
        """Our side of the bridge, where the registry listens."""
        return f"10.99.{self.subnet}.1"

    @property
    def bridge(self) -> str:
        return f"{self.name}-br"

    @property
    def registry(self) -> str:
        return f"{self.address}:{REGISTRY_PORT}"

    @property
    def data(self) -> Path:
        return DATA / self.name

    @property
    def run(self) -> Path:
        return RUN / self.name

    @property
    def cgroup(self) -> str:
        return f"/infercluster-{self.name}"

    @property
    def models(self) -> Path:
        """Shared by all testbeds of the machine, seen as /models on every host."""
        return DATA / "models"

    @property
    def shares(self) -> dict[str, Path]:
        """What every host sees of this machine, read-only."""
        return {"/models": self.models}

    @property
    def subnet_file(self) -> Path:
        return self.data / "subnet"

    @property
    def key(self) -> Path:
        return self.state / "id_ed25519"

    @property
    def ssh_config(self) -> Path:
        return self.state / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        return self.state / "known_hosts"

    @property
    def cluster_yaml(self) -> Path:
        return self.state / "cluster.yaml"

    def image(self, name: str) -> str:
        return f"{self.registry}/{name}:{IMAGE_VERSION}"

    def host(self, number: int) -> Host:
        return Host(self, f"gpu{number:02d}", f"10.99.{self.subnet}.{10 + number}")

    def builder(self) -> Host:
        """The host that builds images, so that the others really pull them."""
        return Host(self, "build", f"10.99.{self.subnet}.2")

    def hosts(self) -> list[Host]:
        """The hosts that exist, by the directories they left."""
        names = sorted(path.name for path in self.data.glob("hosts/gpu*"))
        return [self.host(int(name.removeprefix("gpu"))) for name in names]


@dataclass(frozen=True)
class Host:
    testbed: Testbed
    name: str
    address: str

    @property
    def data(self) -> Path:
        return self.testbed.data / "hosts" / self.name

    @property
    def upper(self) -> Path:
        """All that this host wrote into its root file system."""
        return self.data / "upper"

    @property
    def lower(self) -> Path:
        """Link to the root file system that it was first booted on: `upper` fits no other."""
        return self.data / "lower"

    @property
    def docker_root(self) -> Path:
        return self.data / "docker"

    @property
    def run(self) -> Path:
        return self.testbed.run / self.name

    @property
    def control(self) -> Path:
        return self.run / "control.sock"

    @property
    def log(self) -> Path:
        return self.run / "host.log"

    @property
    def namespace(self) -> str:
        return f"{self.testbed.name}-{self.name}"

    @property
    def cable(self) -> str:
        """The end of its network cable that is plugged into the bridge."""
        return f"{self.testbed.name}-{self.name}"

    @property
    def cgroup(self) -> str:
        return f"{self.testbed.cgroup}/{self.name}"


def testbed(name: str, subnet: int | None, state: Path | None) -> Testbed:
    if not re.fullmatch(rf"[a-z][a-z0-9]{{0,{MAX_NAME - 1}}}", name):
        raise Failure(f"--name {name}: up to {MAX_NAME} small letters and digits, a letter first")
    recorded = DATA / name / "subnet"
    if recorded.exists():
        subnet = int(recorded.read_text())
    chosen = _default_subnet(name) if subnet is None else subnet
    if chosen not in range(256):
        raise Failure(f"--subnet {chosen}: the N of 10.99.N.0/24")
    return Testbed(name, chosen, (state or _default_state(name)).resolve())


def _default_subnet(name: str) -> int:
    if name == DEFAULT_NAME:
        return DEFAULT_SUBNET
    return DEFAULT_SUBNET + 1 + zlib.crc32(name.encode()) % 200


def _default_state(name: str) -> Path:
    home = REPOSITORY / ".testbed"
    return home if name == DEFAULT_NAME else home / name
