"""Ray's own cluster launcher (`ray up`, local provider) on the hosts of the testbed.

It wants rsync on every machine, and ssh and rsync in the image, as rayproject's own have: they are
taken from this machine (the same Debian) before anything is timed.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

NAME = (
    "bench-launched"  # of the containers, and of the cluster in the launcher's state below /tmp/ray
)
PROGRAMS = ("/usr/bin/ssh", "/usr/bin/rsync")
DOCKERFILE = """\
FROM {image}
COPY tools.tar /tools.tar
RUN tar --extract --skip-old-files --file /tools.tar --directory / && rm /tools.tar
"""
START = "ray start {role} --num-gpus=0 --dashboard-host=127.0.0.1 --disable-usage-stats"
TIMEOUT_S = 300


class Launcher:
    """`addresses` by host, the head first. `config`: where its YAML goes."""

    def __init__(self, addresses: Mapping[str, str], ssh_config: Path, image: str) -> None:
        self.addresses = addresses
        self.ssh_config = ssh_config
        self.image = image
        self.config = ssh_config.with_name("ray-up.yaml")

    def prepare(self) -> None:
        """What is not timed: its tools on the hosts, its image, its configuration."""
        tools = tools_tar()
        with ThreadPoolExecutor(len(self.addresses)) as pool:
            list(pool.map(lambda host: self._prepare(host, tools), self.addresses))
        self.config.write_text(yaml.safe_dump(self._settings()))

    def _prepare(self, host: str, tools: bytes) -> None:
        self._ssh(host, "tar --extract --skip-old-files --directory /", tools)
        dockerfile = DOCKERFILE.format(image=self.image).encode()
        context = tar({"Dockerfile": dockerfile, "tools.tar": tools})
        self._ssh(host, f"docker build --quiet --tag {NAME} -", context)

    def up(self) -> None:
        """Returns when the head is there: its autoscaler then makes the workers."""
        ray = str(Path(sys.executable).with_name("ray"))
        # Ray 2.60's newer autoscaler takes a local provider's head for a worker to be, and then
        # asks for the last one for ever.
        done = subprocess.run(
            [ray, "up", "--yes", "--no-config-cache", str(self.config)],
            env={**os.environ, "RAY_UP_enable_autoscaler_v2": "0"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        if done.returncode:
            raise SystemExit(f"ray up: {done.stdout[-4000:]}{done.stderr[-4000:]}")

    def remove(self) -> None:
        """`ray down` ends containers one after the other, and is not what is measured."""
        with ThreadPoolExecutor(len(self.addresses)) as pool:
            remove = f"docker rm -f {NAME} >/dev/null 2>&1 || true"
            list(pool.map(lambda host: self._ssh(host, remove), self.addresses))
        for file in Path("/tmp/ray").glob(f"cluster-{NAME}.*"):
            file.unlink()

    def _ssh(self, host: str, command: str, stdin: bytes = b"") -> None:
        argv = ["ssh", "-F", str(self.ssh_config), "-l", "root", host, command]
        done = subprocess.run(argv, input=stdin, capture_output=True, timeout=TIMEOUT_S)
        if done.returncode:
            raise SystemExit(f"{host}: {command}: {done.stderr.decode()}")

    def _settings(self) -> dict[str, object]:
        """As Ray's documentation has it for an on-premise cluster with Docker."""
        head, *workers = self.addresses.values()
        key = re.search(r"IdentityFile (\S+)", self.ssh_config.read_text())
        if key is None:
            raise SystemExit(f"no IdentityFile in {self.ssh_config}")
        start = "--head --port=6379 --autoscaling-config=~/ray_bootstrap_config.yaml"
        return {
            "cluster_name": NAME,
            "provider": {"type": "local", "head_ip": head, "worker_ips": workers},
            "auth": {"ssh_user": "root", "ssh_private_key": key[1]},
            "min_workers": len(workers),
            "max_workers": len(workers),
            "docker": {
                "image": NAME,
                "container_name": NAME,
                "pull_before_run": False,
                "disable_automatic_runtime_detection": True,
                "disable_shm_size_detection": True,
                "run_options": [
                    *("--ipc=host", "--env=RAY_AUTH_MODE=disabled"),
                    "--env=RAY_enable_autoscaler_v2=0",
                ],
            },
            "head_start_ray_commands": [START.format(role=start)],
            "worker_start_ray_commands": [START.format(role="--address=$RAY_HEAD_IP:6379")],
        }


def tools_tar() -> bytes:
    return tar({path.lstrip("/"): Path(path).read_bytes() for path in closure(PROGRAMS)}, 0o755)


def closure(programs: Sequence[str]) -> Iterator[str]:
    """The programs and the libraries that they load, by paths without links in their directories
    (/lib is one)."""
    absent = [program for program in programs if not Path(program).exists()]
    if absent:
        raise SystemExit(f"{' '.join(absent)} is not here: apt-get install openssh-client rsync")
    said = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout
    libraries = re.findall(r"=> (/\S+)", said)
    for path in dict.fromkeys([*programs, *libraries]):
        yield os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def tar(files: Mapping[str, bytes], mode: int = 0o644) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            archive.addfile(entry, io.BytesIO(data))
    return packed.getvalue()
