"""Steps on one CUDA rank.

What a request has lives on the device in a row of its own: its block table, its temperature and
seed, its last token. A step therefore sends a few numbers a request, and may be launched before the
tokens of the step before it have reached the host. Steps of single tokens are replayed as CUDA
graphs, one for each size up to the largest batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from engine.attention.paged import PagedPlan, tiles_of
from engine.communicators import Solo
from engine.config import EngineConfig
from engine.kernels.sampling import sample
from engine.layers.sampler import Sampler
from engine.layers.special import SpecialRequests
from engine.models.base import CausalLM
from engine.parallel import ParallelContext
from engine.sampling_params import SamplingParams
from engine.step import Deferred, Details, ScheduledRequest, Step, StepResult

Numbers: TypeAlias = NDArray[np.int32]


@dataclass
class Row:
    """A request's place on the device, and how many of its blocks the table there names."""

    index: int
    blocks: int = 0


@dataclass(frozen=True)
class Graph:
    """`inputs` int32 [4, size]: ids, positions, rows, places."""

    graph: torch.cuda.CUDAGraph
    inputs: torch.Tensor
    logits: torch.Tensor
    chosen: torch.Tensor


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
        self.temperatures = torch.zeros(count + 1, dtype=torch.float32, device=device)
        self.seeds = torch.zeros(count + 1, dtype=torch.int64, device=device)
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
        at = send([self._rows[one.request_id].index for one in new], self.device)
        heat = [0.0 if one.sampling.greedy else one.sampling.temperature for one in new]
        bits = np.array(heat, dtype=np.float32).view(np.int32)
        self.temperatures.index_copy_(0, at.long(), send(bits, self.device).view(torch.float32))
        seeds = torch.tensor([self._seed(one) for one in new], device=self.device)
        self.seeds.index_copy_(0, at.long(), seeds)

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
    """`cache` has one block more than the driver gives out."""

    def __init__(
        self,
        config: EngineConfig,
        parallel: ParallelContext,
        model: CausalLM,
        cache: tuple[torch.Tensor, ...],
        width: int,
        sampler: Sampler,
        special: SpecialRequests,
    ) -> None:
        self.parallel = parallel
        self.model = model
        self.cache = cache
        self.sampler = sampler
        self.special = special
        self.rows = Rows(config, width, parallel.device, spare=cache[0].shape[1] - 1)
        self._graphs: dict[int, Graph] = {}
        if not config.enforce_eager and _can_capture(parallel):
            self._capture(graph_sizes(config.max_num_seqs))

    def execute(self, step: Step, hidden_size: int, dtype: torch.dtype) -> Deferred | None:
        """Launch it. What was sampled, on the last stage's ranks."""
        self.special.begin(step)
        rows = self.rows.update(step)
        if self._graphs and _only_singles(step):
            return self._replayed(step, rows)
        return self._launched(step, rows, hidden_size, dtype)

    def _replayed(self, step: Step, rows: list[int]) -> Deferred:
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
        graph.graph.replay()
        return self._result(step, list(step.requests), rows, graph.logits, graph.chosen)

    def _launched(
        self, step: Step, rows: list[int], hidden_size: int, dtype: torch.dtype
    ) -> Deferred | None:
        lengths = [len(request.token_ids) for request in step.requests]
        plan, ids = self._plan(step, rows, lengths)
        if self.parallel.is_first_stage:
            hidden = self.model.embed(ids)
        else:
            size = (sum(lengths), hidden_size)
            hidden = self.parallel.pp.receive(size, dtype, self.parallel.pp.rank - 1)
        hidden = self.model(hidden, plan.positions, plan)
        if not self.parallel.is_last_stage:
            self.parallel.pp.send(hidden, self.parallel.pp.rank + 1)
            return None
        self.special.read_prompts(
            step,
            lambda part: self.model.normed(hidden[part]),
            lambda part: self.model.logits(hidden[part]).float(),
        )
        return self._sampled(step, rows, hidden, np.cumsum(lengths) - 1)

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
        chosen = self._sample(logits, at, generated)
        return self._result(step, requests, owners, logits, chosen)

    def _sample(
        self, logits: torch.Tensor, rows: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        state = self.rows
        return sample(
            logits.contiguous(), rows, places, state.temperatures, state.seeds, state.last
        )

    def _result(
        self,
        step: Step,
        requests: list[ScheduledRequest],
        rows: list[int],
        logits: torch.Tensor,
        chosen: torch.Tensor,
    ) -> Deferred:
        names = [request.request_id for request in requests]
        lines = [i for i, request in enumerate(requests) if _is_filtered(request.sampling)]
        details = {}
        if lines:
            details = self._choose_again(
                [requests[i] for i in lines], lines, [rows[i] for i in lines], logits, chosen
            )
        host = torch.empty(len(names), dtype=torch.int32, pin_memory=True)
        host.copy_(chosen[: len(names)], non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()

        def wait() -> StepResult:
            done.synchronize()
            return StepResult(step.step_id, dict(zip(names, host.tolist(), strict=True)), details)

        return Deferred(wait)

    def _choose_again(
        self,
        requests: list[ScheduledRequest],
        lines: list[int],
        rows: list[int],
        logits: torch.Tensor,
        chosen: torch.Tensor,
    ) -> dict[str, Details]:
        """Those that ask for more than greedy or temperature, by the general sampler."""
        at = torch.tensor(lines, device=logits.device)
        names = [request.request_id for request in requests]
        own = logits[at].float()
        self.special.adjust(own, names)
        ids = self.sampler(own, requests)
        new = torch.tensor(ids, dtype=torch.int32, device=logits.device)
        chosen[at] = new
        self.rows.last[torch.tensor(rows, device=logits.device)] = new
        return self.special.details(names, ids)

    def _capture(self, sizes: Sequence[int]) -> None:
        pool = torch.cuda.graph_pool_handle()
        graphs: dict[int, Graph] = {}
        for size in reversed(sizes):  # the largest first: the others fit into its memory
            inputs = torch.zeros(4, size, dtype=torch.int32, device=self.parallel.device)
            inputs[2] = self.rows.padding
            self._singles(inputs)  # compiles, and loads what is loaded lazily
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                logits, chosen = self._singles(inputs)
            graphs[size] = Graph(graph, inputs, logits, chosen)
        self._graphs = dict(sorted(graphs.items()))

    def _singles(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One token of each request: what a graph holds."""
        ids, positions, rows, places = inputs.unbind()
        plan = PagedPlan(self.cache, self.rows.tables, positions, rows, len(ids))
        hidden = self.model(self.model.embed(self._known(ids, rows)), positions, plan)
        logits = self.model.logits(hidden)
        return logits, self._sample(logits, rows, places)


def graph_sizes(most: int) -> list[int]:
    """1, 2, 4 .. 32, then every 32, and `most` itself whatever it is."""
    sizes = {1 << n for n in range(6)} | set(range(64, most, 32)) | {most}
    return sorted(size for size in sizes if size <= most)


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


def _is_filtered(sampling: SamplingParams) -> bool:
    if sampling.special:
        return True
    return not sampling.greedy and bool(sampling.top_k or sampling.top_p < 1 or sampling.min_p)


def _can_capture(parallel: ParallelContext) -> bool:
    """One rank only: graphs that hold NCCL's collectives have not been tried yet."""
    return parallel.pp.size == 1 and isinstance(parallel.tp, Solo)
