"""The batch script in a real Slurm: munged, slurmctld and slurmd of our own, on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from clusterctl.render import TARGETS, Asked
from clusterctl.spec import ClusterSpec, DevicesSpec, NodeSpec, RaySpec

pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]

START_S = 60.0
JOB_S = 180.0
PACKAGES = ["slurm-wlm", "munge"]


def port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        number: int = one.getsockname()[1]
        return number


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    if os.geteuid() != 0:
        pytest.skip("slurmd runs as root")
    if not (shutil.which("slurmd") and shutil.which("munged")):
        subprocess.run(["apt-get", "update", "-q"], check=True, capture_output=True)
        install = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *PACKAGES]
        subprocess.run(install, check=True, capture_output=True)


@contextmanager
def running(*argv: str | Path, log: Path, **environment: str) -> Iterator[None]:
    """A daemon in the foreground, ended by its own pid."""
    with log.open("wb") as said:
        process = subprocess.Popen(
            [*map(str, argv)], stdout=said, stderr=said, env={**os.environ, **environment}
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
SlurmctldPort={controller}
SlurmdPort={daemon}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands speak to it."""
    tmp_path.chmod(0o755)
    for folder in ("state", "spool", "munge"):
        (tmp_path / folder).mkdir(mode=0o700)
    key = tmp_path / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    settings = {"controller": port(), "daemon": port(), "cpus": os.cpu_count()}
    conf = tmp_path / "slurm.conf"
    conf.write_text(CONF.format(root=tmp_path, host=host, **settings))
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    sockets = ["--socket", tmp_path / "munge.socket", "--key-file", key]
    files = ["--pid-file", tmp_path / "munge" / "pid", "--seed-file", tmp_path / "munge" / "seed"]
    munge = [*sockets, *files, "--log-file", tmp_path / "munge" / "log", "--force"]
    with ExitStack() as daemons:
        daemons.enter_context(running("munged", "--foreground", *munge, log=tmp_path / "munged"))
        wait_until(lambda: (tmp_path / "munge.socket").exists(), tmp_path)
        for name in ("slurmctld", "slurmd"):
            log = tmp_path / f"{name}.log"
            daemons.enter_context(running(name, "-D", log=log, SLURM_CONF=str(conf)))
        wait_until(lambda: "idle" in asked(["sinfo", "-h", "-o", "%t"], environment), tmp_path)
        yield environment


def wait_until(seen: object, logs: Path) -> None:
    assert callable(seen)
    deadline = time.monotonic() + START_S
    while not seen():
        if time.monotonic() > deadline:
            said = {path.name: path.read_text()[-2000:] for path in logs.glob("*.log")}
            pytest.fail(f"Slurm did not start: {said}")
        time.sleep(0.2)


def asked(argv: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def test_a_job_forms_a_ray_that_answers(slurm: dict[str, str], tmp_path: Path) -> None:
    """sbatch -> srun -> a real `ray start --head`, which another step of the job asks for its
    nodes. Modules mode; `module` is a function that puts our environment on the PATH."""
    ray = port()
    spec = ClusterSpec(
        "batch",
        (NodeSpec("gpu01", "gpu01"),),
        "gpu01",
        devices=DevicesSpec("cpu", 2),
        env={"NOTE": """it's "$(touch /harm)" %x"""},
        ray=replace(RaySpec(), port=ray, dashboard_port=port()),
    )
    text = TARGETS["slurm"](Asked(spec, slurm="modules", modules=("ours",))).files[0].text
    script = tmp_path / "batch.sbatch"
    tools = Path(sys.executable).parent
    module = f'module() {{ [ "$*" = "load ours" ] && export PATH="{tools}:$PATH"; }}\n'
    script.write_text(text.replace("set -euo pipefail\n", f"set -euo pipefail\n{module}", 1))
    log = tmp_path / "out.log"
    line = ["sbatch", "--parsable", f"--output={log}", str(script)]
    done = subprocess.run(line, env=slurm, cwd=tmp_path, capture_output=True, text=True, check=True)
    job = done.stdout.strip()
    try:
        wait_for_line(log, "Ray runtime started", job, slurm)
        state = asked(["squeue", "-h", "-j", job, "-o", "%T"], slurm)
        assert state == "RUNNING"
        assert "0: " in log.read_text()  # srun --label
        assert not Path("/harm").exists()
    finally:
        subprocess.run(["scancel", job], env=slurm, check=True)
        deadline = time.monotonic() + START_S
        while asked(["squeue", "-h", "-j", job, "-o", "%T"], slurm):
            assert time.monotonic() < deadline, "the job did not end"
            time.sleep(0.5)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", ray), timeout=5)


def wait_for_line(log: Path, line: str, job: str, slurm: dict[str, str]) -> None:
    deadline = time.monotonic() + JOB_S
    while not (log.exists() and line in log.read_text()):
        said = log.read_text() if log.exists() else "no output"
        alive = asked(["squeue", "-h", "-j", job, "-o", "%T %r"], slurm)
        assert alive, f"the job ended: {said}"
        assert time.monotonic() < deadline, f"{alive}: {said}"
        time.sleep(0.5)
