"""One rank of the model: weights, KV memory, forward, sample."""

from __future__ import annotations

import logging
import os
from functools import partial
from itertools import accumulate, groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import torch

from engine.attention import make_backend
from engine.attention.base import KVLayout, Span
from engine.checkpoint import checkpoint_directory
from engine.config import EngineConfig
from engine.grammar import Grammars
from engine.layers.base import Build, settle
from engine.layers.sampler import Sampler
from engine.layers.special import SpecialRequests
from engine.memory import cpu_kv_bytes, cuda_kv_bytes
from engine.models import build_model
from engine.parallel import ParallelContext
from engine.shapes import ModelShape, stage_layers
from engine.step import PENDING, Deferred, ScheduledRequest, Step, StepResult
from engine.weights import fill_at_random, load_weights

if TYPE_CHECKING:
    from engine.cudasteps import CudaSteps

logger = logging.getLogger(__name__)

PIECE_TOKENS = 512
"""Of a step that go through a CPU's layers together: what a layer makes of them stays in cache
(prompts in fp32 a tenth faster than 2048 tokens at once; fewer read the weights too often)."""


class Runner:
    """The rank's side of `Executor.collective`. Order of calls: load_weights, measure_kv_blocks,
    allocate_kv (with the minimum over all ranks), then execute once a step, the same Step on
    every rank.

    Raises ShapeError when the model cannot be split as `config` asks.
    """

    def __init__(self, config: EngineConfig, shape: ModelShape, parallel: ParallelContext) -> None:
        whole_experts = config.enable_expert_parallel
        shape.check_split(parallel.tp.size, parallel.pp.size, whole_experts)
        if parallel.device.type == "cpu":
            _share_cpu_threads(config.total_ranks)
        partition = shape.partition(parallel.pp.size, config.pipeline_partition)
        layers = stage_layers(partition, parallel.pp.rank)
        self.config = config
        self.shape = shape
        self.parallel = parallel
        self.dtype = getattr(torch, shape.dtype if config.dtype == "auto" else config.dtype)
        build = Build(parallel.tp, parallel.device, self.dtype, whole_experts)
        self.model = build_model(build, shape, layers)
        self.sampler = Sampler(config.seed)
        self._sampled: dict[str, int] = {}  # the last token of each request
        self.steps: CudaSteps | None = None
        grammars = Grammars(config.model, shape.vocab_size, shape.eos_token_ids)
        self.special = SpecialRequests(shape.eos_token_ids, grammars)
        self.layout = KVLayout(
            layers=len(layers),
            block_size=config.block_size,
            kv_heads=shape.kv_heads_per_rank(parallel.tp.size),
            head_dim=shape.head_dim,
            dtype=self.dtype,
        )

    def load_weights(self) -> None:
        """Read this rank's shard from the checkpoint. Raises WeightsError naming tensors."""
        if self.config.load_format == "dummy":
            fill_at_random(self.model, self.config.seed)
        else:
            load_weights(self.model, self.shape, checkpoint_directory(self.config.model))
        size = settle(self.model, self.config.quantization)
        logger.info("Model weights take %.1f MiB", size / (1 << 20))

    def measure_kv_blocks(self) -> int:
        """How many KV blocks this rank has memory for. Call it after load_weights."""
        return self._kv_bytes() // self.layout.block_bytes

    def allocate_kv(self, num_blocks: int) -> None:
        """Take the KV memory. Every rank must be given the same number."""
        device = self.parallel.device
        if device.type == "cpu":
            self.backend = make_backend(self.layout.allocate(num_blocks, device))
            return
        from engine.attention import paged
        from engine.cudasteps import CudaSteps

        with torch.inference_mode():
            cache = paged.allocate(self.layout, num_blocks + 1, device)
            self.steps = CudaSteps(
                self.config,
                self.parallel,
                self.model,
                cache,
                self._table_width(),
                self.special,
            )

    @torch.inference_mode()
    def execute(self, step: Step) -> StepResult | Deferred | None:
        """One step. The result on the last stage's first rank, else None."""
        if self.steps is not None:
            late = self.steps.execute(step)
            return late if self.parallel.tp.rank == 0 else None
        for request_id in step.ended:
            self._sampled.pop(request_id, None)
        hidden = self._stage(step)
        if not self.parallel.is_last_stage:
            self.parallel.pp.send(hidden, self.parallel.pp.rank + 1)
            return None
        result = self._sample(step, hidden)
        return result if self.parallel.tp.rank == 0 else None

    def _stage(self, step: Step) -> torch.Tensor:
        """The step's tokens through this rank's layers: [tokens, hidden]."""
        pieces = _pieces([Span(r.start, len(r.token_ids), r.blocks) for r in step.requests])
        sizes = [sum(span.length for span in spans) for spans in pieces]
        parts = torch.split(self._entering(step), sizes)
        return torch.cat([self._layers(*one) for one in zip(parts, pieces, strict=True)])

    def _layers(self, entering: torch.Tensor, spans: list[Span]) -> torch.Tensor:
        positions = [position for span in spans for position in range(span.start, span.stop)]
        plan = self.backend.plan(spans)
        return self.model(entering, self._ids(positions), plan)  # type: ignore[no-any-return]

    def _entering(self, step: Step) -> torch.Tensor:
        """What this stage begins with: embedded tokens, or the stage before's hidden states."""
        token_ids = [token for request in step.requests for token in self._known_ids(request)]
        if self.parallel.is_first_stage:
            return self.model.embed(self._ids(token_ids))
        size = (len(token_ids), self.shape.hidden_size)
        return self.parallel.pp.receive(size, self.dtype, self.parallel.pp.rank - 1)

    def _sample(self, step: Step, hidden: torch.Tensor) -> StepResult:
        """Every tp rank computes its part of the logits and has all of them, so that all choose
        the same, by the same seeds: each then has what the next step may build on."""
        self.special.begin(step)
        self.special.read_prompts(
            step,
            lambda rows: self.model.normed(hidden[rows]),
            lambda rows: self.model.logits(hidden[rows]),
        )
        requests, rows = _sampled_rows(step)
        logits = self.model.logits(hidden[self._ids(rows)]) if requests else None
        if logits is None:
            return StepResult(step.step_id, {})
        names = [request.request_id for request in requests]
        self.special.adjust(logits, names)
        ids = self.sampler(logits, requests)
        self._sampled.update(zip(names, ids, strict=True))
        details = self.special.details(names, ids)
        return StepResult(step.step_id, dict(zip(names, ids, strict=True)), details)

    def _known_ids(self, request: ScheduledRequest) -> tuple[int, ...]:
        """Its tokens of this step. The one that the driver has not seen was sampled here."""
        if request.token_ids[-1] != PENDING:
            return request.token_ids
        return (*request.token_ids[:-1], self._sampled[request.request_id])

    def _ids(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, device=self.parallel.device)

    def _kv_bytes(self) -> int:
        if self.config.kv_cache_memory_bytes is not None:
            return self.config.kv_cache_memory_bytes
        if self.parallel.device.type == "cuda":
            # As many new tokens as a step can hold, then what the largest CUDA graph holds.
            rehearsals = [partial(self._rehearse, self.config.max_num_batched_tokens, 0)]
            if not self.config.enforce_eager:
                most = self.config.max_num_seqs
                rehearsals.append(partial(self._rehearse, most, most))
            share = self.config.gpu_memory_utilization
            return cuda_kv_bytes(self.parallel.device, share, rehearsals, self.parallel.sharers)
        return cpu_kv_bytes(self.config.total_ranks)

    def _table_width(self) -> int:
        longest = self.config.max_model_len or self.shape.max_position
        return -(-longest // self.layout.block_size)

    @torch.inference_mode()
    def _rehearse(self, tokens: int, singles: int) -> None:
        """`tokens` of which the first `singles` are alone in their requests, through this stage:
        no other is needed. All tokens lie in one block."""
        from engine.attention import paged

        device = self.parallel.device
        table = torch.zeros(1, tokens, dtype=torch.int32, device=device)
        places = torch.arange(tokens, dtype=torch.int32, device=device)
        places %= self.shape.max_position
        pieces = torch.tensor(paged.tiles_of([(0, tokens, 0, 0)]), device=device).int()
        cache = paged.allocate(self.layout, 1, device)
        tiles = None if singles else pieces
        plan = paged.PagedPlan(cache, table, places, torch.zeros_like(places), singles, tiles)
        hidden = torch.zeros(tokens, self.shape.hidden_size, dtype=self.dtype, device=device)
        hidden = self.model(hidden, places, plan)
        if self.parallel.is_last_stage:
            self.model.logits(hidden[: self.config.max_num_seqs]).float()


def _pieces(spans: list[Span]) -> list[list[Span]]:
    """Neighbours, about PIECE_TOKENS of them together."""
    ends = accumulate(span.length for span in spans)
    numbered = zip(spans, ((end - 1) // PIECE_TOKENS for end in ends), strict=True)
    return [[span for span, _ in piece] for _, piece in groupby(numbered, itemgetter(1))]


def _sampled_rows(step: Step) -> tuple[list[ScheduledRequest], list[int]]:
    """The requests that want a token, and the row of each one's last token."""
    ends = accumulate(len(request.token_ids) for request in step.requests)
    sampled = [(r, end - 1) for r, end in zip(step.requests, ends, strict=True) if r.sample]
    return [request for request, _ in sampled], [row for _, row in sampled]


def _share_cpu_threads(ranks: int) -> None:
    """The ranks of one host share its cores, unless OMP_NUM_THREADS has decided."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
