"""What Prometheus reads at /metrics. Names are vLLM's where the meaning is the same.

Not to be imported where prometheus_client is not installed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric

from engine.core import EngineCore
from engine.outputs import Delta, Sample
from engine.server.bridge import Watch

LABELS = ("model_name", "engine")

# Seconds. As vLLM's, so that dashboards made for it show the same curves.
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
NEXT_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
REQUEST = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)


class Metrics:
    """Of one server's engines; the label `engine` counts them."""

    def __init__(self, cores: Sequence[EngineCore], model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Gauges(cores, model_name))
        self._model_name = model_name
        self._engines = [str(number) for number in range(len(cores))]
        self.watches = [partial(self._watch, engine) for engine in self._engines]
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of the requests taken")
        self._generated = self._counter("generation_tokens", "Tokens generated")
        self._ended = self._counter("request_success", "Requests ended", "finished_reason")
        self._first = self._histogram("time_to_first_token_seconds", FIRST_TOKEN)
        self._next = self._histogram("inter_token_latency_seconds", NEXT_TOKEN)
        self._whole = self._histogram("e2e_request_latency_seconds", REQUEST)

    def text(self) -> tuple[bytes, str]:
        """The exposition and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _watch(self, engine: str, sample: Sample) -> Watch:
        """Begins to measure a request; call it with each delta."""
        began = last = time.monotonic()
        of = self._model_name, engine
        if sample.index == 0:
            self._prompt.labels(*of).inc(len(sample.request.prompt_token_ids))

        def seen(sample: Sample, delta: Delta) -> None:
            nonlocal last
            now = time.monotonic()
            if delta.token_ids:
                self._generated.labels(*of).inc(len(delta.token_ids))
                timed = self._first if sample.num_tokens == 1 else self._next
                timed.labels(*of).observe(now - last)
                last = now
            if delta.finish_reason is not None:
                self._ended.labels(*of, delta.finish_reason).inc()
                self._whole.labels(*of).observe(now - began)

        return seen

    def _counter(self, name: str, help_: str, *labels: str) -> Any:
        made = Counter(f"vllm:{name}", help_, [*LABELS, *labels], registry=self._registry)
        return made if labels else self._at_zero(made)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Any:
        help_ = name.replace("_", " ")
        made = Histogram(f"vllm:{name}", help_, LABELS, buckets=buckets, registry=self._registry)
        return self._at_zero(made)

    def _at_zero(self, made: Any) -> Any:
        """Shown from the start, not from the first request on."""
        for engine in self._engines:
            made.labels(self._model_name, engine)
        return made


class _Gauges:
    """What is so at the moment somebody asks."""

    def __init__(self, cores: Sequence[EngineCore], model_name: str) -> None:
        self._cores = cores
        self._model_name = model_name

    def collect(self) -> Iterator[Metric]:
        loads = [core.load() for core in self._cores]
        alive = [core.dead is None for core in self._cores]
        values = {
            "vllm:num_requests_running": ("Requests that are being computed", "running"),
            "vllm:num_requests_waiting": ("Requests that wait to be computed", "waiting"),
            "vllm:kv_cache_usage_perc": ("Used part of the KV cache, 1: all", "kv_usage"),
            "engine:kv_blocks": ("Blocks of the KV cache", "kv_blocks"),
            "engine:kv_blocks_free": ("Blocks of the KV cache that no request holds", "kv_free"),
        }
        told = {
            name: (help_, [getattr(one, field) for one in loads])
            for name, (help_, field) in values.items()
        }
        told["engine:alive"] = ("1 until a rank has failed", alive)
        for name, (help_, numbers) in told.items():
            gauge = GaugeMetricFamily(name, help_, labels=LABELS)
            for engine, value in enumerate(numbers):
                gauge.add_metric([self._model_name, str(engine)], value)
            yield gauge
