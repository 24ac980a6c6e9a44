"""Two hosts of the testbed, one cluster, one real model: sanity, serve, ps, faults, stop."""

from __future__ import annotations

import gzip
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.certificates import Authority

from .conftest import RunningTestbed

REPOSITORY = Path(__file__).parents[2]
MODEL = "SmolLM2-135M-Instruct"
NAME = "smol"
KEY = "sk-integration"
STATE = "/var/lib/clusterctl/servetest"
COMMAND_S = 600
PATIENCE_S = 240


@dataclass(frozen=True)
class Bed:
    """A cluster over two hosts of the testbed, driven by the command line alone."""

    testbed: RunningTestbed
    directory: Path

    @property
    def head(self) -> str:
        return self.testbed.hosts[-2]

    @property
    def worker(self) -> str:
        return self.testbed.hosts[-1]

    @property
    def url(self) -> str:
        return f"http://{self.testbed.addresses[self.head]}:8000/v1"

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"XDG_CONFIG_HOME": str(self.directory), "INFERCLUSTER_API_KEY": KEY}
        argv = [sys.executable, "-m", "clusterctl", *args]
        return subprocess.run(
            argv, cwd=self.directory, env=env, capture_output=True, text=True, timeout=COMMAND_S
        )

    def ok(self, *args: str) -> str:
        done = self.run(*args)
        assert done.returncode == 0, f"{args}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def refused(self, *args: str) -> tuple[int, dict[str, Any]]:
        done = self.run(*args, "--json")
        return done.returncode, json.loads(done.stdout)["error"]

    def deployment(self) -> dict[str, Any]:
        (found,) = json.loads(self.ok("ps", "--json"))["deployments"]
        assert isinstance(found, dict)
        return found

    def in_container(self, host: str, command: str) -> str:
        return self.testbed.ssh(host, f"docker exec clusterctl-servetest-{host} sh -c '{command}'")

    def ranks(self, host: str) -> list[str]:
        """Process ids of the deployment's ranks on a host."""
        mark = f"ENGINE_DEPLOYMENT=servetest/{NAME}"
        found = self.in_container(host, f"grep -lzx {mark} /proc/[0-9]*/environ || true")
        return [path.split("/")[2] for path in found.split()]

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=KEY, max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def bed(testbed: RunningTestbed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    made = Bed(testbed, tmp_path_factory.mktemp("servetest"))
    smollm2 = [sys.executable, str(REPOSITORY / "scripts/smollm2"), str(testbed.models / MODEL)]
    subprocess.run(smollm2, check=True, capture_output=True, timeout=COMMAND_S)
    (made.directory / "cluster.yaml").write_text(
        f"name: servetest\nhead: {made.head}\nimage: {testbed.image}\n"
        "devices: {kind: cpu, count: 1}\nmodel_dirs: [/models]\n"
        f"ssh: {{config: {testbed.ssh_config}}}\nhosts: [{made.head}, {made.worker}]\n"
    )
    made.ok("up", "--no-sanity")
    yield made
    made.ok("down", "--purge")


@pytest.fixture(scope="module")
def served(bed: Bed) -> str:
    """What `serve` printed."""
    return bed.ok("serve", f"/models/{MODEL}", "--pp", "2", "--dtype", "float32", "--name", NAME)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(1)


def test_sanity_passes_over_both_hosts(bed: Bed) -> None:
    found = json.loads(bed.ok("sanity", "--json"))
    assert found["passed"]
    assert found["hosts"] == [bed.head, bed.worker]
    assert found["busbw_gb_s"] > 0


@contextmanager
def behind_a_firewall(bed: Bed, host: str) -> Iterator[None]:
    """One that lets ssh and Ray's pinned ports pass, and drops new connections to others."""
    rule = "OUTPUT -o eth0 -p tcp --syn --dport 32768:60999 -j DROP"
    bed.testbed.ssh(host, f"iptables -I {rule}")
    try:
        yield
    finally:
        bed.testbed.ssh(host, f"iptables -D {rule}")


def test_sanity_names_the_host_behind_a_firewall(bed: Bed) -> None:
    with behind_a_firewall(bed, bed.worker):
        code, error = bed.refused("sanity", "--timeout", "60")
    assert (code, error["code"], error["host"]) == (5, "not_ready", bed.worker)
    assert f'rank 1 ({bed.worker}) failed in "rendezvous"' in error["message"]
    assert "firewall" in error["hint"]
    bed.ok("sanity")


def test_a_model_outside_every_mount_is_refused(bed: Bed) -> None:
    for host in (bed.head, bed.worker):
        bed.testbed.ssh(host, "mkdir -p /srv/unmounted/m")
    try:
        code, error = bed.refused("serve", "/srv/unmounted/m", "--pp", "2")
    finally:
        for host in (bed.head, bed.worker):
            bed.testbed.ssh(host, "rm -r /srv/unmounted")
    assert (code, error["host"]) == (4, f"{bed.head}, {bed.worker}")
    assert "`model_dirs: [/models, /srv/unmounted]`" in error["hint"]


def test_an_illegal_split_is_refused_with_the_legal_ones(bed: Bed) -> None:
    code, error = bed.refused("serve", f"/models/{MODEL}", "--tp", "2")
    assert (code, error["host"]) == (4, bed.head)
    assert (
        error["message"]
        == "9 attention heads cannot be split over tp=2 (legal for this model: 1, 3)"
    )


def test_serve_says_where_how_and_how_much(bed: Bed, served: str) -> None:
    assert f"{NAME}: ready, {bed.url}" in served
    assert "KV cache: " in served
    assert "(predicted " in served
    assert f'curl {bed.url}/chat/completions -H "Authorization: Bearer ' in served
    assert KEY not in served


def test_both_hosts_hold_a_rank_and_ps_sees_a_token(bed: Bed, served: str) -> None:
    found = bed.deployment()
    prediction = found["prediction"]
    expected = {
        "name": NAME,
        "model": f"/models/{MODEL}",
        "engine": "native",
        "tp": 1,
        "pp": 2,
        "state": "ready",
        "url": bed.url,
        "restarts": 0,
    }
    assert {key: found[key] for key in expected} == expected
    assert {rank["node"] for rank in found["ranks"]} == {bed.head, bed.worker}
    assert abs(prediction["difference"]) < 0.05
    assert prediction["logged_kv_cache_tokens"] > 0
    assert bed.ranks(bed.worker)


def test_an_openai_client_gets_english_streamed_and_not(bed: Bed, served: str) -> None:
    asked: dict[str, Any] = {
        "model": f"/models/{MODEL}",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 24,
        "temperature": 0,
    }
    whole = bed.client().chat.completions.create(**asked).choices[0].message.content
    chunks = bed.client().chat.completions.create(**asked, stream=True)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in whole
    assert streamed == whole


def test_the_laptop_reaches_it_over_ssh_alone(bed: Bed, served: str) -> None:
    question = ["-m", "What is the capital of France?", "--temperature", "0", "--max-tokens", "24"]
    assert "Paris" in bed.ok("chat", NAME, *question)
    work = ["--requests", "2", "--input-words", "4", "--output-tokens", "8"]
    said = json.loads(bed.ok("bench", "--concurrency", "1,2", *work, "--json"))
    assert [(one["failed"], one["output_tokens"]) for one in said["levels"]] == [(0, 16)] * 2


def test_a_tunnel_lasts_until_ctrl_c(bed: Bed, served: str) -> None:
    argv = [sys.executable, "-m", "clusterctl", "tunnel", NAME, "--local-port", "0", "--json"]
    env = os.environ | {"XDG_CONFIG_HOME": str(bed.directory)}
    with subprocess.Popen(argv, cwd=bed.directory, env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = b"".join(iter(process.stdout.readline, b"}\n"))
        (tunnel,) = json.loads(said + b"}")["tunnels"]
        client = openai.OpenAI(base_url=tunnel["url"], api_key=KEY, max_retries=0)
        assert [one.id for one in client.models.list().data] == [f"/models/{MODEL}"]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_who_did_what_and_where_the_seconds_went(bed: Bed, served: str) -> None:
    runs = json.loads(bed.ok("audit", "--json"))["hosts"][bed.head]
    assert [(run["command"], run["result"]) for run in runs[-1:]] == [("serve", "ok")]
    told = json.loads(bed.ok("timeline", "--json"))["runs"]
    assert {"connect", "facts", "create", "formation"} <= {
        stage["step"] for stage in told["up"][0]["stages"]
    }
    formed = next(one for one in told["up"][0]["stages"] if one["step"] == "formation")
    assert set(formed["hosts"]) == {bed.head, bed.worker}


def test_a_wrong_key_is_refused(bed: Bed, served: str) -> None:
    stranger = openai.OpenAI(base_url=bed.url, api_key="sk-wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_the_key_is_in_no_environment_and_no_command_line(bed: Bed, served: str) -> None:
    not_grep_itself = f"[{KEY[0]}]{KEY[1:]}"
    processes = f"grep -laz {not_grep_itself} /proc/[0-9]*/environ /proc/[0-9]*/cmdline || true"
    inspected = bed.testbed.ssh(bed.head, f"docker inspect clusterctl-servetest-{bed.head}")
    assert bed.in_container(bed.head, processes) == ""
    assert KEY not in inspected


@pytest.mark.parametrize("kind", ["API key", "Ray token"])
def test_a_secret_is_in_nothing_that_others_can_read(bed: Bed, served: str, kind: str) -> None:
    """Not in a command line, an environment, `docker inspect`, a log, a plan, the audit log, a
    bundle or what commands print. Of the files on the hosts only 0600 ones hold it."""
    secret = KEY if kind == "API key" else bed.testbed.ssh(bed.head, f"cat {STATE}/ray_token")
    nothing_shows(bed, secret.strip())


def nothing_shows(bed: Bed, secret: str) -> None:
    bundle = bed.directory / "bundle.tar.gz"
    bed.run("doctor", "--bundle", str(bundle))
    said = [gzip.decompress(bundle.read_bytes()).decode(errors="replace")]
    for host in (bed.head, bed.worker):
        name = f"clusterctl-servetest-{host}"
        for command in (
            f"docker inspect {name}",
            f"docker logs {name} 2>&1",
            "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\\0' '\\n'",
            f"cat {STATE}/audit.log",
        ):
            said.append(bed.testbed.ssh(host, command))
        not_grep_itself = f"[{secret[0]}]{secret[1:]}"
        holders = bed.testbed.ssh(host, f"grep -rl -e '{not_grep_itself}' {STATE} || true")
        modes = [bed.testbed.ssh(host, f"stat -c %a {path}").strip() for path in holders.split()]
        assert set(modes) <= {"600"}
    for args in (
        ["up", "--dry-run"],
        ["status", "--json"],
        ["audit", "--json"],
        ["config", "show"],
        ["serve", f"/models/{MODEL}", "--name", "other", "--port", "8001", "--dry-run"],
        ["logs"],
    ):
        done = bed.run(*args)
        said.append(done.stdout + done.stderr)
    assert len(secret) > 8
    assert [text[:200] for text in said if secret in text] == []


def test_a_hostile_word_stays_a_word(bed: Bed) -> None:
    """Names are words for the shells on the way, never commands."""
    mark = "/tmp/owned"
    word = f"$(touch {mark})`touch {mark}`;touch {mark};'\"\n"
    code, error = bed.refused("serve", f"/models/{word}", "--name", "hostile")
    assert (code, error["code"]) == (4, "preflight")
    assert bed.run("exec", bed.worker, "--", "test", "-e", word).returncode == 1
    assert bed.run("logs", "--hosts", word).returncode == 2
    assert bed.run("chat", word, "-m", word).returncode == 1
    assert bed.run("model", "rm", f"/models/{word}", "--yes").returncode in (0, 1)
    for host in (bed.head, bed.worker):
        found = [bed.testbed.ssh(host, f"ls {mark} 2>&1 || true")]
        found.append(bed.in_container(host, f"ls {mark} 2>&1 || true"))
        assert all("No such file" in said for said in found)


def test_a_rank_that_stands_still_makes_it_degraded_not_ready(bed: Bed, served: str) -> None:
    (pid,) = bed.ranks(bed.worker)
    bed.in_container(bed.worker, f"kill -STOP {pid}")
    try:
        assert bed.deployment()["state"] == "degraded"
    finally:
        bed.in_container(bed.worker, f"kill -CONT {pid}")
    until(lambda: bed.deployment()["state"] == "ready")


def test_stop_leaves_no_process_no_port_and_no_device(bed: Bed, served: str) -> None:
    assert f"{NAME}: stopped; no process left, port 8000 free" in bed.ok("stop")
    assert bed.ranks(bed.head) == bed.ranks(bed.worker) == []
    assert " 0.0/2.0 cpu_slot" in bed.in_container(bed.head, "ray status")
    assert bed.deployment()["state"] == "stopped"


def test_a_killed_rank_takes_the_others_along_and_all_begin_anew(bed: Bed, served: str) -> None:
    bed.ok("serve", f"/models/{MODEL}", "--pp", "2", "--name", NAME)
    (pid,) = bed.ranks(bed.worker)
    bed.in_container(bed.worker, f"kill -9 {pid}")
    until(lambda: bed.deployment()["restarts"] == 1)
    until(lambda: bed.deployment()["state"] == "ready")
    assert "rank 1" in bed.deployment()["cause"]
    assert bed.ranks(bed.worker) != [pid]
    bed.ok("stop", NAME)


def test_without_sizes_the_plan_chooses_them(bed: Bed) -> None:
    bed.run("stop", NAME)  # where another test has left it
    done = bed.run("serve", f"/models/{MODEL}", "--name", "planned")
    assert done.returncode == 0, done.stderr
    assert "plan: tp=1 pp=1: It fits one CPU slot" in done.stderr
    (found,) = [
        one
        for one in json.loads(bed.run("ps", "--json").stdout)["deployments"]
        if one["name"] == "planned"
    ]
    assert (found["tp"], found["pp"], found["state"]) == (1, 1, "ready")
    assert abs(found["prediction"]["difference"]) < 0.05
    bed.ok("stop", "planned")


def test_over_tls_all_that_looks_sees_it_and_nothing_shows_its_key(bed: Bed) -> None:
    """Exposed, under a name that no host here has: clients are told where it leads."""
    authority = Authority(bed.directory)
    pair = authority.issue("api", "api.example.com", chain=True)
    files = ["--tls-cert", str(pair.certificate), "--tls-key", str(pair.key)]
    options = ["--pp", "2", "--dtype", "float32", "--port", "8443", "--name", "tls", "--expose"]
    address = bed.testbed.addresses[bed.head]
    code, error = bed.refused("serve", f"/models/{MODEL}", "--host", "0.0.0.0")
    assert (code, error["code"]) == (2, "config")
    bed.run("stop", NAME)  # where another test has left it
    said = bed.ok("serve", f"/models/{MODEL}", *options, *files)
    try:
        assert f"tls: ready, https://{address}:8443/v1" in said
        (curl,) = [line for line in said.splitlines() if line.startswith("curl ")]
        answer = subprocess.run(
            ["bash", "-c", curl.replace('"messages"', '"max_tokens": 8, "messages"')],
            env=os.environ | {"INFERCLUSTER_API_KEY": KEY},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
        assert "chat.completion" in answer.stdout, answer.stderr
        (found,) = [
            one for one in json.loads(bed.ok("ps", "--json"))["deployments"] if one["name"] == "tls"
        ]
        assert (found["state"], found["restarts"]) == ("ready", 0)
        question = ["-m", "What is the capital of France?", "--temperature", "0"]
        assert "Paris" in bed.ok("chat", "tls", *question, "--max-tokens", "24")
        work = ["--requests", "2", "--input-words", "4", "--output-tokens", "8"]
        levels = json.loads(bed.ok("bench", "tls", "--concurrency", "2", *work, "--json"))
        assert levels["levels"][0]["failed"] == 0
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://{address}:8443/v1/models")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"https://{address}:8443/v1/models")
        trust = ssl.create_default_context(cafile=authority.ca)
        with httpx.Client(base_url=f"https://{address}:8443", verify=trust) as own:
            asked = own.get(
                "/v1/models",
                headers={"Host": "api.example.com", "Authorization": f"Bearer {KEY}"},
                extensions={"sni_hostname": "api.example.com"},
            )
        assert asked.status_code == 200
        nothing_shows(bed, pair.key.read_text().splitlines()[1])
        path = "/opt/clusterctl/secrets/tls.tls-key"
        assert bed.in_container(bed.head, f"stat -c %a {path}") == "600\n"
    finally:
        bed.ok("stop", "tls")
