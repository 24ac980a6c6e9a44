"""The whole road: what real hosts answered -> HostFacts, and the script itself on this machine."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from clusterctl.errors import ClusterctlError, PreflightFailed
from clusterctl.facts.gather import PROBES, Question, parse_facts, probe_script
from clusterctl.facts.sections import Section, script, split
from clusterctl.facts.types import (
    Address,
    Disk,
    DockerFacts,
    Firewall,
    Gpu,
    GpuFacts,
    HostFacts,
    HostInfo,
    Interface,
    Listener,
)

RECORDED = Path(__file__).parents[1] / "data/facts"


def recorded(name: str) -> HostFacts:
    text = (RECORDED / f"{name}.txt").read_text()
    return parse_facts(name, text, sent=0.0, received=0.0)


def run(text: str, *, path: str | None = None) -> str:
    """The script on this machine, as a host would run it."""
    env = {**os.environ, "PATH": path or os.environ["PATH"]}
    done = subprocess.run(
        ["/bin/sh", "-s"], input=text, env=env, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


def test_a_host_with_docker() -> None:
    facts = recorded("debian-docker20")
    clock = facts.host.clock_offset_s
    assert facts == HostFacts(
        name="debian-docker20",
        host=HostInfo(
            hostname="debian-docker20",
            os="Debian GNU/Linux 12 (bookworm)",
            kernel="6.18.44",
            architecture="x86_64",
            user="root",
            home="/root",
            is_root=True,
            can_sudo=True,
            cpus=2,
            cpu_model="AMD EPYC",
            memory_bytes=24684084 * 1024,
            memory_available_bytes=23050684 * 1024,
            clock_offset_s=clock,
            hostname_resolves_to=("10.0.0.11",),
            ulimits=(
                ("memlock", "8192"),
                ("nofile", "1024"),
                ("stack", "8192"),
                ("nproc", "96365"),
            ),
            disks=(
                Disk("/var/lib/docker", 264212084 * 1024, 78443224 * 1024),
                Disk(
                    "/root/.cache/huggingface",
                    264212084 * 1024,
                    78562944 * 1024,
                    16281504,
                ),
                Disk("/dev/shm", 12342040 * 1024, 12342040 * 1024),
                Disk("/", 264212084 * 1024, 78443224 * 1024),
            ),
            selinux="disabled",
            numa_nodes=1,
            numa_balancing=False,
            kernel_options="BOOT_IMAGE=/boot/vmlinuz root=/dev/vda1 ro quiet",
            iommu_groups=0,
            preloaded="",
            ephemeral_ports=(32768, 60999),
            hf_home="/root/.cache/huggingface",
            hf_token=False,
        ),
        interfaces=(
            Interface(
                "lo",
                True,
                (Address("127.0.0.1", 8), Address("::1", 128)),
                65536,
                None,
                "00:00:00:00:00:00",
            ),
            Interface(
                "eth0",
                True,
                (Address("10.0.0.11", 24), Address("fe80::1", 64)),
                1500,
                10000,
                "02:00:00:00:00:01",
            ),
        ),
        gpu=GpuFacts(),
        docker=DockerFacts(
            version="20.10.24+dfsg1",
            api_version="1.41",
            root_dir="/var/lib/docker",
            runtimes=("io.containerd.runc.v2", "io.containerd.runtime.v1.linux", "runc"),
            cgroup_driver="cgroupfs",
            containers=(),
            cgroup_version="1",
        ),
        listeners=(Listener("0.0.0.0", 22, "sshd"), Listener("::", 22, "sshd")),
        rdma_ports=(),
        kernel_log=(),
        firewall=Firewall("ACCEPT"),
    )


def test_an_h200_without_docker_ip_or_ss() -> None:
    facts = recorded("h200")
    assert facts.gpu == GpuFacts(
        gpus=(
            Gpu(0, "nvidia", "NVIDIA H200", "GPU-00000001-0000-0000-0000-000000000000", 143771, 0),
        ),
        driver="580.159.04",
        cuda="13.0",
    )
    eth0 = next(interface for interface in facts.interfaces if interface.name == "eth0")
    assert eth0 == Interface(
        "eth0",
        True,
        (Address("10.0.0.2", 24), Address("fd00::1", 64), Address("fe80::2", 64)),
        1400,
        None,
        "02:00:00:00:00:01",
    )
    assert facts.listeners == (Listener("0.0.0.0", 2024),)
    assert facts.rdma_devices == ()
    assert dict(facts.host.ulimits)["memlock"] == "unlimited"
    assert facts.docker == DockerFacts(
        error="no Docker socket at /var/run/docker.sock: Docker is not installed"
    )


@pytest.mark.parametrize(
    ("name", "error", "needs_sudo"),
    [
        (
            "vm-without-docker",
            "no Docker socket at /var/run/docker.sock: is dockerd running?",
            False,
        ),
        (
            "docker-stopped",
            "Cannot connect to the Docker daemon at unix:///tmp/stale.sock. Is the docker daemon "
            "running?",
            False,
        ),
        (
            "user-without-docker-group",
            "this user may not open /tmp/stale.sock, nor use it through sudo: sh: 5: sudo: "
            "Permission denied",
            True,
        ),
        (
            "no-docker-client",
            "/run/docker.sock is there, but neither docker nor curl is, to ask it",
            False,
        ),
    ],
)
def test_docker_that_does_not_answer(name: str, error: str, needs_sudo: bool) -> None:
    assert recorded(name).docker == DockerFacts(error=error, needs_sudo=needs_sudo)


def test_docker_asked_through_curl_says_the_same() -> None:
    assert recorded("curl-only").docker == recorded("debian-docker20").docker


def test_without_tools_what_they_would_say_is_unknown_not_empty() -> None:
    facts = recorded("curl-only")
    assert facts.host.hostname_resolves_to is None
    assert facts.listeners is not None
    assert all(listener.process is None for listener in facts.listeners)


class TestOnThisMachine:
    def test_the_script_is_answered(self) -> None:
        sent = time.time()
        text = run(probe_script(Question("/nonexistent/docker.sock")))
        facts = parse_facts("here", text, sent=sent, received=time.time())
        assert facts.host.hostname == os.uname().nodename
        assert facts.host.kernel == os.uname().release
        assert facts.host.is_root == (os.geteuid() == 0)
        assert facts.host.cpus == os.cpu_count()
        assert facts.docker.error is not None
        assert "lo" in {interface.name for interface in facts.interfaces}

    def test_one_clock_is_not_ahead_of_itself(self) -> None:
        sent = time.time()
        text = run(probe_script(Question("/nonexistent")))
        received = time.time()
        offset = parse_facts("here", text, sent=sent, received=received).host.clock_offset_s
        assert offset is not None
        assert abs(offset) <= received - sent

    def test_a_quoted_socket_path_runs_nothing(self, tmp_path: Path) -> None:
        facts = parse_facts(
            "here",
            run(probe_script(Question(f"/x'; touch {tmp_path}/made; '"))),
            sent=0.0,
            received=0.0,
        )
        assert facts.docker.error is not None
        assert not (tmp_path / "made").exists()


class TestSections:
    def test_each_probe_keeps_its_streams_and_its_exit_code(self) -> None:
        text = run(script({"a": "echo out; echo err >&2; exit 3", "b": "cat"}, {"V": "a 'b'"}))
        assert split(text) == {"a": Section("out\n", "err", 3), "b": Section("", "", 0)}

    def test_variables_reach_the_probes(self) -> None:
        text = run(script({"a": 'printf "%s" "$V"'}, {"V": "a 'b' $c"}))
        assert split(text)["a"].stdout == "a 'b' $c"

    def test_a_missing_tool_is_127(self) -> None:
        assert split(run(script({"a": "no-such-tool"}, {})))["a"].exit_code == 127

    def test_greetings_around_sections_are_ignored(self) -> None:
        text = "Welcome!\n" + run(script({"a": "echo 1"}, {})) + "\nlogout\n"
        assert split(text) == {"a": Section("1\n", "", 0)}

    def test_a_complaint_is_the_tools_own_words(self) -> None:
        assert Section("", "a: no\nsuch thing\n", 1).complaint == "a: no such thing"
        assert Section("said on stdout", "", 9).complaint == "said on stdout"
        assert Section("", "", 9).complaint == "exited 9"
        assert Section("", "", 124).complaint == "no answer within 15 s"


def test_an_answer_that_ends_early_is_an_error() -> None:
    text = (RECORDED / "debian-docker20.txt").read_text()
    with pytest.raises(ClusterctlError) as caught:
        parse_facts("gpu01", text[: text.index("@@clusterctl begin rdma")], sent=0.0, received=0.0)
    assert caught.value.message == "the host's answer about itself ends before 'rdma'"
    assert caught.value.host == "gpu01"


def test_a_machine_that_is_no_linux_is_refused() -> None:
    text = (RECORDED / "h200.txt").read_text().replace("\nLinux\n", "\nDarwin\n", 1)
    with pytest.raises(PreflightFailed, match="this is a Darwin machine"):
        parse_facts("mac", text, sent=0.0, received=0.0)


def test_every_recorded_host_is_read() -> None:
    names = sorted(path.stem for path in RECORDED.glob("*.txt"))
    assert len(names) >= 7
    for name in names:
        assert recorded(name).host.memory_bytes > 0


def test_the_probe_changes_nothing() -> None:
    """No redirection into a file, nothing that installs, writes or starts."""
    for text in PROBES.values():
        assert ">" not in text.replace("2>/dev/null", "").replace(">/dev/null 2>&1", "")
