"""A real Docker Engine of our own, ended by its process id, with one tiny image."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

IMAGE = "clusterctl-test:1"
PROGRAMS = ("sh", "cat", "sleep", "stty", "ls", "tr", "env", "id", "stat", "touch")
PASSWD = b"root:x:0:0:root:/:/bin/sh\n"


def can_run() -> bool:
    return os.geteuid() == 0 and shutil.which("dockerd") is not None


class Dockerd:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = str(directory / "docker.sock")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Dockerd:
        log = (self.directory / "dockerd.log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [
                    *("dockerd", "--host", f"unix://{self.socket}"),
                    *("--data-root", str(self.directory / "data")),
                    *("--exec-root", str(self.directory / "exec")),
                    *("--pidfile", str(self.directory / "dockerd.pid")),
                    *("--storage-driver", "vfs", "--iptables=false", "--bridge=none"),
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self._wait()
        return self

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while self.docker("version").returncode:
            if time.monotonic() > deadline:
                raise TimeoutError((self.directory / "dockerd.log").read_text())
            time.sleep(0.1)

    def docker(self, *argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["docker", "--host", f"unix://{self.socket}", *argv], input=stdin, capture_output=True
        )

    def add_image(self, name: str = IMAGE) -> None:
        self.docker("import", "-", name, stdin=tiny_root()).check_returncode()

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait()
        subprocess.run(["umount", str(self.directory / "exec/netns/default")], capture_output=True)


def tiny_root() -> bytes:
    """A root file system of this machine's shell and a few programs, with their libraries."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", dereference=True) as tar:
        for file in sorted(_files()):
            tar.add(file, arcname=file.lstrip("/"))
        for name in ("tmp", "opt", "etc"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        passwd = tarfile.TarInfo("etc/passwd")
        passwd.size = len(PASSWD)
        tar.addfile(passwd, io.BytesIO(PASSWD))
    return packed.getvalue()


def _files() -> set[str]:
    programs = {f"/bin/{name}" for name in PROGRAMS}
    listed = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout
    return programs | set(re.findall(r"(/\S+\.so\S*)", listed))
