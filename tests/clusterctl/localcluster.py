"""A cluster of directories: each node's container is a directory with a real supervisor over it,
and exec runs real processes. The engine in it is a stub, so that it starts in a moment."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from clusterctl.containers import LABEL_CLUSTER, ContainerFile, ContainerSpec
from clusterctl.enginepackage import EnginePackage
from clusterctl.errors import NotReady
from clusterctl.links import HostLink
from clusterctl.raycluster import ExpectedNode, ray_start_argv
from clusterctl.session import Session
from clusterctl.spec import ClusterSpec, NodeSpec
from clusterctl.transport.base import DEFAULT_TIMEOUT_S, Result
from clusterctl.transport.local import LocalTransport
from tests.fakes import FakeRuntime, Says, result_of

REMOTE = Path(__file__).parents[2] / "clusterctl/remote"

# What `engine serve` and `vllm serve` look like from outside. The model's directory says how they
# behave.
STUB_MAIN = """
import http.server, json, os, sys, time
from pathlib import Path
model = Path(sys.argv[2])
flags = dict(zip(sys.argv[3::2], sys.argv[4::2]))
if "--headless" in sys.argv:
    while not (model / "headless_breaks").exists():
        time.sleep(0.05)
    print("ValueError: the headless rank broke", flush=True)
    sys.exit(4)
if (model / "nccl").exists():
    print((model / "nccl").read_text(), flush=True)
if (model / "port_taken").exists():
    (model / "port_taken").unlink()
    print(f"RuntimeError: The server socket has failed to listen. port: {flags['--master-port']}, "
          "useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use")
    sys.exit(1)
file = flags.get("--api-key-file")
key = Path(file).read_text().strip() if file else os.environ["VLLM_API_KEY"]
print("INFO Loading safetensors shard 1/2", flush=True)
print("(RankActor pid=7, ip=127.0.0.3) INFO Loading safetensors shard 2/2", flush=True)
if (model / "breaks").exists():
    print("Traceback (most recent call last):")
    print("(RankActor pid=7, ip=127.0.0.3) torch.OutOfMemoryError: no room for 4 GiB")
    print("ERROR 01-01 00:00:00 rank 1: torch.OutOfMemoryError: no room for 4 GiB")
    sys.exit(3)
if (model / "leaves").exists():
    print("AssertionError: intermediate_tensors is not None")
    sys.exit(0)
print("INFO CPU KV cache size: 93,184 tokens", flush=True)

class Api(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"data": [{"id": flags["--served-model-name"]}]})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["model"] == flags["--served-model-name"]
        while (model / "mute").exists():
            time.sleep(0.05)
        self.answer({"choices": [{"text": " a"}], "usage": {"completion_tokens": 1}})
    def answer(self, content):
        allowed = self.headers["Authorization"] == f"Bearer {key}"
        content = content if allowed else {"error": {"message": "wrong key\\nreally"}}
        body = json.dumps(content).encode()
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass

server = http.server.ThreadingHTTPServer((flags["--host"], int(flags["--port"])), Api)
if "--ssl-certfile" in flags:
    import ssl
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(flags["--ssl-certfile"], flags["--ssl-keyfile"])
    server.socket = tls.wrap_socket(server.socket, server_side=True)
print("INFO Application startup complete.", flush=True)
server.serve_forever()
"""

STUB = EnginePackage(
    (
        ("engine/__init__.py", b""),
        ("engine/__main__.py", STUB_MAIN.encode()),
    )
)

STUB_VLLM_HELP = """
if sys.argv[2].startswith("--help"):
    print("--nnodes NNODES, -n NNODES  --headless, --no-headless  --data-parallel-size")
    sys.exit()
"""


class DirectoryRuntime(FakeRuntime):
    """FakeRuntime's book of containers, with real files and real processes in `home`."""

    def __init__(self, host: str, home: Path) -> None:
        super().__init__(host, images=["image"])
        self.home = str(home)  # type: ignore[misc]
        self.ray_status = "0.0/1.0 cpu_slot"

    def put_files(self, container_id: str, files: Iterable[ContainerFile]) -> None:
        self._call("put_files", container_id)
        for file in files:
            path = Path(file.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.draft")
            draft.write_bytes(file.data)
            draft.chmod(file.mode)
            draft.replace(path)

    def read_file(self, container_id: str, path: str) -> bytes | None:
        return Path(path).read_bytes() if Path(path).exists() else None

    def exec(
        self,
        container_id: str,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        check: bool = True,
    ) -> Result:
        self._running(container_id)
        if argv[0] == "ray":
            said = Says(self.ray_status)
        else:
            inside = {"PATH": f"{self.home}/bin:{os.environ['PATH']}"}
            inside["PYTHONPATH"] = f"{self.home}/site"
            inside["RAY_TMPDIR"] = self.home
            said = self._run(argv, stdin, {**os.environ, **inside, **(env or {})})
        return result_of(said, argv, host=self.host, timeout=timeout, check=check)

    def _run(self, argv: Sequence[str], stdin: bytes, env: Mapping[str, str]) -> Says:
        words = [sys.executable, *argv[1:]] if argv[0] == "python3" else list(argv)
        done = subprocess.run(words, input=stdin, env=env, capture_output=True, cwd=self.home)
        return Says(done.stdout.decode(), done.stderr.decode(), done.returncode)

    def inspect(self, container_id: str) -> Mapping[str, object]:
        spec = self._box(container_id).spec
        return {"Config": {"Entrypoint": None, "Cmd": list(spec.command)}}


class LocalCluster:
    """Nodes as directories, each with a supervisor; the first is the head. `vllm`: there is one in
    the image, and Ray may place it on this resource."""

    def __init__(
        self,
        root: Path,
        devices: Sequence[int],
        kind: Literal["gpu", "cpu"] = "cpu",
        vllm: str | None = None,
    ) -> None:
        names = [f"gpu{index:02}" for index in range(1, len(devices) + 1)]
        self.spec = ClusterSpec("c", tuple(NodeSpec(name, name) for name in names), names[0])
        self.runtimes: dict[str, DirectoryRuntime] = {}
        for number, (name, count) in enumerate(zip(names, devices, strict=True)):
            node = ExpectedNode(
                name, f"127.0.0.{2 + number}", "worker" if number else "head", kind, count
            )
            self.runtimes[name] = self._runtime(root / name, node)
            _install(root / name, vllm)
        self.head = self.runtimes[names[0]]
        self._way = f"127.0.0.2:{free_port()}"
        self.supervisors = [self._supervise(root / name) for name in names]

    def _runtime(self, home: Path, node: ExpectedNode) -> DirectoryRuntime:
        home.mkdir(parents=True)
        runtime = DirectoryRuntime(node.name, home)
        command = ("supervisor", "--", *ray_start_argv(node, "127.0.0.2", self.spec.ray))
        box = runtime.create(
            ContainerSpec(node.name, "image", command, labels={LABEL_CLUSTER: self.spec.name})
        )
        runtime.start(box)
        return runtime

    def _supervise(self, home: Path) -> subprocess.Popen[bytes]:
        shutil.copy(REMOTE / "supervisor.py", home)
        shutil.copytree(REMOTE / "supervision", home / "supervision")
        (home / "secrets").mkdir()
        (home / "secrets/ray_token").write_text("a token")
        lead = ["--lead"] if home.name == self.spec.head else []
        part = ["--stop-grace=1", "--node", home.name, "--group", self._way, *lead]
        inside = {"PATH": f"{home}/bin:{os.environ['PATH']}", "RAY_TMPDIR": str(home)}
        return subprocess.Popen(
            [sys.executable, str(home / "supervisor.py"), *part, "--", "sleep", "1000"],
            env={**os.environ, **inside},
            stdout=subprocess.DEVNULL,
        )

    def session(self) -> Session:
        links = {
            node.name: HostLink(node, LocalTransport(node.name), self.runtimes[node.name])
            for node in self.spec.nodes
        }
        return Session(self.spec, links)

    def path(self, *parts: str) -> Path:
        return Path(self.head.home, *parts)

    def state(self, name: str, node: str = "gpu01") -> dict[str, Any]:
        return self._read(name, node, "state.json")

    def given(self, name: str, node: str = "gpu01") -> dict[str, Any]:
        """What this node's supervisor was told."""
        return self._read(name, node, "spec.json")

    def _read(self, name: str, node: str, file: str) -> dict[str, Any]:
        path = Path(self.runtimes[node].home, "deployments", name, file)
        said: dict[str, Any] = json.loads(path.read_text())
        return said

    def close(self) -> None:
        for supervisor in self.supervisors:
            supervisor.terminate()
        for supervisor in self.supervisors:
            supervisor.wait(timeout=30)


def _install(home: Path, vllm: str | None) -> None:
    """What the image of a node holds besides this test's Python."""
    (home / "bin").mkdir()
    (home / "bin/python3").symlink_to(sys.executable)
    if vllm is None:
        return
    program = home / "bin/vllm"
    program.write_text(f"#!{sys.executable}\nimport sys\n{STUB_VLLM_HELP}{STUB_MAIN}")
    program.chmod(0o755)
    metadata = home / "site/vllm-0.32.0.dist-info/METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")
    (home / "site/vllm").mkdir()
    (home / "site/vllm/platforms.py").write_text(
        f"class current_platform: ray_device_key = {vllm!r}\n"
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.2", 0))
        return int(listener.getsockname()[1])


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise NotReady("the test waited in vain")
        time.sleep(0.05)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterable[LocalCluster]:
    made = LocalCluster(tmp_path / "nodes", devices=(1, 1))
    yield made
    made.close()
