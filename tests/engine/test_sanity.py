"""The collective check, with real processes over loopback and the lines of NCCL's own log."""

from __future__ import annotations

import json
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from engine.nccl_log import links, transports
from engine.sanity import BEGIN, VERDICT, RankProcess, Verdict, main, parse_args, spawn, supervise

CPU_STEPS = ["start", "rendezvous", "gloo all_reduce", "bandwidth"]


@pytest.fixture
def port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def verdicts(capsys: pytest.CaptureFixture[str]) -> list[Verdict]:
    return [Verdict.from_json(line) for line in capsys.readouterr().out.splitlines()]


def steps_of(rank: int, found: list[Verdict]) -> list[tuple[str, bool]]:
    return [(verdict.step, verdict.ok) for verdict in found if verdict.rank == rank]


def test_one_rank_passes_without_a_bandwidth(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--backend=gloo", f"--master-port={port}", "--json"]) == 0
    found = verdicts(capsys)
    assert steps_of(0, found) == [(step, True) for step in CPU_STEPS]
    assert found[-1].busbw_gb_s is None


def test_two_ranks_pass_with_a_bandwidth(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--backend=gloo", f"--master-port={port}", "--nproc-per-node=2", "--bytes=1048576"]
    assert main([*argv, "--json"]) == 0
    found = verdicts(capsys)
    assert steps_of(0, found) == steps_of(1, found) == [(step, True) for step in CPU_STEPS]
    speeds = [verdict.busbw_gb_s for verdict in found if verdict.step == "bandwidth"]
    assert all(speed is not None and speed > 0 for speed in speeds)


def test_a_device_is_timed_when_asked(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--backend=gloo", f"--master-port={port}", "--speed", "--json"]) == 0
    (timed,) = [one for one in verdicts(capsys) if one.step == "device speed"]
    assert timed.device == "CPU"
    assert timed.tflops is not None
    assert timed.memory_gb_s is not None
    assert min(timed.tflops, timed.memory_gb_s) > 0


def test_a_node_that_never_comes_is_named(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--backend=gloo", f"--master-port={port}", "--nnodes=2", "--timeout=2", "--json"]
    assert main(argv) == 1
    last = verdicts(capsys)[-1]
    assert (last.rank, last.step, last.ok, last.missing) == (0, "gloo all_reduce", False, (1,))
    assert last.detail == "rank 1 did not come within 2 s"


def test_a_lost_master_is_a_rendezvous_failure(
    port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--backend=gloo", f"--master-port={port}", "--nnodes=2", "--node-rank=1"]
    assert main([*argv, "--timeout=1", "--json"]) == 1
    assert steps_of(1, verdicts(capsys)) == [("start", True), ("rendezvous", False)]


def test_nccl_without_a_gpu_says_so(
    port: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["--backend=nccl", f"--master-port={port}", "--json"]) == 1
    (verdict,) = verdicts(capsys)
    assert (verdict.step, verdict.detail) == ("start", "local rank 0 has no GPU: torch sees 0")


def test_a_rank_that_stands_still_is_killed_and_named(port: int, tmp_path: Path) -> None:
    (rank,) = spawn(parse_args([f"--master-port={port}"]), tmp_path)
    os.kill(rank.pid, signal.SIGSTOP)
    found: list[Verdict] = []
    assert not supervise([rank], found.append, patience=0.1)
    assert [(v.rank, v.step, v.detail) for v in found] == [
        (0, "start", "did not answer and was killed")
    ]


def test_a_rank_that_dies_is_reported_with_its_code_and_last_words(tmp_path: Path) -> None:
    script = f"echo '{BEGIN}matmul'; echo 'CUDA error: out of memory'; exit 7"
    rank = RankProcess(5, ["sh", "-c", script], dict(os.environ), tmp_path / "no.log")
    found: list[Verdict] = []
    assert not supervise([rank], found.append, patience=60)
    assert [(v.rank, v.step, v.detail) for v in found] == [
        (5, "matmul", "the process ended with code 7: CUDA error: out of memory")
    ]


def test_the_last_verdict_carries_what_nccl_logged(tmp_path: Path) -> None:
    log = tmp_path / "nccl.log"
    log.write_text("h:1:2 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM\n")
    verdict = Verdict(0, "bandwidth", True, 1.0, 300.0)
    script = f"echo '{VERDICT}{verdict.to_json()}'"
    rank = RankProcess(0, ["sh", "-c", script], dict(os.environ), log)
    found: list[Verdict] = []
    assert supervise([rank], found.append, patience=60)
    via = "P2P/CUMEM"
    seen = {"transports": (via,), "links": ((0, 1, via),)}
    assert found == [replace(verdict, **seen)]


def test_a_failing_verdict_ends_with_what_nccl_warned_of(tmp_path: Path) -> None:
    log = tmp_path / "nccl.log"
    log.write_text(
        "h:1:2 [0] NCCL INFO Bootstrap: Using eth0\nh:1:2 [0] NCCL WARN no route\n"
        "h:1:2 [0] NCCL INFO init.cc:1 -> 2\n"
    )
    verdict = Verdict(0, "NCCL all_reduce", False, 1.0, detail="no end after 60 s")
    rank = RankProcess(
        0, ["sh", "-c", f"echo '{VERDICT}{verdict.to_json()}'"], dict(os.environ), log
    )
    found: list[Verdict] = []
    assert not supervise([rank], found.append, patience=60)
    assert found[0].detail == "no end after 60 s | NCCL: h:1:2 [0] NCCL WARN no route"


def test_a_verdict_survives_its_json() -> None:
    link = (0, 1, "NET/Socket")
    verdict = Verdict(2, "bandwidth", False, 1.5, None, "x", (1, 3), link[2:], links=(link,))
    assert Verdict.from_json(verdict.to_json()) == verdict
    assert json.loads(verdict.to_json())["missing"] == [1, 3]


def test_bus_bandwidth_counts_what_every_link_carries() -> None:
    from engine.sanity_rank import bus_bandwidth

    assert bus_bandwidth(world_size=4, num_bytes=2_000_000_000, seconds=1.0) == 3.0


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "h:1:9 [0] NCCL INFO Channel 00/0 : 1[0] -> 0[0] [send] via NET/IB/0/GDRDMA",
            "NET/IB/GDRDMA",
        ),
        (
            "h:1:9 [0] NCCL INFO Channel 01/0 : 8[0] -> 0[0] [send] via NET/IB/3(8)/GDRDMA/Shared",
            "NET/IB/GDRDMA/Shared",
        ),
        ("h:1:9 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[0] [send] via NET/Socket/0", "NET/Socket"),
        ("h:1:9 [1] NCCL INFO Channel 03/0 : 1[1] -> 0[0] via P2P/CUMEM/read", "P2P/CUMEM/read"),
        (
            "h:1:9 [1] NCCL INFO Channel 00 : 1[1] -> 0[0] via SHM/direct/direct",
            "SHM/direct/direct",
        ),
        (
            "h:1:9 [0] NCCL INFO Channel 00/0 : 9[1] -> 0[0] [receive] via NET/AWS Libfabric/0"
            "/GDRDMA comm 0x1 nRanks 16",
            "NET/AWS Libfabric/GDRDMA",
        ),
        (
            "h:1:9 [1] NCCL INFO Channel 00/0 : 1[b000] -> 0[a000] via P2P/direct pointer",
            "P2P/direct pointer",
        ),
        ("h:1:9 [0] NCCL INFO Connected NVLS tree", "NVLS"),
    ],
)
def test_nccl_lines_name_their_transport(line: str, expected: str) -> None:
    assert transports(line) == (expected,)


def test_the_busiest_transport_comes_first_and_noise_is_ignored() -> None:
    log = """
h:1:9 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [RO]; OOB eth0:10.0.0.1<0>
h:1:9 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[0] [send] via NET/Socket/0
h:1:9 [0] NCCL INFO Channel 00/0 : 0[0] -> 2[1] via P2P/IPC
h:1:9 [0] NCCL INFO Channel 01/0 : 0[0] -> 2[1] via P2P/IPC
"""
    assert transports(log) == ("P2P/IPC", "NET/Socket")


def test_each_way_between_two_ranks_is_told_once() -> None:
    log = """
h:1:9 [0] NCCL INFO Channel 00/0 : 0[0] -> 8[0] [send] via NET/IB/0/GDRDMA
h:1:9 [0] NCCL INFO Channel 01/0 : 0[0] -> 8[0] [send] via NET/IB/3/GDRDMA
h:1:9 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM
"""
    assert links(log) == ((0, 8, "NET/IB/GDRDMA"), (0, 1, "P2P/CUMEM"))


@pytest.mark.parametrize(
    ("log", "via"),
    [("nccl-p2p", "P2P/CUMEM"), ("nccl-shm", "SHM/direct/direct"), ("nccl-socket", "NET/Socket")],
)
def test_logs_of_two_h100(log: str, via: str) -> None:
    text = (Path(__file__).parents[1] / f"data/gpu/h100x2/{log}.log").read_text()
    assert transports(text) == (via,)
    assert set(links(text)) <= {(0, 1, via), (1, 0, via)}
