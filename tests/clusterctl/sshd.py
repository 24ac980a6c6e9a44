"""A real sshd of our own on the loopback: own keys, own port, ended by its process id."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import time
from pathlib import Path

from clusterctl.spec import NodeSpec, SshSpec

SSHD = "/usr/sbin/sshd"


class Sshd:
    """`options` are lines of sshd_config; `listen` may be 0.0.0.0 to answer on all of 127/8."""

    def __init__(self, directory: Path, *options: str, listen: str = "127.0.0.1") -> None:
        self.directory = directory
        self.port = free_port()
        self.listen = listen
        self.user = getpass.getuser()
        self.identity = make_key(directory / "user_key")
        self.host_key = make_key(directory / "host_key")
        self._write_config(options)
        self._process: subprocess.Popen[bytes] | None = None

    def _write_config(self, options: tuple[str, ...]) -> None:
        authorized = self.directory / "authorized_keys"
        authorized.write_text(public(self.identity) + "\n")
        lines = [
            f"ListenAddress {self.listen}:{self.port}",
            f"HostKey {self.host_key}",
            f"AuthorizedKeysFile {authorized}",
            f"PidFile {self.directory}/sshd.pid",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "StrictModes no",
            "UsePAM no",
            "SetEnv SHLVL=2",  # keeps Debian's bash from reading this user's .bashrc each time
            *options,
        ]
        (self.directory / "sshd_config").write_text("\n".join(lines) + "\n")

    def start(self) -> Sshd:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        log = (self.directory / "sshd.log").open("ab")
        config = str(self.directory / "sshd_config")
        with log:
            self._process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", config], stderr=log, stdin=subprocess.DEVNULL
            )
        wait_for_port(self.port)
        return self

    def stop(self) -> None:
        """The listener; what is connected goes on."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait()

    def connections(self) -> list[int]:
        """The process ids that serve a connection each."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def signal_connections(self, number: int) -> None:
        for pid in self.connections():
            os.kill(pid, number)

    def log(self) -> str:
        return (self.directory / "sshd.log").read_text()

    def known_hosts_line(self, name: str = "127.0.0.1") -> str:
        return f"[{name}]:{self.port} {public(self.host_key)}\n"

    def spec(self, known: str | None = None, config: str = "", **more: bool) -> SshSpec:
        """An SshSpec that sees nothing of this machine's own SSH configuration."""
        ssh_config = self.directory / "ssh_config"
        ssh_config.write_text(config)
        known_hosts = self.directory / "known_hosts"
        known_hosts.write_text(self.known_hosts_line() if known is None else known)
        return SshSpec(config=str(ssh_config), known_hosts=str(known_hosts), **more)

    def node(self, name: str = "gpu01", address: str = "127.0.0.1") -> NodeSpec:
        return NodeSpec(name, address, self.user, self.port, str(self.identity))


def make_key(path: Path, *, passphrase: str = "", kind: str = "ed25519") -> Path:
    keygen = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", path.name, "-f", str(path)]
    subprocess.run(keygen, check=True)
    return path


def public(key: Path) -> str:
    kind, text, *_ = Path(f"{key}.pub").read_text().split()
    return f"{kind} {text}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
