"""Restarts: of a process that died, of one that hangs, of a group over several nodes; and their
bounds. The nodes are directories with real supervisors; what they keep are small programs."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clusterctl.remote.supervision import crash, progress, ways
from clusterctl.remote.supervision.liveness import Metrics, read_metrics
from clusterctl.remote.supervision.local import Order
from clusterctl.remote.supervision.motion import Motion
from clusterctl.remote.supervision.outcries import Outcries
from clusterctl.remote.supervision.policy import Death, Restart, Verdict, judge
from clusterctl.remote.supervision.progress import IO_BYTES, Look, NewLines, moves
from clusterctl.remote.supervision.raynodes import missing
from clusterctl.remote.supervision.wire import Stranger, Wire
from tests.certificates import Authority
from tests.clusterctl.supervisorhome import Home, eventually, group_is_gone, pid_of

TOKEN = "5f" * 32
OWNER = "c/m"
SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
SOON = {"in_a_row": 3, "backoff_s": 0.1, "backoff_max_s": 1, "stable_s": 600, "retry_start": []}

# An OpenAI server, as far as it is asked for a token. `mute`, a file next to it: /health is fine,
# and no completion ever comes; with "busy" in it, it computes. Its other process stands for a rank.
SERVER = """
import http.server, json, os, subprocess, sys, time
from pathlib import Path
rank = subprocess.Popen(["sleep", "600"], start_new_session=True)
prompts, tokens = [], []
class Api(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        counts = {"prompt": prompts, "generation": tokens}
        counted = "".join(f"vllm:{what}_tokens_total {len(of)}\\n" for what, of in counts.items())
        models = json.dumps({"data": [{"id": "m"}]})
        self.answer({"/v1/models": models, "/metrics": counted}.get(self.path, ""))
    def do_POST(self):
        prompts.append(1)
        while Path("mute").exists():
            time.sleep(0 if Path("mute").read_text() else 0.05)
        tokens.append(1)
        self.answer(json.dumps({"choices": [{}], "usage": {"completion_tokens": 1}}))
    def answer(self, text):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Api)
if sys.argv[2:] and sys.argv[2].endswith(".pem"):
    import ssl
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(sys.argv[2], sys.argv[3])
    server.socket = tls.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Nodes:
    """The first is the head."""

    def __init__(self, root: Path, *names: str) -> None:
        self.homes = {name: Home(root / name) for name in names}
        self.head = next(iter(names))
        self._way = f"127.0.0.1:{free_port()}"
        for name in names:
            (self.homes[name].path / "secrets").mkdir()
            (self.homes[name].path / "secrets/ray_token").write_text(TOKEN)
            self.start(name)

    def __getitem__(self, name: str) -> Home:
        return self.homes[name]

    def start(self, name: str) -> None:
        lead = ["--lead"] if name == self.head else []
        keeps = ["--", "sleep", "600"]
        self[name].run("--node", name, "--group", self._way, *lead, *keeps)

    def serve(self, argv: list[str], generation: int = 1, **more: object) -> None:
        """As `serve` does: the head's file last."""
        asked = {"owner": OWNER, "group": list(self.homes), "env": {"ENGINE_DEPLOYMENT": OWNER}}
        for name in reversed(self.homes):
            self[name].ask("m", argv, generation, **{**asked, "restart": SOON, **more})

    def pid(self, name: str) -> int:
        """Of the group's process on a node."""
        return int((self[name].path / "deployments/m/pid").read_text())

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """The supervisor of a node."""
        process = self[name].process
        assert process is not None
        process.send_signal(number)
        process.wait(20)

    def end(self) -> None:
        for home in self.homes.values():
            home.end()


# Ray itself is only asked before a second epoch; here there is none.
RAY_NODES = [{"name": name, "address": "127.0.0.1", "devices": 1} for name in ("gpu01", "gpu03")]
RANK = ["sh", "-c", "echo $$ > pid.new; mv pid.new pid; echo begun; exec sleep 600"]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path, "gpu01", "gpu02", "gpu03")
    yield made
    made.end()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "node")
    yield made
    made.end()


# --- a group over several nodes ------------------------------------------------------------------


def test_a_group_starts_with_the_heads_process_last(nodes: Nodes) -> None:
    nodes.serve(["sh", "-c", "date +%s%N > began; exec sleep 600"])
    nodes["gpu01"].becomes("m", "running")
    began = {
        name: int((home.path / "deployments/m/began").read_text())
        for name, home in nodes.homes.items()
    }
    assert max(began, key=lambda name: began[name]) == "gpu01"


@pytest.mark.parametrize("struck", ["gpu01", "gpu02"])
def test_whichever_process_dies_the_whole_group_begins_anew(nodes: Nodes, struck: str) -> None:
    nodes.serve(RANK)
    nodes["gpu01"].becomes("m", "running")
    first = {name: nodes.pid(name) for name in nodes.homes}
    os.kill(first[struck], signal.SIGKILL)
    seen = nodes["gpu01"].becomes("m", "running", epoch=2)
    assert seen["cause"] == f"{struck}: its process ended by SIGKILL"
    assert seen["restarts"] == 1
    assert all(group_is_gone(pid) for pid in first.values())
    assert set(first.values()).isdisjoint(nodes.pid(name) for name in nodes.homes)


def test_a_node_whose_container_begins_anew_takes_the_group_with_it(nodes: Nodes) -> None:
    nodes.serve(RANK)
    nodes["gpu01"].becomes("m", "running")
    nodes.kill("gpu03", signal.SIGTERM)
    nodes.start("gpu03")
    cause = nodes["gpu01"].becomes("m", "running", epoch=2)["cause"]
    assert cause in (
        "gpu03's container began anew",
        "gpu03 is not heard any more",
        "gpu03's container began anew; gpu03: its process ended by SIGTERM",
    )


def test_a_head_that_begins_anew_starts_the_group_again(nodes: Nodes) -> None:
    nodes.serve(RANK)
    nodes["gpu01"].becomes("m", "running")
    first = nodes.pid("gpu02")
    nodes.kill("gpu01", signal.SIGTERM)
    assert nodes["gpu01"].state("m")["state"] == "restarting"
    nodes.start("gpu01")
    seen = nodes["gpu01"].becomes("m", "running", epoch=2)
    assert (seen["cause"], seen["in_a_row"]) == ("gpu01's container was asked to end", 0)
    assert group_is_gone(first)


def test_a_group_waits_for_a_node_that_is_not_there(nodes: Nodes) -> None:
    nodes.kill("gpu02", signal.SIGTERM)
    nodes.serve(RANK)
    seen = eventually(
        lambda: nodes["gpu01"].state("m").get("waiting_for"),
        "what it waits for",
        lambda: nodes["gpu01"].state("m"),
    )
    assert seen == "gpu02: its supervisor was not heard"
    nodes.start("gpu02")
    nodes["gpu01"].becomes("m", "running")


def test_a_node_that_was_cut_off_is_cleared_before_the_group_begins_anew(nodes: Nodes) -> None:
    """A stray rank, as Ray leaves them where the network is gone."""
    nodes.serve(RANK)
    nodes["gpu01"].becomes("m", "running")
    marks = {"ENGINE_DEPLOYMENT": OWNER, "RAY_TMPDIR": str(nodes["gpu03"].path)}
    stray = subprocess.Popen(["sleep", "600"], env={**os.environ, **marks})
    supervisor = nodes["gpu03"].process
    assert supervisor is not None
    supervisor.send_signal(signal.SIGSTOP)
    waits = "gpu03: its supervisor was not heard"
    eventually(lambda: nodes["gpu01"].state("m")["waiting_for"] == waits, waits)
    assert nodes["gpu01"].state("m")["cause"] == "gpu03 is not heard any more"
    supervisor.send_signal(signal.SIGCONT)
    nodes["gpu01"].becomes("m", "running", epoch=2)
    assert stray.wait(1) == -signal.SIGKILL


def test_stop_on_the_head_ends_it_everywhere(nodes: Nodes) -> None:
    nodes.serve(RANK)
    nodes["gpu01"].becomes("m", "running")
    pids = [nodes.pid(name) for name in nodes.homes]
    nodes["gpu01"].ask("m", RANK, owner=OWNER, group=list(nodes.homes), stop=True, restart=SOON)
    nodes["gpu01"].becomes("m", "stopped")
    assert all(group_is_gone(pid) for pid in pids)


def test_a_lost_head_ends_what_ran_by_its_order(nodes: Nodes) -> None:
    nodes.serve(RANK)
    nodes["gpu01"].becomes("m", "running")
    nodes.kill("gpu01")
    eventually(lambda: group_is_gone(nodes.pid("gpu02")), "the end of gpu02's process")
    os.killpg(nodes.pid("gpu01"), signal.SIGKILL)  # a container would have taken it along


def test_a_node_lost_while_the_engine_loads_is_not_the_engines_fault(nodes: Nodes) -> None:
    """Over Ray only the head has a process, and it ends before we hear of the node's end."""
    over_ray(nodes, RANK)
    nodes["gpu01"].becomes("m", "starting", generation=2)
    first = eventually(lambda: nodes["gpu01"].state("m").get("pid"), "its process")
    nodes.kill("gpu03", signal.SIGTERM)
    os.kill(first, signal.SIGKILL)
    nodes.start("gpu03")
    nodes["gpu01"].becomes("m", "starting", generation=2, epoch=2)
    cause = nodes["gpu01"].state("m")["cause"]
    assert cause == "gpu03's container began anew; gpu01: its process ended by SIGKILL"


def test_an_engine_that_ends_while_all_nodes_live_is_not_tried_again(nodes: Nodes) -> None:
    over_ray(nodes, BROKEN)
    failed = nodes["gpu01"].becomes("m", "failed", generation=2)
    assert failed["cause"] == CAUSE.replace("this node", "gpu01")


def over_ray(nodes: Nodes, argv: list[str]) -> None:
    """As `serve` asks where Ray places the ranks; every supervisor has been heard before."""
    nodes.serve(RANK)
    nodes["gpu01"].becomes("m", "running")
    more = {"owner": OWNER, "group": ["gpu01"], "nodes": RAY_NODES, "restart": SOON}
    nodes["gpu01"].ask("m", argv, 2, liveness=asks(nodes["gpu01"], 1), **more)


# --- one process and what it leaves behind -------------------------------------------------------


BROKEN = ["sh", "-c", "echo 'ValueError: no such thing'; exit 3"]
CAUSE = "this node: its process ended with exit code 3; ValueError: no such thing"


def test_restarts_are_bounded_and_end_with_the_cause(home: Home) -> None:
    home.ask("m", BROKEN, restart=SOON)
    home.run("--", "sleep", "600")
    failed = home.becomes("m", "failed", epoch=4)
    assert failed["cause"] == f"{CAUSE}; given up after 3 restarts in a row"
    assert len(home.crashes("m")) == 4


def test_what_never_gave_a_token_is_tried_again_only_after_a_race(home: Home) -> None:
    home.ask("m", BROKEN, restart=SOON, liveness=asks(home, 1))
    home.run("--", "sleep", "600")
    failed = home.becomes("m", "failed", epoch=1)
    assert (failed["cause"], failed["exit_code"]) == (CAUSE, 3)
    race = {**SOON, "in_a_row": 1, "retry_start": ["no such thing"]}
    home.ask("m", BROKEN, 2, restart=race, liveness=asks(home, 1))
    home.becomes("m", "failed", generation=2, epoch=2)


@pytest.mark.parametrize("days", [1, -1])
def test_tokens_come_by_tls_while_the_certificate_is_the_one_that_was_given(
    home: Home, tmp_path: Path, days: int
) -> None:
    """One that has run out is no death: beginning anew would not help."""
    authority = Authority(tmp_path)
    pair, other = authority.issue("api", "example.com", days=days), authority.issue("other")
    port = free_port()
    argv = [sys.executable, "-c", SERVER, str(port), str(pair.certificate), str(pair.key)]
    own = {**asks(home, port), "url": f"https://127.0.0.1:{port}/v1"}
    home.ask("m", argv, liveness={**own, "certificate": pair.certificate.read_text()})
    home.run("--", "sleep", "600")
    home.becomes("m", "running")
    strange = {**own, "certificate": other.certificate.read_text(), "stall_s": 4}
    home.ask("m", argv, 2, liveness=strange, restart={**SOON, "in_a_row": 0})
    assert "CERTIFICATE_VERIFY_FAILED" in home.becomes("m", "failed", generation=2)["cause"]


def asks(home: Home, port: int) -> dict[str, Any]:
    (home.path / "key").write_text("sk-planted")
    return {
        "url": f"http://127.0.0.1:{port}/v1",
        "api_key_file": str(home.path / "key"),
        "interval_s": 0.2,
        "deadline_s": 2,
        "stall_s": 60,
    }


def served(home: Home, deadline_s: float = 2) -> int:
    """The stand-in for an engine is ready; its API's port."""
    port = free_port()
    argv = [sys.executable, "-c", SERVER, str(port), "--api-key", "sk-planted"]
    env = {"ENGINE_DEPLOYMENT": OWNER, "HF_TOKEN": "hf-planted"}
    asked = {**asks(home, port), "deadline_s": deadline_s}
    home.ask("m", argv, owner=OWNER, env=env, liveness=asked, restart=SOON)
    home.run("--", "sleep", "600")
    home.becomes("m", "running")
    return port


def test_no_token_within_the_deadline_is_a_death(home: Home) -> None:
    served(home)
    ranks = eventually(lambda: home.state("m")["ranks"], "its ranks")
    mute = home.path / "deployments/m/mute"
    mute.touch()
    eventually(lambda: home.state("m")["state"] != "running", "its end")
    mute.unlink()
    seen = home.becomes("m", "running", epoch=2)
    assert seen["cause"] == "no token within 2 s (TimeoutError: timed out)"
    assert not {rank["pid"] for rank in ranks} & all_pids()


def test_a_slow_engine_is_not_a_hung_one(home: Home) -> None:
    """No token within the deadline, while it computes."""
    served(home, deadline_s=4)
    mute = home.path / "deployments/m/mute"
    mute.write_text("busy")
    alive_at = home.state("m")["alive_at"]
    eventually(lambda: time.time() - alive_at > 7, "its deadline")
    mute.unlink()
    eventually(lambda: home.state("m")["alive_at"] > alive_at, "a token", lambda: home.state("m"))
    assert (home.state("m")["epoch"], home.state("m")["state"]) == (1, "running")


def all_pids() -> set[int]:
    return {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()}


def test_a_rank_that_was_stopped_is_named(home: Home) -> None:
    served(home)
    os.kill(pid_of(home, "m"), signal.SIGSTOP)
    seen = home.becomes("m", "running", epoch=2)
    assert "is stopped" in seen["cause"]
    assert seen["cause"].startswith("no token within 2 s (")


STANDS = [sys.executable, "-c", "import time; print('shard 1/3', flush=True); time.sleep(600)"]
WORKS = [sys.executable, "-c", "while True: pass"]


def test_a_start_that_stands_still_is_a_death_and_says_since_when(home: Home) -> None:
    liveness = {**asks(home, 1), "stall_s": 2}
    home.ask("m", STANDS, owner=OWNER, liveness=liveness, restart=SOON)
    home.run("--", "sleep", "600")
    seen = home.becomes("m", "starting", epoch=2)
    assert seen["kind"] == "hung"
    still = r"no new line, bytes or CPU time for \d s, since ..:..:.. UTC; last line: shard 1/3; "
    assert re.fullmatch(still + "no token: ConnectionRefusedError: .*", seen["cause"])


def test_a_start_that_computes_in_silence_is_let_go_on(home: Home) -> None:
    env = {"ENGINE_DEPLOYMENT": OWNER}
    liveness = {**asks(home, 1), "stall_s": 6}
    home.ask("m", WORKS, owner=OWNER, env=env, liveness=liveness, restart=SOON)
    home.run("--", "sleep", "600")
    home.becomes("m", "starting")
    ranks = eventually(lambda: home.state("m")["ranks"], "its rank")
    eventually(lambda: home.state("m")["ranks"][0]["cpu_s"] > ranks[0]["cpu_s"] + 8, "its work")
    assert home.state("m")["epoch"] == 1


def test_a_process_that_outlives_the_engine_is_ended(home: Home) -> None:
    """A rank in a session of its own, as Ray's are: no signal to the engine's group reaches it."""
    served(home)
    ranks = eventually(
        lambda: [one for one in home.state("m")["ranks"] if "sleep" in one["title"]], "its rank"
    )
    os.kill(pid_of(home, "m"), signal.SIGKILL)
    home.becomes("m", "running", epoch=2)
    assert ranks[0]["pid"] not in all_pids()


def test_what_is_kept_of_a_death_has_no_secret_in_it(home: Home) -> None:
    served(home)
    os.kill(pid_of(home, "m"), signal.SIGKILL)
    home.becomes("m", "running", epoch=2)
    (kept,) = home.crashes("m")
    assert (kept["kind"], kept["epoch"], kept["exit_code"]) == ("exit", 1, 137)
    assert kept["argv"][-2:] == ["--api-key", "[redacted]"]
    assert kept["env"]["HF_TOKEN"] == "[redacted]"
    assert kept["versions"]["python"]
    files = [path for path in (home.path / "crashes").rglob("*") if path.is_file()]
    assert not [path for path in files if b"planted" in path.read_bytes()]


def test_a_full_disk_takes_records_and_no_more(home: Home) -> None:
    """It is said once, not at every look; when there is room again the record is right."""
    directory = home.path / "deployments/m"
    directory.mkdir(parents=True)
    for name in ("log", ".state.json"):
        (directory / name).symlink_to("/dev/full")
    home.ask("m", ["sh", "-c", "for i in 1 2 3 4 5; do echo line $i; done; exec sleep 600"])
    home.run("--", "sleep", "600")
    said = home.path / "out"
    eventually(lambda: b"[m] line 5" in said.read_bytes(), "its output")
    lines = [line for line in said.read_text().splitlines() if "No space left" in line]
    assert sorted(Path(line.partition(":")[0]).name for line in lines) == ["log", "state.json"]
    (directory / ".state.json").unlink()
    home.becomes("m", "running")


def test_a_client_of_another_version_is_understood(home: Home) -> None:
    older = {name: value for name, value in asks(home, 1).items() if name != "stall_s"}
    home.ask("m", SLEEPER, restart={**SOON, "newer": 1}, liveness={**older, "newer": 1})
    home.run("--", "sleep", "600")
    home.becomes("m", "starting")


def test_an_earlier_supervisors_deployment_begins_anew(home: Home) -> None:
    home.ask("m", SLEEPER, restart=SOON)
    state = {"name": "m", "state": "running", "started_at": 5.0, "generation": 1, "epoch": 4}
    (home.path / "deployments/m/state.json").write_text(json.dumps(state))
    home.run("--", "sleep", "600")
    seen = home.becomes("m", "running", epoch=5)
    assert (seen["cause"], seen["in_a_row"]) == ("this node's container began anew", 1)


def test_the_end_of_ray_is_named_as_the_cause(home: Home) -> None:
    home.ask("m", SLEEPER, restart=SOON)
    enough = home.path / "enough"
    process = home.run(
        "--", "sh", "-c", 'until test -e "$0"; do sleep 0.1; done; exit 9', str(enough)
    )
    home.becomes("m", "running")
    enough.touch()
    assert process.wait(20) == 9
    assert home.state("m")["cause"] == "Ray on this node ended with exit code 9"


# --- pure parts ----------------------------------------------------------------------------------

BOUND = Restart(2, 2.0, 60.0, 600.0, ("in use",))
EXIT = Death("exit", "it died", 1)


@pytest.mark.parametrize(
    ("restart", "death", "was_ready", "in_a_row", "printed", "verdict"),
    [
        (None, EXIT, True, 0, "", Verdict("failed", "it died")),
        (None, Death("exit", "done", 0), True, 0, "", Verdict("stopped", "done")),
        (BOUND, EXIT, False, 0, "", Verdict("failed", "it died")),
        (BOUND, EXIT, False, 0, "port in use", Verdict("waiting", "it died", 2.0, 1)),
        (BOUND, EXIT, True, 1, "", Verdict("waiting", "it died", 4.0, 2)),
        (BOUND, Death("hung", "h"), False, 0, "", Verdict("waiting", "h", 2.0, 1)),
        (BOUND, Death("asked", "a"), True, 2, "", Verdict("waiting", "a", 0.0, 2)),
        (
            BOUND,
            EXIT,
            True,
            2,
            "",
            Verdict("failed", "it died; given up after 2 restarts in a row"),
        ),
    ],
)
def test_what_a_death_leads_to(
    restart: Restart | None,
    death: Death,
    was_ready: bool,
    in_a_row: int,
    printed: str,
    verdict: Verdict,
) -> None:
    said = judge(restart, death, was_ready=was_ready, in_a_row=in_a_row, printed=printed)
    assert said == verdict


def test_the_back_off_doubles_up_to_its_maximum() -> None:
    bound = Restart(10, 2.0, 20.0, 600.0, ())
    waits = [judge(bound, EXIT, was_ready=True, in_a_row=n, printed="").backoff_s for n in range(6)]
    assert waits == [2.0, 4.0, 8.0, 16.0, 20.0, 20.0]


def test_the_first_error_of_each_rank() -> None:
    outcries = Outcries()
    for line in (
        b"INFO 01-01 00:00:00 loading\n",
        b"WARNING no ERROR: at all\n",
        b"(RankActor pid=7, ip=10.0.0.2) ERROR 01-01 00:00:00 [rank 1] torch.OutOfMemoryError: 4\n",
        b"(RankActor pid=7, ip=10.0.0.2) ERROR again\n",
        b"ERROR 01-01 00:00:00 rank 1: its actor died: no more\n",
        b"(Worker_PP1 pid=99) RuntimeError: gloo Connection closed by peer\n",
    ):
        outcries.hear(line)
    assert [(one["who"], one["line"][-8:]) for one in outcries.all()] == [
        ("RankActor pid=7, ip=10.0.0.2", "Error: 4"),
        ("rank 1", " no more"),
        ("Worker_PP1 pid=99", " by peer"),
    ]


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        ("INFO 11-25 17:00:00 waiting for 10 s", "INFO 11-25 17:00:10 waiting for 20 s", 1),
        ("INFO 11-25 17:00:00 waiting", "INFO 11-25 17:00:00 compiling", 2),
        ("Loading shards 1/30 in 1.2 s", "Loading shards 2/30 in 2.4 s", 2),
        ("Loading shards 1/30 in 1.2 s", "Loading shards 1/30 in 9.9 s", 1),
        ("Loading  3%|", "Loading 33%|", 2),
        ("(Worker pid=12) ready", "(Worker pid=1234) ready", 1),
    ],
)
def test_a_line_is_new_by_what_it_counts_not_by_its_other_numbers(
    before: str, now: str, new: int
) -> None:
    lines = NewLines()
    for line in (before, now, now):
        lines.hear(line.encode())
    assert lines.count == new


def rank(**more: Any) -> dict[str, Any]:
    return {"state": "S", "cpu_s": 100.0, "io_bytes": 5000, **more}


@pytest.mark.parametrize(
    ("now", "lines", "said"),
    [
        (rank(), 7, False),
        (rank(), 8, True),
        (rank(cpu_s=100.4), 7, False),  # what only polls takes some percent of a core
        (rank(cpu_s=100.5), 7, True),
        (rank(io_bytes=5000 + IO_BYTES - 1), 7, False),
        (rank(io_bytes=5000 + IO_BYTES), 7, True),
        (rank(state="T", cpu_s=110.0), 8, False),
        (rank(state="t", io_bytes=9 * IO_BYTES), 7, False),
    ],
)
def test_what_counts_as_moving_in_ten_seconds(now: dict[str, Any], lines: int, said: bool) -> None:
    key = ("gpu02", 77)
    before = Look({"gpu01": 7}, {key: rank()}, {})
    assert moves(before, Look({"gpu01": lines}, {key: now}, {}), 10.0) is said


def test_a_process_that_has_just_begun_moves() -> None:
    assert moves(Look({}, {}, {}), Look({}, {("gpu02", 77): rank()}, {}), 10.0)
    assert not moves(Look({}, {("gpu02", 77): rank()}, {}), Look({}, {}, {}), 10.0)


METRICS = """
# HELP vllm:generation_tokens_total Tokens
vllm:generation_tokens_total{engine="0",model_name="m"} 40.0
vllm:generation_tokens_total{engine="1",model_name="m"} 2.0
vllm:prompt_tokens_total{model_name="m"} 8.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
"""


def test_metrics_of_either_engine() -> None:
    assert read_metrics(METRICS) == Metrics(moving=42.0, generated=42.0, kv_usage=0.5)
    assert read_metrics("process_cpu_seconds_total 1.0\n") is None


AT_FIRST = {"state": "S", "cpu_s": 1.0, "io_bytes": 0}
COMPUTED = {**AT_FIRST, "cpu_s": 9.0}


@pytest.mark.parametrize(
    ("ranks", "computes"),
    [
        ([AT_FIRST, COMPUTED], True),
        ([AT_FIRST, {**AT_FIRST, "cpu_s": 1.1}], False),
        ([{**AT_FIRST, "state": "T"}, COMPUTED], False),  # waited for by one that spins
        ([None, COMPUTED], False),  # the same, and it is gone
        ([AT_FIRST, COMPUTED, AT_FIRST], True),
    ],
)
def test_whether_the_ranks_compute(
    ranks: list[dict[str, Any] | None], computes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((0.0, 0.0, 10.0, 21.0, 21.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    motion = Motion()
    assert motion.computes(looked(AT_FIRST, AT_FIRST), 1.0, 30)
    motion.computes(looked(AT_FIRST, AT_FIRST), 1.0, 30)
    assert motion.computes(looked(*ranks), 1.0, 30) is computes


def looked(*ranks: dict[str, Any] | None) -> Look:
    seen = {("gpu01", pid): rank for pid, rank in enumerate(ranks) if rank is not None}
    return Look({}, seen, {})


NODE = {
    "Alive": True,
    "NodeManagerAddress": "10.0.0.2",
    "Resources": {"cpu_slot": 1.0},
    "NodeName": "gpu02-aa",
}
EXPECTED = [{"name": "gpu02", "address": "10.0.0.2", "devices": 1}]


@pytest.mark.parametrize(
    ("node", "boots", "said"),
    [
        (NODE, {"gpu02": "aa"}, ""),
        (NODE, {}, ""),
        (NODE, {"gpu02": "bb"}, "not in Ray: gpu02 (10.0.0.2)"),  # an earlier life of the node
        ({**NODE, "Alive": False, "Resources": {}}, {}, "not in Ray: gpu02 (10.0.0.2)"),
        ({**NODE, "Resources": {"GPU": 0.5}}, {}, "not in Ray: gpu02 (10.0.0.2)"),
    ],
)
def test_whom_ray_does_not_know(node: dict[str, Any], boots: dict[str, str], said: str) -> None:
    assert missing([node], EXPECTED, boots) == said


def test_secrets_do_not_show() -> None:
    env = {"VLLM_API_KEY": "a", "RAY_AUTH_TOKEN_PATH": "/p", "HTTPS_PROXY": "http://me:pw@proxy:1"}
    assert crash.shown(env) == {
        "VLLM_API_KEY": "[redacted]",
        "RAY_AUTH_TOKEN_PATH": "/p",
        "HTTPS_PROXY": "http://[redacted]@proxy:1",
    }
    argv = ["serve", "--hf-token=x", "--api-key", "y", "--max-num-batched-tokens", "8"]
    assert crash.without_secrets(argv) == [
        *("serve", "--hf-token=[redacted]", "--api-key", "[redacted]"),
        *("--max-num-batched-tokens", "8"),
    ]


# --- the way between supervisors -----------------------------------------------------------------


@pytest.fixture
def wires() -> Iterator[Callable[[bytes, bytes], tuple[Wire, Wire]]]:
    """The head's end and another's, by the token of each."""
    sockets = socket.socketpair()
    made: list[Wire] = []

    def connect(head_token: bytes, other_token: bytes) -> tuple[Wire, Wire]:
        other = threading.Thread(
            target=lambda: made.insert(0, Wire(sockets[1], other_token, leads=False))
        )
        other.start()
        made.append(Wire(sockets[0], head_token, leads=True))
        other.join()
        return made[-1], made[0]

    yield connect
    for wire in made:
        wire.close()


Wires = Callable[[bytes, bytes], tuple[Wire, Wire]]


def test_what_is_said_arrives_both_ways(wires: Wires) -> None:
    lead, follow = wires(b"t", b"t")
    for number in range(3):
        lead.send({"n": number})
        follow.send({"m": number})
    assert [follow.receive()["n"] for _ in range(3)] == [0, 1, 2]
    assert [lead.receive()["m"] for _ in range(3)] == [0, 1, 2]


def test_a_stranger_is_not_heard(wires: Wires) -> None:
    lead, follow = wires(b"t", b"another")
    follow.send({"node": "gpu02"})
    with pytest.raises(Stranger):
        lead.receive()


def test_nothing_can_be_said_twice(wires: Wires) -> None:
    lead, follow = wires(b"t", b"t")
    lead.send({"n": 1})
    said = follow._lines.readline()
    follow._lines = io.BufferedReader(io.BytesIO(said + said))  # type: ignore[arg-type]
    assert follow.receive() == {"n": 1}
    with pytest.raises(Stranger):
        follow.receive()


def test_what_a_head_ordered_ends_when_it_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "LOST_S", 2.0)
    order = Order(1, 1, "run", OWNER)
    with socket.create_server(("127.0.0.1", 0)) as server:
        follow = ways.Follow(("127.0.0.1", server.getsockname()[1]), b"t")
        follow.tell({"node": "gpu02"})
        connection, _ = server.accept()
        head = Wire(connection, b"t", leads=True)
        assert head.receive() == {"node": "gpu02"}
        head.send({"orders": {"m": vars(order)}})
        eventually(lambda: follow.orders() == {"m": order}, "the order")
        ended = {"m": Order(1, 1, "end", OWNER)}
        eventually(lambda: follow.orders() == ended, "its end", follow.orders)
        head.close()
