"""Which tokens are computed in the next step.

There is no prefill phase and no decode phase: every request has tokens that are not yet in the KV
cache, and a step brings each of them closer, within one budget of tokens. Running requests come
first, in order of arrival; then the waiting ones, by priority and arrival. When blocks run out the
running request that is last in that order gives all of its blocks back and starts again later
(recompute).

Several steps may be in flight. With `lookahead` a request's next token is computed before the one
it follows is known here: the ranks have it (step.PENDING). That a request has ended is then seen
one step late, and the token computed meanwhile is dropped.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator
from dataclasses import replace
from operator import attrgetter
from typing import NamedTuple

from engine.kv_cache import KVCache
from engine.request import Output, Request
from engine.step import PENDING, Details, Introduction, ScheduledRequest, Step, StepResult

# A prompt that others wait behind gets half of what is left of the budget, but no less than this:
# smaller pieces cost more than they spare the others.
SMALLEST_SHARE = 256

_order = attrgetter("order")


class QueueFull(RuntimeError):
    """As many requests wait as may: come back later."""


class Share(NamedTuple):
    """What a step computes of a request: `size` tokens, and with `sample` its next one."""

    request: Request
    size: int
    sample: bool


class Scheduler:
    """`schedule()` makes a Step, `commit(result)` takes what the ranks answered, in that order.

    `microbatches` is how many steps are in flight at once in a pipeline: each then takes its part
    of the decoding requests, so that no stage is idle. `max_queued` None: any number may wait.
    Raises ValueError when a request of `max_model_len` tokens could never fit into the KV cache.
    """

    def __init__(
        self,
        kv_cache: KVCache,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        eos_token_ids: Iterable[int] = (),
        lookahead: bool = False,
        microbatches: int = 1,
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
        self.max_queued = max_queued
        self.eos_token_ids = frozenset(eos_token_ids)
        self.num_preempted = 0
        self._lookahead = lookahead
        self._microbatches = microbatches
        self._requests: dict[str, Request] = {}
        self._waiting: list[Request] = []  # sorted by Request.order
        self._running: dict[str, Request] = {}
        self._uncommitted: dict[int, list[Share]] = {}
        self._ended: list[str] = []  # the ranks still hold rows for these
        self._arrivals = 0
        self._next_step_id = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

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
        request.arrival = self._arrivals
        self._arrivals += 1
        self._requests[request.request_id] = request
        insort(self._waiting, request, key=_order)

    def abort(self, request_id: str) -> Output | None:
        """End a request now, whatever it is doing. None when it has already ended."""
        request = self._requests.get(request_id)
        if request is None:
            return None
        request.finish_reason = "abort"
        if request_id not in self._running:
            self._waiting.remove(request)
        self._finish(request)
        return Output(request_id, None, "abort")

    def schedule(self) -> Step | None:
        """The next step; None when nothing can be computed before another step is committed."""
        shares: list[Share] = []
        left, starved = self._schedule_decodes(shares, self.max_num_batched_tokens)
        self._schedule_prefills(shares, left, admit=not starved)
        if not shares:
            return None
        shares.sort(key=lambda share: share.size > 1)  # stable: single tokens first
        parts = tuple(map(self._part, shares))
        step = Step(self._next_step_id, parts, _introductions(shares), tuple(self._ended))
        self._ended.clear()
        self._next_step_id += 1
        self._uncommitted[step.step_id] = shares
        return step

    def commit(self, result: StepResult) -> list[Output]:
        """Take over what a step computed. Requests that ended give their blocks back when no
        other step has them."""
        outputs = []
        for request, count, sample in self._uncommitted.pop(result.step_id):
            request.in_flight -= 1
            request.num_computed += count
            request.num_pending -= sample
            if request.finish_reason is not None:  # it ended while this step was running
                self._release(request)
                continue
            if sample:
                token_id = result.token_ids[request.request_id]
                details = result.details.get(request.request_id)
                outputs.append(self._append(request, token_id, details))
            self._settle(request)
        return outputs

    # Who gets what of the budget.

    def _schedule_decodes(self, shares: list[Share], budget: int) -> tuple[int, bool]:
        """One token each for requests that need just one. The budget that is left, and whether
        blocks ran out."""
        seats = min(budget, -(-len(self._running) // self._microbatches))
        starved = False
        for request in list(self._running.values()):
            if not seats:
                break
            here = request.request_id in self._running  # else preempted a moment ago
            if not here or request.behind != 1 or not self._is_ready(request):
                continue
            if self._make_room(request):
                self._take(shares, request, 1)
                seats -= 1
                budget -= 1
            else:
                starved = True
        return budget, starved

    def _schedule_prefills(self, shares: list[Share], left: int, admit: bool) -> None:
        """Prompts, the running ones first. Each leaves half of the rest to those behind it; what
        they do not need goes to the first again."""
        wanted: list[tuple[Request, int]] = []
        for request, is_last in _with_last(self._prefills(admit)):
            if not left:
                break
            limit = left if is_last else max(left // 2, min(left, SMALLEST_SHARE))
            if request.request_id not in self._running and not self._admit(request):
                break
            count = min(request.behind, limit)
            wanted.append((request, count))
            left -= count
        for request, count in wanted:
            more = min(request.behind - count, left)
            left -= more
            self._take(shares, request, count + more)

    def _prefills(self, admit: bool) -> Iterator[Request]:
        for request in list(self._running.values()):
            if request.behind > 1 and self._is_ready(request):
                yield request
        if admit:
            seats = self.max_num_seqs - len(self._running)
            yield from self._waiting[: max(seats, 0)]

    def _is_ready(self, request: Request) -> bool:
        """Whether its next token is known, here or on the ranks, and wanted."""
        if request.evicted or request.num_sampled == request.sampling.max_tokens:
            return False
        ahead = self._lookahead and not request.sampling.special
        return ahead or not request.num_pending

    def _admit(self, request: Request) -> bool:
        """Only what fits whole: a prompt admitted by its first chunk alone would be preempted
        before its last."""
        name = request.request_id
        whole = request.sampling.reads_whole_prompt
        cached = 0 if whole else self.kv_cache.reuse(name, request.tokens, request.num_tokens)
        if not self.kv_cache.grow(name, request.num_tokens):
            self.kv_cache.release(name)
            return False
        request.num_computed = request.num_scheduled = cached
        self._waiting.remove(request)
        self._running[name] = request
        return True

    def _make_room(self, request: Request) -> bool:
        """A block for the request's next token, taken from the last in order when the pool is
        empty.

        False when it was the last itself that had to go, or when the last is in a step that is
        not yet committed: its blocks are being written and come back no earlier than that.
        """
        while not self.kv_cache.grow(request.request_id, request.num_scheduled + 1):
            last = max(self._running.values(), key=_order)
            if last.in_flight:
                last.evicted = True
                return False
            self._preempt(last)
            if last is request:
                return False
        return True

    def _take(self, shares: list[Share], request: Request, count: int) -> None:
        sample = count == request.behind
        request.num_scheduled += count
        request.num_pending += sample
        request.in_flight += 1
        shares.append(Share(request, count, sample))

    def _part(self, share: Share) -> ScheduledRequest:
        request, count, sample = share
        start = request.num_scheduled - count
        used = self.kv_cache.blocks_for(request.num_scheduled)
        return ScheduledRequest(
            request_id=request.request_id,
            token_ids=_token_ids(request, start, request.num_scheduled),
            start=start,
            blocks=self.kv_cache.blocks(request.request_id, used),
            sample=sample,
            sampling=request.sampling,
            num_generated=request.num_sampled - sample,
        )

    # How things end.

    def _append(self, request: Request, token_id: int, details: Details | None) -> Output:
        request.output_token_ids.append(token_id)
        may_stop = len(request.output_token_ids) > request.sampling.min_tokens
        if may_stop and self._stops(request, token_id):
            request.finish_reason, request.stop_token_id = "stop", token_id
        elif len(request.output_token_ids) == request.sampling.max_tokens:
            request.finish_reason = "length"
        return Output(
            request.request_id, token_id, request.finish_reason, request.stop_token_id, details
        )

    def _settle(self, request: Request) -> None:
        """What it computed may be shared from now on; and it goes, if it has to."""
        self.kv_cache.publish(request.request_id, request.tokens, request.num_computed)
        if request.finish_reason is not None:
            self._finish(request)
        elif request.evicted and not request.in_flight:
            self._preempt(request)

    def _finish(self, request: Request) -> None:
        self._running.pop(request.request_id, None)
        del self._requests[request.request_id]
        self._release(request)

    def _preempt(self, request: Request) -> None:
        self.num_preempted += 1
        del self._running[request.request_id]
        self._release(request)
        request.num_computed = request.num_scheduled = 0
        request.evicted = False
        insort(self._waiting, request, key=_order)

    def _release(self, request: Request) -> None:
        """Give its blocks back and let the ranks forget it, unless a step still has it."""
        if request.in_flight:
            return
        self.kv_cache.release(request.request_id)
        if request.introduced:
            self._ended.append(request.request_id)
        request.introduced = False

    def _stops(self, request: Request, token_id: int) -> bool:
        if token_id in request.sampling.stop_token_ids:
            return True
        return token_id in self.eos_token_ids and not request.sampling.ignore_eos

    def _too_long(self, request: Request) -> str:
        wanted = request.sampling.max_tokens
        answer = "" if wanted is None else f" and max_tokens is {wanted}"
        return (
            f"the prompt has {len(request.prompt_token_ids)} tokens{answer}: this model's maximum "
            f"context length, prompt and answer together, is {self.max_model_len} tokens"
        )


def _introductions(shares: Iterable[Share]) -> tuple[Introduction, ...]:
    new = [share.request for share in shares if not share.request.introduced]
    for request in new:
        request.introduced = True
    return tuple(request.introduction() for request in new if request.sampling.special)


def _token_ids(request: Request, start: int, stop: int) -> tuple[int, ...]:
    """The tokens at positions `start .. stop-1`; the last may be known to the ranks alone."""
    known = request.tokens(start, min(stop, request.num_tokens))
    return known if len(known) == stop - start else (*known, PENDING)


def _with_last(requests: Iterable[Request]) -> Iterator[tuple[Request, bool]]:
    """Each with whether it is the last one."""
    ahead = iter(requests)
    current = next(ahead, None)
    while current is not None:
        following = next(ahead, None)
        yield current, following is None
        current = following
