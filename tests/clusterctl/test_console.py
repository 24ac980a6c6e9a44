"""What goes where: results to stdout, everything about the run to stderr."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from clusterctl import console
from clusterctl.containers import ContainerSpec
from clusterctl.errors import ClusterctlError
from clusterctl.events import Event, Stage
from clusterctl.launch import LaunchPlan, NodePlan
from clusterctl.raycluster import ExpectedNode, Formation, SeenNode

STATUS = {
    "schema_version": 1,
    "cluster": "demo",
    "verified": True,
    "nodes": [
        {
            "name": "gpu01",
            "address": "10.0.0.1",
            "role": "head",
            "state": "ready",
            "devices_expected": 8,
            "devices_seen": 8,
            "detail": "",
        },
        {
            "name": "gpu02",
            "address": "10.0.0.2",
            "role": "worker",
            "state": "failed",
            "devices_expected": 8,
            "devices_seen": 0,
            "detail": "container exited 127: ray: not found",
        },
    ],
    "deployments": [
        {
            "name": "llama",
            "model": "meta-llama/Llama-3.1-70B",
            "engine": "native",
            "tp": 8,
            "pp": 2,
            "state": "starting",
            "url": None,
            "since": None,
            "restarts": 0,
            "tokens_per_s": None,
            "kv_usage": None,
        }
    ],
}


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    yield
    console.configure()


UNKNOWN = (
    "demo: not known to be verified (no collective check of these containers: clusterctl sanity)"
)
HEADINGS = (
    "NAME   MODEL                     ENGINE  TP  PP  STATE     SINCE  RESTARTS  TOK/S  KV  URL"
)


def test_status_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    console.status(STATUS)
    assert capsys.readouterr().out == (
        "demo: verified\n"
        "NODE   ROLE    ADDRESS   STATE   DEVICES  DETAIL\n"
        "gpu01  head    10.0.0.1  ready   8/8\n"
        "gpu02  worker  10.0.0.2  failed  0/8      container exited 127: ray: not found\n"
        "\n"
        f"{HEADINGS}\n"
        "llama  meta-llama/Llama-3.1-70B  native  8   2   starting  -      0         -      -   -\n"
    )


def test_a_deployment_with_all_that_is_known_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    rank = {"node": "gpu02", "pid": 77, "title": "ray::RankActor", "state": "stopped"}
    used = {"cpu_s": 9.6, "busy": 0.98}
    record = STATUS["deployments"][0] | {
        "state": "restarting",
        "since": 1000.0,
        "restarts": 3,
        "tokens_per_s": 812.5,
        "kv_usage": 0.25,
        "ranks": [rank | used],
    }
    console.deployments([record], now=1000.0 + 7300)
    console.ranks([record])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[5:] == ["restarting", "2", "h", "3", "812.5", "25%", "-"]
    assert lines[2:] == [
        "DEPLOYMENT  NODE   PID  STATE    CPU   BUSY  PROCESS",
        "llama       gpu02  77   stopped  10 s  98%   ray::RankActor",
    ]


@pytest.mark.parametrize(
    ("verified", "verdict"),
    [
        (False, "demo: NOT verified"),
        (None, UNKNOWN),
    ],
)
def test_verdict(verified: bool | None, verdict: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.status({**STATUS, "verified": verified, "deployments": []})
    assert capsys.readouterr().out.splitlines()[0] == verdict


def test_formation_shows_expected_against_seen(capsys: pytest.CaptureFixture[str]) -> None:
    console.formation(
        Formation(
            (
                SeenNode("gpu01", "10.0.0.1", "head", "ready", 8, 8),
                SeenNode("gpu02", "10.0.0.2", "worker", "missing", 8, 0, "not in Ray"),
            )
        )
    )
    assert capsys.readouterr().out.splitlines()[2].split(maxsplit=5) == [
        "gpu02",
        "worker",
        "10.0.0.2",
        "missing",
        "0/8",
        "not in Ray",
    ]


def test_plan_ends_in_lines_to_paste(capsys: pytest.CaptureFixture[str]) -> None:
    expected = ExpectedNode("gpu01", "10.0.0.1", "head", "gpu", 8)
    node = NodePlan(expected, "create", "no container here", ContainerSpec("c", "i", ()), pull=True)
    line = "docker run -d " + "--env A=b " * 60 + "image"
    console.plan(LaunchPlan("demo", (node,)), {"gpu01": line})
    assert capsys.readouterr().out == (
        "NODE   ROLE  ADDRESS   ACTION        WHY\n"
        "gpu01  head  10.0.0.1  create, pull  no container here\n"
        f"\n# gpu01\n{line}\n"
    )


def test_only_the_last_column_gives_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    console.table(("ADDRESS", "WHY"), [("10.99.3.21", "one two three four five six seven")])
    assert capsys.readouterr().out == (
        "ADDRESS     WHY\n10.99.3.21  one two three four five six\n            seven\n"
    )


def test_text_of_hosts_is_never_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console.log_line("gpu01", "[bold]x[/bold] :smile: [fe80::1]:22")
    console.note("[red]no[/red]")
    captured = capsys.readouterr()
    assert captured.out == "gpu01 | [bold]x[/bold] :smile: [fe80::1]:22\n"
    assert captured.err == "[red]no[/red]\n"


def test_json_is_all_of_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    console.json(STATUS)
    assert json.loads(capsys.readouterr().out) == STATUS


def test_quiet_leaves_warnings_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    console.configure(quiet=True)
    console.note("noted")
    console.timeline([Stage("connect", 1.0)])
    with console.progress() as report:
        report(Event("begin", "connect", host="a"))
        report(Event("warn", "connect", "slow", host="a"))
    console.warn("careful")
    console.error(ClusterctlError("bad"))
    assert capsys.readouterr().err.splitlines()[0].endswith("a | connect: warning: slow")


def test_force_color_and_no_color(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    console.warn("x")
    assert "\x1b[33m" in capsys.readouterr().err
    console.configure(no_color=True)
    console.warn("x")
    assert "\x1b[33m" not in capsys.readouterr().err


def test_timeline_is_in_proportion(capsys: pytest.CaptureFixture[str]) -> None:
    pull = Stage("pull", 12.0, {"gpu01": 3.0, "gpu02": 11.5})
    console.timeline([Stage("connect", 0.5, {"gpu01": 0.5}), pull])
    assert capsys.readouterr().err == (
        "STAGE    TIME    SLOWEST HOST\n"
        "connect  0.5 s                 ━\n"
        "pull     12.0 s  gpu02 11.5 s  ━━━━━━━━━━━━━━━━━━━━━━━━\n"
    )


def test_a_timeline_stands_beside_the_one_before(capsys: pytest.CaptureFixture[str]) -> None:
    console.stages([Stage("facts", 1.0), Stage("pull", 2.0)], [Stage("facts", 3.0)])
    assert capsys.readouterr().out == (
        "STAGE  TIME   LAST   SLOWEST HOST\n"
        "facts  1.0 s  3.0 s                ━━━━━━━━━━━━\n"
        "pull   2.0 s  -                    ━━━━━━━━━━━━━━━━━━━━━━━━\n"
    )


def test_questions_without_a_terminal_are_not_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert not console.confirm("Replace gpu01?")
    assert console.ask_secret("API key") is None
    assert capsys.readouterr().err == ""


def test_progress_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress() as report:
        report(Event("begin", "connect", host="gpu01"))
        report(Event("done", "connect", "root@10.0.0.1", host="gpu01"))
        report(Event("progress", "pull", "Extracting", host="gpu02", done=3, total=8))
        report(Event("progress", "formation", "1/2 nodes; missing gpu02 10.0.0.2"))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [
        "gpu01 | connect: started",
        "gpu01 | connect: root@10.0.0.1",
        "gpu02 | pull 37%: Extracting",
        "cluster | formation: 1/2 nodes; missing gpu02 10.0.0.2",
    ]
    assert [stage.step for stage in report.stages] == ["connect", "pull", "formation"]


def test_many_threads_may_report(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress() as report:
        threads = [
            threading.Thread(target=report, args=(Event("note", "facts", "x", host=str(n)),))
            for n in range(50)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(capsys.readouterr().err.splitlines()) == 50


LIVE = """
from clusterctl import console
from clusterctl.events import Event, Stage
with console.progress() as report:
    report(Event("begin", "pull", "an image", host="gpu01"))
    for n in range(200):
        report(Event("warn", "pull", f"said {n}", host="gpu01"))
    END
"""


ASK = """
from clusterctl import console
from clusterctl.events import Event
with console.progress() as report:
    report(Event("begin", "lock", "held", host="gpu01"))
    answer = console.confirm("Go on?")
    report(Event("warn", "lock", f"answer {answer}", host="gpu01"))
"""


def on_a_terminal(program: str, typed: bytes = b"") -> str:
    """Everything the program wrote, with stdin and stderr a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(theirs)
    os.write(ours, typed)
    said = b""
    try:
        while chunk := os.read(ours, 65536):
            said += chunk
    except OSError:  # Linux says EIO when the other end is closed
        pass
    os.close(ours)
    process.wait(timeout=60)
    return said.decode()


def test_live_display_and_warnings_do_not_wait_for_each_other() -> None:
    said = on_a_terminal(LIVE.replace("END", "pass"))
    assert "gpu01 | pull: warning: said 199" in said
    assert said.rstrip().endswith("\x1b[2K")  # the picture is wiped


@pytest.mark.parametrize(("typed", "answer"), [(b"y\n", True), (b"\n", False), (b"no\n", False)])
def test_a_question_stops_the_picture(typed: bytes, answer: bool) -> None:
    said = on_a_terminal(ASK, typed)
    assert "Go on? [y/N] " in said
    assert f"answer {answer}" in said


def test_after_an_error_the_picture_stays() -> None:
    said = on_a_terminal(LIVE.replace("END", "raise SystemExit(3)"))
    assert "said 199" in said.rpartition("\x1b[2K")[2]


def test_a_line_of_progress_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two threads, none may come between a line and its end."""
    writes: list[str] = []
    monkeypatch.setattr(sys.stderr, "write", lambda text: writes.append(text))
    with console.progress() as report:
        report(Event("begin", "connect", "started", "gpu01"))
    assert [text[9:] for text in writes if text] == ["gpu01 | connect: started\n"]
