"""Steps on one CUDA rank.

What a request has lives on the device in a row of its own: its block table, its temperature and
seed, its last token. A step therefore sends a few numbers a request, and may be launched before the
tokens of the step before it have reached the host. Steps of single tokens are replayed as CUDA
graphs, one for each size up to the largest batch: a stage's layers with the collectives of its
tensor group, on the last stage the sampler too. What goes from stage to stage goes between them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray

from engine.attention.paged import PagedPlan, tiles_of
from engine.communicators import ThreadGroup
from engine.config import EngineConfig
from engine.kernels.sampling import Settings, sample
from engine.layers.special import SpecialRequests
from engine.models.base import CausalLM
from engine.parallel import ParallelContext
from engine.step import Deferred, Details, ScheduledRequest, Step, StepResult

logger = logging.getLogger(__name__)


@dataclass
class Row:
    """A request's place on the device, and how many of its blocks the table there names."""

    index: int
    blocks: int = 0


@dataclass(frozen=True)
class Graph:
    """`inputs` int32 [4, size]: ids, positions, rows, places. `entering` [size, hidden]: what the
    stage before gave, read by all stages but the first. `result`: the chosen ids on the last stage,
    the hidden states on the others."""

    graph: torch.cuda.CUDAGraph
    inputs: torch.Tensor
    entering: torch.Tensor
    result: torch.Tensor


class Rows:
    """Rows for twice as many requests as run at once: one that has ended keeps its row until the
    step ahead is over. One more row, the last, pads graphs; its block is the cache's last."""

    def __init__(self, config: EngineConfig, width: int, device: torch.device, spare: int) -> None:
        count = 2 * config.max_num_seqs
        self.device = device
        self.seed = config.seed
        self.padding = count
        self.tables = torch.zeros(count + 1, width, dtype=torch.int32, device=device)
        self.tables[count] = spare
        self.last = torch.zeros(count + 1, dtype=torch.int32, device=device)
        heat, top_p, min_p = torch.zeros(3, count + 1, device=device)
        top_k, seeds = torch.zeros(2, count + 1, dtype=torch.int64, device=device)
        self.settings = Settings(heat, top_p, min_p, top_k, seeds)
        self._rows: dict[str, Row] = {}
        self._free = list(range(count))

    def update(self, step: Step) -> list[int]:
        """Drop what has ended, take in what is new: the row of each request of the step."""
        for request_id in step.ended:
            if row := self._rows.pop(request_id, None):
                self._free.append(row.index)
        new = [request for request in step.requests if request.request_id not in self._rows]
        for request in new:
            self._rows[request.request_id] = Row(self._free.pop())
        rows = [self._rows[request.request_id] for request in step.requests]
        self._join(new)
        self._name_blocks(step.requests, rows)
        return [row.index for row in rows]

    def _join(self, new: Sequence[ScheduledRequest]) -> None:
        if not new:
            return
        at = send([self._rows[one.request_id].index for one in new], self.device).long()
        columns = zip(*map(self._settings, new), strict=True)
        for kept, values in zip(self.settings, columns, strict=True):
            kept.index_copy_(0, at, torch.tensor(values, dtype=kept.dtype, device=self.device))

    def _settings(self, request: ScheduledRequest) -> tuple[float, float, float, int, int]:
        """As kernels.sampling.Settings."""
        own = request.sampling
        heat = 0.0 if own.greedy else min(own.temperature, 1e6)
        return heat, own.top_p, own.min_p, own.top_k or 0, self._seed(request)

    def _seed(self, request: ScheduledRequest) -> int:
        own = request.sampling.seed
        source = f"{self.seed}/{request.request_id}" if own is None else str(own)
        return int.from_bytes(blake2b(source.encode(), digest_size=7).digest(), "big")

    def _name_blocks(self, requests: Sequence[ScheduledRequest], rows: Sequence[Row]) -> None:
        width = self.tables.shape[1]
        places: list[int] = []
        blocks: list[int] = []
        for request, row in zip(requests, rows, strict=True):
            if (count := len(request.blocks)) > row.blocks:
                places += range(row.index * width + row.blocks, row.index * width + count)
                blocks += request.blocks[row.blocks :]
                row.blocks = count
        if places:
            both = send(places + blocks, self.device)
            self.tables.view(-1).index_copy_(0, both[: len(places)].long(), both[len(places) :])


class CudaSteps:
    """`cache` has one block more than the driver gives out; `width` is the length of a block
    table."""

    def __init__(
        self,
        config: EngineConfig,
        parallel: ParallelContext,
        model: CausalLM,
        cache: tuple[torch.Tensor, ...],
        width: int,
        special: SpecialRequests,
    ) -> None:
        self.parallel = parallel
        self.model = model
        self.cache = cache
        self.special = special
        self.rows = Rows(config, width, parallel.device, spare=cache[0].shape[1] - 1)
        self._graphs: dict[int, Graph] = {}
        if not config.enforce_eager and _can_capture(parallel):
            self._capture(config.graph_sizes)

    def execute(self, step: Step) -> Deferred | None:
        """Launch it. What was sampled, on the last stage's ranks."""
        self.special.begin(step)
        rows = self.rows.update(step)
        if self._graphs and _only_singles(step):
            return self._replayed(step, rows)
        return self._launched(step, rows)

    def _replayed(self, step: Step, rows: list[int]) -> Deferred | None:
        count = len(step.requests)
        size = next(size for size in self._graphs if size >= count)
        graph = self._graphs[size]
        inputs = np.zeros((4, size), dtype=np.int32)
        inputs[2, count:] = self.rows.padding
        inputs[:, :count] = (
            [request.token_ids[0] for request in step.requests],
            [request.start for request in step.requests],
            rows,
            [request.num_generated for request in step.requests],
        )
        host = torch.empty(4, size, dtype=torch.int32, pin_memory=True)
        host.numpy()[:] = inputs
        graph.inputs.copy_(host, non_blocking=True)
        if not self.parallel.is_first_stage:
            graph.entering[:count] = self._received(count)
        graph.graph.replay()
        if self.parallel.is_last_stage:
            return self._result(step, list(step.requests), graph.result)
        self._pass_on(graph.result[:count])
        return None

    def _launched(self, step: Step, rows: list[int]) -> Deferred | None:
        lengths = [len(request.token_ids) for request in step.requests]
        plan, ids = self._plan(step, rows, lengths)
        first = self.parallel.is_first_stage
        hidden = self.model.embed(ids) if first else self._received(sum(lengths))
        hidden = self.model(hidden, plan.positions, plan)
        if not self.parallel.is_last_stage:
            self._pass_on(hidden)
            return None
        self.special.read_prompts(
            step,
            lambda part: self.model.normed(hidden[part]),
            lambda part: self.model.logits(hidden[part]).float(),
        )
        return self._sampled(step, rows, hidden, np.cumsum(lengths) - 1)

    def _received(self, tokens: int) -> torch.Tensor:
        before = self.parallel.pp.rank - 1
        return self.parallel.pp.receive((tokens, self.model.hidden_size), self.model.dtype, before)

    def _pass_on(self, hidden: torch.Tensor) -> None:
        self.parallel.pp.send(hidden, self.parallel.pp.rank + 1)

    def _plan(
        self, step: Step, rows: list[int], lengths: list[int]
    ) -> tuple[PagedPlan, torch.Tensor]:
        """The attention of a step of any kind, and the ids of its tokens."""
        starts = [request.start for request in step.requests]
        firsts = np.cumsum([0, *lengths[:-1]])
        total = sum(lengths)
        positions = np.arange(total) - np.repeat(firsts - np.array(starts), lengths)
        ids = [token for request in step.requests for token in request.token_ids]
        singles = lengths.index(next((n for n in lengths if n > 1), 0)) if max(lengths) > 1 else 0
        spans = list(zip(firsts.tolist(), lengths, starts, rows, strict=True))[singles:]
        tiles = tiles_of(spans) if max(lengths) > 1 else []
        flat = np.concatenate(
            (ids, positions, np.repeat(rows, lengths), np.array(tiles, dtype=np.int64).ravel())
        )
        sent = send(flat, self.parallel.device)
        given, placed, owners, pieces = torch.split(sent, [total, total, total, 4 * len(tiles)])
        plan = PagedPlan(
            self.cache,
            self.rows.tables,
            placed,
            owners,
            singles,
            pieces.view(-1, 4) if tiles else None,
        )
        return plan, self._known(given, owners)

    def _known(self, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Tokens that the driver has not seen are those sampled last."""
        return torch.where(ids < 0, self.rows.last.index_select(0, rows), ids)

    def _sampled(
        self, step: Step, rows: list[int], hidden: torch.Tensor, lasts: NDArray[np.int64]
    ) -> Deferred:
        wanted = [i for i, request in enumerate(step.requests) if request.sample]
        requests = [step.requests[i] for i in wanted]
        if not requests:
            return Deferred(lambda: StepResult(step.step_id, {}))
        owners = [rows[i] for i in wanted]
        places = [request.num_generated for request in requests]
        sent = send([*lasts[wanted].tolist(), *owners, *places], self.parallel.device)
        picked, at, generated = torch.split(sent, len(requests))
        logits = self.model.logits(hidden.index_select(0, picked))
        names = [request.request_id for request in requests]
        special = any(request.sampling.special for request in requests)
        if special:
            logits = logits.float()
            self.special.adjust(logits, names)
        chosen = self._sample(logits, at, generated)
        details = self.special.details(names, chosen.tolist()) if special else {}
        return self._result(step, requests, chosen, details)

    def _sample(
        self, logits: torch.Tensor, rows: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        return sample(logits.contiguous(), rows, places, self.rows.settings, self.rows.last)

    def _result(
        self,
        step: Step,
        requests: list[ScheduledRequest],
        chosen: torch.Tensor,
        details: dict[str, Details] | None = None,
    ) -> Deferred:
        names = [request.request_id for request in requests]
        host = torch.empty(len(names), dtype=torch.int32, pin_memory=True)
        host.copy_(chosen[: len(names)], non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()

        def wait() -> StepResult:
            done.synchronize()
            tokens = dict(zip(names, host.tolist(), strict=True))
            return StepResult(step.step_id, tokens, details or {})

        return Deferred(wait)

    def _capture(self, sizes: Sequence[int]) -> None:
        began = time.monotonic()
        pool = torch.cuda.graph_pool_handle()
        graphs: dict[int, Graph] = {}
        for size in reversed(sizes):  # the largest first: the others fit into its memory
            inputs = torch.zeros(4, size, dtype=torch.int32, device=self.parallel.device)
            inputs[2] = self.rows.padding
            wide = (size, self.model.hidden_size)
            entering = torch.zeros(wide, dtype=self.model.dtype, device=inputs.device)
            self._singles(inputs, entering)  # compiles, and loads what is loaded lazily
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            # NCCL's watchdog asks for events from its own thread meanwhile.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                result = self._singles(inputs, entering)
            graphs[size] = Graph(graph, inputs, entering, result)
        self._graphs = dict(sorted(graphs.items()))
        took = time.monotonic() - began
        logger.info("CUDA graphs: %d, up to %d requests, in %.1f s", len(graphs), sizes[-1], took)

    def _singles(self, inputs: torch.Tensor, entering: torch.Tensor) -> torch.Tensor:
        """One token of each request: what a graph holds."""
        ids, positions, rows, places = inputs.unbind()
        plan = PagedPlan(self.cache, self.rows.tables, positions, rows, len(ids))
        if self.parallel.is_first_stage:
            entering = self.model.embed(self._known(ids, rows))
        hidden: torch.Tensor = self.model(entering, positions, plan)
        if not self.parallel.is_last_stage:
            return hidden
        return self._sample(self.model.logits(hidden), rows, places)


def send(values: Sequence[int] | NDArray[np.integer], device: torch.device) -> torch.Tensor:
    """int32 on the device, without waiting. Torch's pinned memory is used again only when the
    copy is over."""
    host = torch.empty(len(values), dtype=torch.int32, pin_memory=True)
    host.numpy()[:] = values
    return host.to(device, non_blocking=True)


def _only_singles(step: Step) -> bool:
    """Whether every request has one token, is to be sampled, and is no special one."""
    return len(step.requests[-1].token_ids) == 1 and all(
        request.sample and not request.sampling.special for request in step.requests
    )


def _can_capture(parallel: ParallelContext) -> bool:
    """Threads that share a device capture each other's work."""
    return parallel.tp.capturable and not isinstance(parallel.pp, ThreadGroup)
