"""chat and bench against the real engine's server."""

from __future__ import annotations

import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from clusterctl import cli, endpoint
from clusterctl.apiclient import ApiClient, Piece, only
from clusterctl.benchmark import Answer, answer_of, level_of, percentile
from clusterctl.errors import ClusterctlError, Unreachable
from clusterctl.secret import Secret
from clusterctl.transport.local import SocketStream
from clusterctl.tunnel import join
from tests.certificates import Authority, Pair
from tests.clusterctl.sshd import free_port
from tests.engine.conftest import MakeCheckpoint, checkpoint
from tests.engine.test_server import Served, greedy, serving

__all__ = ["checkpoint"]


@pytest.fixture(scope="module")
def served(checkpoint: MakeCheckpoint) -> Iterator[Served]:
    with serving(checkpoint(), api_key="sk-right") as served:
        yield served


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERCLUSTER_API_KEY", "sk-right")


def test_chat_says_what_the_model_says(
    served: Served, checkpoint: MakeCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["chat", served.url, "-m", "hi", "--temperature", "0", "--max-tokens", "12"]
    assert cli.run(asked) == 0
    messages = [{"role": "user", "content": "hi"}]
    assert capsys.readouterr().out == greedy(checkpoint(), messages, 12) + "\n"


def test_bench_measures_every_level(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "bench.svg"
    asked = ["bench", served.url, "--concurrency", "1,3", "--requests", "4", "--plot", str(plot)]
    assert cli.run([*asked, "--input-words", "3", "--output-tokens", "8", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["model"], said["url"]) == ("tiny", f"{served.url}/v1")
    assert [one["concurrency"] for one in said["levels"]] == [1, 3]
    for level in said["levels"]:
        assert (level["requests"], level["failed"], level["output_tokens"]) == (4, 0, 32)
        assert level["ttft_p99"] >= level["ttft_p50"] > 0
        assert level["output_tokens_per_s"] == pytest.approx(32 / level["seconds"])
    assert "tokens a second" in plot.read_text()


def test_a_wrong_key_is_named(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INFERCLUSTER_API_KEY", "sk-wrong")
    assert cli.run(["bench", served.url]) == 1
    assert "HTTP 401" in (err := capsys.readouterr().err)
    assert "--api-key-file" in err
    assert "sk-wrong" not in err


def test_requests_that_fail_are_counted_and_end_with_1(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["bench", served.url, "--concurrency", "2", "--requests", "2"]
    assert cli.run([*asked, "--output-tokens", "5000"]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1].split()[:4] == ["2", "2", "2", "0.0"]
    assert "2 requests failed, the first at 2 at once: HTTP 400" in captured.err


@contextmanager
def encrypted(served: Served, pair: Pair) -> Iterator[str]:
    """The same server behind TLS; its URL."""

    class Way(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            inside = socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])))
            with (
                closing(inside),
                suppress(OSError),
                context.wrap_socket(self.request, server_side=True) as near,
            ):
                join(near, SocketStream(inside))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Way) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_an_https_url_has_to_show_who_it_is(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority(tmp_path)
    with encrypted(served, authority.issue("api", "127.0.0.1")) as url:
        asked = ["chat", url, "-m", "hi", "--max-tokens", "1"]
        assert cli.run([*asked, "--ca-file", str(authority.ca)]) == 0
        assert cli.run(asked) == 3
        assert "--ca-file with its authority's certificate" in capsys.readouterr().err
    assert cli.run([*asked, "--ca-file", str(tmp_path / "absent")]) == 2
    assert cli.run(["chat", "smol", "--ca-file", str(authority.ca)]) == 2


def test_a_known_certificate_is_trusted_under_any_name_and_no_other_is(
    served: Served, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    pair, other = authority.issue("api", "example.com"), authority.issue("other")
    with encrypted(served, pair) as url:
        known = only(pair.certificate.read_text())
        with ApiClient(f"{url}/v1", Secret("sk-right"), trust=known) as client:
            assert client.models() == ["tiny", "alias"]
        strange = only(other.certificate.read_text())
        with (
            ApiClient(f"{url}/v1", Secret("sk-right"), trust=strange) as client,
            pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"),
        ):
            client.models()


def test_nobody_there() -> None:
    with (
        ApiClient(f"http://127.0.0.1:{free_port()}/v1", Secret("k")) as client,
        pytest.raises(Unreachable, match="refused"),
    ):
        client.models()


@pytest.mark.parametrize("concurrency", ["", "0", "1,x", "-1"])
def test_a_concurrency_that_is_none(concurrency: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "http://127.0.0.1:1", f"--concurrency={concurrency}"]) == 2


def test_an_answer_is_timed_from_its_first_to_its_last_token() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    pieces = [Piece(0.5, ""), Piece(1.0, "a"), Piece(2.0, "b"), Piece(2.1, "", usage)]
    answer = answer_of(iter(pieces))
    assert answer == Answer(1.0, 2.0, 7, 3)
    assert answer.per_token == 0.5
    assert answer_of(iter([Piece(0.1, "a")])).error


def test_a_level_counts_only_what_was_answered() -> None:
    good, bad = Answer(1.0, 3.0, 10, 5), Answer(error="HTTP 500: no")
    level = level_of(2, [good, bad], 4.0)
    assert (level.failed, level.output_tokens, level.output_tokens_per_s) == (1, 5, 1.25)
    assert (level.ttft_p50, level.tpot_p50, level.error) == (1.0, 0.5, "HTTP 500: no")
    nothing = level_of(1, [bad], 1.0)
    assert (nothing.ttft_p50, nothing.prompt_tokens) == (None, 0)


def test_percentiles_are_values_that_were_seen() -> None:
    assert percentile([3.0, 1.0, 2.0, 4.0], 50) == 2.0
    assert percentile([float(n) for n in range(1, 201)], 99) == 198.0
    assert percentile([], 50) is None


def test_a_server_without_models_is_no_endpoint() -> None:
    class Empty:
        url = "http://x/v1"

        def models(self) -> list[str]:
            return []

    with pytest.raises(ClusterctlError, match="serves no model"):
        endpoint.first_model(Empty())  # type: ignore[arg-type]
    assert endpoint.with_version("http://x:1/") == "http://x:1/v1"
    assert endpoint.with_version("http://x:1/v1/") == "http://x:1/v1"
