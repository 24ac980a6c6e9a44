"""Which tokens are computed in the next step.

There is no prefill phase and no decode phase: every request has tokens that are not yet in the KV
cache, and a step brings each of them closer, within one budget of tokens. Running requests come
first, in order of arrival; then the waiting ones. When blocks run out the newest running request
gives all of its blocks back and starts again later (recompute).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from engine.kv_cache import KVCache
from engine.request import Output, Request
from engine.step import Details, Introduction, ScheduledRequest, Step, StepResult


class QueueFull(RuntimeError):
    """Too many requests wait already: this one may be sent again later."""


class Scheduler:
    """`schedule()` makes a Step, `commit(result)` takes what the ranks answered.

    A request is part of at most one uncommitted step, so several steps may be in flight. Raises
    ValueError when a request of `max_model_len` tokens could never fit into the KV cache.
    """

    def __init__(
        self,
        kv_cache: KVCache,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        eos_token_ids: Iterable[int] = (),
        max_queued: int | None = None,
    ) -> None:
        if kv_cache.num_tokens < max_model_len:
            raise ValueError(
                f"the KV cache holds {kv_cache.num_tokens} tokens, fewer than max_model_len "
                f"({max_model_len}): lower max_model_len or raise kv_cache_memory_bytes"
            )
        self.kv_cache = kv_cache
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.eos_token_ids = frozenset(eos_token_ids)
        self.max_queued = max_queued
        self._requests: dict[str, Request] = {}
        self._waiting: deque[Request] = deque()
        self._running: dict[str, Request] = {}
        self._uncommitted: dict[int, list[Request]] = {}
        self._next_step_id = 0
        self._ended: list[str] = []  # what the ranks are still to forget

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Every request that has not ended, oldest first."""
        return tuple(self._requests)

    def add(self, request: Request) -> None:
        """Queue it. `max_tokens` None becomes all the room that is left.

        Raises ValueError on an empty prompt, one that is too long, and an id in use; QueueFull
        when too many wait already.
        """
        room = self.max_model_len - len(request.prompt_token_ids)
        if request.request_id in self._requests or self.kv_cache.blocks(request.request_id):
            raise ValueError(f"request id {request.request_id!r} is in use")
        if not request.prompt_token_ids:
            raise ValueError("the prompt is empty: at least one token is needed")
        if room < (request.sampling.max_tokens or 1):
            raise ValueError(self._too_long(request))
        if self.max_queued is not None and len(self._waiting) >= self.max_queued:
            raise QueueFull(f"{len(self._waiting)} requests are waiting already")
        if request.sampling.max_tokens is None:
            request.sampling = replace(request.sampling, max_tokens=room)
        self._requests[request.request_id] = request
        self._waiting.append(request)

    def abort(self, request_id: str) -> Output | None:
        """End a request now, whatever it is doing. None when it has already ended."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return None
        request.finish_reason = "abort"
        if self._running.pop(request_id, None) is None:
            self._waiting.remove(request)
        if not request.in_flight:
            self.kv_cache.release(request_id)
        self._forget(request)
        return Output(request_id, None, "abort")

    def schedule(self) -> Step | None:
        """The next step; None when nothing can be computed before another step is committed."""
        batch: list[Request] = []
        budget = self._schedule_running(batch, self.max_num_batched_tokens)
        self._schedule_waiting(batch, budget)
        if not batch:
            return None
        parts = tuple(self._part(request) for request in batch)
        step = Step(self._next_step_id, parts, self._introduce(batch), tuple(self._ended))
        self._ended.clear()
        self._next_step_id += 1
        self._uncommitted[step.step_id] = batch
        return step

    def commit(self, result: StepResult) -> list[Output]:
        """Take over what a step computed. Requests that ended give their blocks back here."""
        outputs = []
        for request in self._uncommitted.pop(result.step_id):
            request.num_computed += request.in_flight
            request.in_flight = 0
            if request.finish_reason is not None:  # aborted while the step was running
                self.kv_cache.release(request.request_id)
            elif request.num_computed == request.num_tokens:
                token_id = result.token_ids[request.request_id]
                details = result.details.get(request.request_id)
                outputs.append(self._append(request, token_id, details))
        return outputs

    def _schedule_running(self, batch: list[Request], budget: int) -> int:
        for request in list(self._running.values()):
            if not budget:
                break
            idle = not request.in_flight and request.request_id in self._running
            if idle and self._make_room(request):
                budget -= self._take(request, batch, budget)
        return budget

    def _schedule_waiting(self, batch: list[Request], budget: int) -> None:
        """Admit in order of arrival, and only what fits whole: a prompt admitted by its first
        chunk alone would be preempted before its last."""
        while budget and self._waiting and len(self._running) < self.max_num_seqs:
            request = self._waiting[0]
            if not self.kv_cache.grow(request.request_id, request.num_tokens):
                return
            self._running[request.request_id] = self._waiting.popleft()
            budget -= self._take(request, batch, budget)

    def _make_room(self, request: Request) -> bool:
        """Blocks for all of the request's tokens, taken from the newest when the pool is empty.

        False when it was the newest itself that had to go, or when the newest is in a step that
        is not yet committed: its blocks are being written and come back no earlier than that.
        """
        while not self.kv_cache.grow(request.request_id, request.num_tokens):
            newest = next(reversed(self._running.values()))
            if newest.in_flight:
                return False
            self._preempt(newest)
            if newest is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self.kv_cache.release(request.request_id)
        request.num_computed = 0
        request.introduced = False
        del self._running[request.request_id]
        self._waiting.appendleft(request)

    def _take(self, request: Request, batch: list[Request], budget: int) -> int:
        request.in_flight = min(request.num_tokens - request.num_computed, budget)
        batch.append(request)
        return request.in_flight

    def _part(self, request: Request) -> ScheduledRequest:
        start = request.num_computed
        stop = start + request.in_flight
        blocks = self.kv_cache.blocks(request.request_id)
        return ScheduledRequest(
            request_id=request.request_id,
            token_ids=request.tokens(start, stop),
            start=start,
            blocks=blocks[: self.kv_cache.blocks_for(stop)],
            sample=stop == request.num_tokens,
            sampling=request.sampling,
            num_generated=len(request.output_token_ids),
        )

    def _introduce(self, batch: list[Request]) -> tuple[Introduction, ...]:
        new = [request for request in batch if not request.introduced]
        for request in new:
            request.introduced = True
        return tuple(request.introduction() for request in new if request.sampling.special)

    def _forget(self, request: Request) -> None:
        if request.sampling.special:
            self._ended.append(request.request_id)

    def _append(self, request: Request, token_id: int, details: Details | None) -> Output:
        request.output_token_ids.append(token_id)
        may_stop = len(request.output_token_ids) > request.sampling.min_tokens
        if may_stop and token_id in self._stop_ids(request):
            request.finish_reason, request.stop_token_id = "stop", token_id
        elif len(request.output_token_ids) == request.sampling.max_tokens:
            request.finish_reason = "length"
        if request.finish_reason is not None:
            self._finish(request)
        return Output(
            request.request_id, token_id, request.finish_reason, request.stop_token_id, details
        )

    def _finish(self, request: Request) -> None:
        self.kv_cache.release(request.request_id)
        del self._running[request.request_id]
        del self._requests[request.request_id]
        self._forget(request)

    def _stop_ids(self, request: Request) -> frozenset[int]:
        own = frozenset(request.sampling.stop_token_ids)
        return own if request.sampling.ignore_eos else own | self.eos_token_ids

    def _too_long(self, request: Request) -> str:
        wanted = request.sampling.max_tokens
        answer = "" if wanted is None else f" and max_tokens is {wanted}"
        return (
            f"the prompt has {len(request.prompt_token_ids)} tokens{answer}: this model's maximum "
            f"context length, prompt and answer together, is {self.max_model_len} tokens"
        )
