"""Whether a deployment gives tokens: by its own counters while they move, else by asking for one.
An answer to /health proves nothing: vLLM gives it after its ranks are gone."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which Python's ssl has no name for


def opener(certificate: str) -> urllib.request.OpenerDirector:
    """`certificate` (PEM): whoever has its key is the one meant, whatever names it bears; one that
    has run out is its clients' trouble, and no death. A proxy in the container's environment is for
    the outside, never for its own address."""
    direct = urllib.request.ProxyHandler({})
    if not certificate:
        return urllib.request.build_opener(direct)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    context.load_verify_locations(cadata=certificate)
    return urllib.request.build_opener(direct, urllib.request.HTTPSHandler(context=context))


# What an engine counts while it computes: vLLM's names, which our engine shares. Not the prompts'
# tokens: ours counts those when a request arrives, as it does at an engine that hangs.
_MOVING = re.compile(
    r"^vllm:(?:generation_tokens_total|iteration_tokens_total_(?:count|sum))(?:\{[^}]*\})? (\S+)$",
    re.MULTILINE,
)
_GENERATED = re.compile(r"^vllm:generation_tokens_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_KV_USAGE = re.compile(
    r"^vllm:(?:kv_cache_usage_perc|gpu_cache_usage_perc)(?:\{[^}]*\})? (\S+)$", re.MULTILINE
)
METRICS_S = 5.0
SLOW = 4  # so many deadlines, while the ranks compute


@dataclass(frozen=True)
class Wanted:
    """`liveness` of spec.json."""

    url: str
    api_key_file: str
    interval_s: float
    deadline_s: float
    stall_s: float = 600.0  # clients of older versions do not say
    certificate: str = ""


@dataclass(frozen=True)
class Metrics:
    """Of one look at /metrics. `kv_usage`: 1 is all; None: the engine does not say."""

    moving: float
    generated: float
    kv_usage: float | None


@dataclass(frozen=True)
class Pulse:
    """`ready_at`, `alive_at`: the first and the last proof of life, seconds since 1970. `refusal`:
    what came last instead of a token, before there was any. `hangs`:
    why it counts as dead, empty while it does not."""

    ready_at: float | None = None
    alive_at: float | None = None
    hangs: str = ""
    tokens_per_s: float | None = None
    kv_usage: float | None = None
    refusal: str = ""


class Liveness:
    """A thread over one epoch. `computing`, set from outside: whether its ranks compute, all of
    them there. Then it is slow (one huge prompt, say); but ranks that wait for each other on a GPU
    look the same, so patience has an end."""

    def __init__(self, wanted: Wanted) -> None:
        self.pulse = Pulse()
        self.computing = False
        self._wanted = wanted
        self._open = opener(wanted.certificate)
        self._over = threading.Event()
        self._lived_at = time.monotonic()
        self._asked = 0  # tokens that we generated ourselves
        self._model = ""  # what the engine calls it
        self._last: tuple[float, Metrics, int] | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(self._wanted.interval_s if self.pulse.ready_at else 1.0):
            before = self._last
            metrics = self._metrics()
            if self.pulse.ready_at and metrics and before and metrics.moving > before[1].moving:
                self._lives(metrics)
            else:
                self._ask(metrics)

    def _ask(self, before: Metrics | None) -> None:
        url, deadline_s = self._wanted.url, self._wanted.deadline_s
        try:
            key = Path(self._wanted.api_key_file).read_text().strip()
            self._model = self._model or model_of(self._open, url, key, deadline_s)
            one_token(self._open, url, key, self._model, deadline_s)
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            self._no_token(error, before)
        else:
            self._asked += 1
            self._lives(self._metrics())

    def _no_token(self, error: Exception, before: Metrics | None) -> None:
        if self.pulse.ready_at is None:
            self.pulse = Pulse(refusal=why(error))  # it starts: progress.py watches that
            return
        now = self._metrics()
        if now and before and now.moving > before.moving:
            self._lives(now)
        else:
            patience_s = self._wanted.deadline_s * (SLOW if self.computing else 1)
            if time.monotonic() - self._lived_at >= patience_s:
                self._hangs(f"no token within {patience_s:g} s ({why(error)})")

    def _hangs(self, text: str) -> None:
        pulse = self.pulse
        self.pulse = Pulse(pulse.ready_at, pulse.alive_at, text, pulse.tokens_per_s, pulse.kv_usage)

    def _lives(self, metrics: Metrics | None) -> None:
        rate = self._rate(metrics)
        kv_usage = metrics.kv_usage if metrics else None
        now = time.time()
        self._lived_at = time.monotonic()
        self.pulse = Pulse(self.pulse.ready_at or now, now, "", rate, kv_usage)

    def _rate(self, metrics: Metrics | None) -> float | None:
        """Tokens a second since the last look, less those that we asked for."""
        before, now = self._last, time.monotonic()
        if metrics is None:
            return None
        self._last = now, metrics, self._asked
        if before is None or now - before[0] <= 0:
            return None
        generated = metrics.generated - before[1].generated - (self._asked - before[2])
        return round(max(0.0, generated) / (now - before[0]), 1)

    def _metrics(self) -> Metrics | None:
        """None: there are none, or they did not come."""
        key = Path(self._wanted.api_key_file)
        address = self._wanted.url.removesuffix("/v1") + "/metrics"
        try:
            said = fetch(self._open, address, key.read_text().strip(), METRICS_S)
            return read_metrics(said.decode())
        except (OSError, http.client.HTTPException, ValueError):
            return None


def read_metrics(text: str) -> Metrics | None:
    """None where the engine counts no tokens."""
    moving, generated = _sum(_MOVING, text), _sum(_GENERATED, text)
    if moving is None or generated is None:
        return None
    usages = [float(match[1]) for match in _KV_USAGE.finditer(text)]
    return Metrics(moving, generated, max(usages, default=None))


def _sum(pattern: re.Pattern[str], text: str) -> float | None:
    found = [float(match[1]) for match in pattern.finditer(text)]
    return sum(found) if found else None


def model_of(by: urllib.request.OpenerDirector, url: str, key: str, seconds: float) -> str:
    served: str = json.loads(fetch(by, f"{url}/models", key, seconds))["data"][0]["id"]
    return served


def one_token(
    by: urllib.request.OpenerDirector, url: str, key: str, model: str, seconds: float
) -> None:
    """Raises LookupError when the answer has no token, and what HTTP raises."""
    asked = {"model": model, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
    body = json.dumps(asked).encode()
    answer: dict[str, Any] = json.loads(fetch(by, f"{url}/completions", key, seconds, body))
    if not answer["usage"]["completion_tokens"]:
        raise LookupError("an answer without a token")


def fetch(
    by: urllib.request.OpenerDirector,
    address: str,
    key: str,
    seconds: float,
    body: bytes | None = None,
) -> bytes:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(address, data=body, headers=headers)
    with by.open(request, timeout=seconds) as response:
        content: bytes = response.read()
    return content


def why(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    reason = getattr(error, "reason", error)
    return f"{type(reason).__name__}: {reason}"
