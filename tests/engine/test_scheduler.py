"""The scheduler: random traces against its invariants, and a test for each bug that compact
engines are known to have had here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kv_cache import KVCache
from engine.request import Output, Request
from engine.sampling_params import SamplingParams
from engine.scheduler import SMALLEST_SHARE, QueueFull, Scheduler
from engine.step import PENDING, ScheduledRequest, Step, StepResult

EOS = 1
Model = Callable[[ScheduledRequest], int]


def text(request: ScheduledRequest) -> int:
    """A token that only depends on the request and its place, as a real model's greedy one."""
    return 10 + request.num_generated


def answer(step: Step, model: Model = text) -> StepResult:
    return StepResult(step.step_id, {r.request_id: model(r) for r in step.requests if r.sample})


def make(
    *,
    num_blocks: int = 16,
    block_size: int = 4,
    max_num_seqs: int = 8,
    budget: int = 64,
    max_model_len: int = 32,
    **more: Any,
) -> Scheduler:
    return Scheduler(
        KVCache(num_blocks, block_size),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        max_model_len=max_model_len,
        eos_token_ids=(EOS,),
        **more,
    )


def request(
    name: str, prompt: int, max_tokens: int | None = 4, *, begin: int = 100, **sampling: Any
) -> Request:
    """Prompts that `begin` alike are alike as far as they go."""
    params = SamplingParams(max_tokens=max_tokens, **sampling)
    return Request(name, tuple(range(begin, begin + prompt)), params)


def added(scheduler: Scheduler, *requests: Request) -> Scheduler:
    for one in requests:
        scheduler.add(one)
    return scheduler


def scheduled(step: Step | None) -> list[tuple[str, int, int, bool]]:
    """(id, start, number of tokens, sample) of each part."""
    assert step is not None
    return [(r.request_id, r.start, len(r.token_ids), r.sample) for r in step.requests]


def run(scheduler: Scheduler, model: Model = text, limit: int = 1000) -> list[Output]:
    """Step until nothing is left."""
    outputs: list[Output] = []
    for _ in range(limit):
        step = scheduler.schedule()
        if step is None:
            break
        check_step(scheduler, step)
        outputs += scheduler.commit(answer(step, model))
    assert not scheduler.has_work
    return outputs


def tokens_of(outputs: Iterable[Output], name: str) -> list[int | None]:
    return [output.token_id for output in outputs if output.request_id == name]


# Random traces.


@dataclass
class Ranks:
    """What the ranks would hold: the token that was written into each slot. Attention reads all
    earlier positions, so that a step may only be given slots that hold this request's tokens."""

    block_size: int
    slots: dict[tuple[int, int], int] = field(default_factory=dict)

    sampled: dict[str, int] = field(default_factory=dict)

    def execute(self, step: Step, known: dict[str, Request]) -> StepResult:
        for name in step.ended:
            self.sampled.pop(name, None)
        for part in step.requests:
            for offset, token in enumerate(part.token_ids):
                seen = self.sampled[part.request_id] if token == PENDING else token
                self.slots[self._slot(part, part.start + offset)] = seen
        for part in step.requests:
            stop = part.start + len(part.token_ids)
            read = tuple(self.slots[self._slot(part, place)] for place in range(stop))
            written = tuple(10 + n for n in range(stop))
            assert read == (*known[part.request_id].prompt_token_ids, *written)[:stop]
        result = answer(step)
        self.sampled.update(result.token_ids)
        return result

    def _slot(self, part: ScheduledRequest, place: int) -> tuple[int, int]:
        return part.blocks[place // self.block_size], place % self.block_size


def check_step(scheduler: Scheduler, step: Step) -> None:
    ids = [part.request_id for part in step.requests]
    assert len(ids) == len(set(ids)) <= scheduler.max_num_seqs
    assert all(part.token_ids for part in step.requests)
    total = sum(len(part.token_ids) for part in step.requests)
    assert 0 < total <= scheduler.max_num_batched_tokens
    for part in step.requests:
        stop = part.start + len(part.token_ids)
        assert len(part.blocks) == scheduler.kv_cache.blocks_for(stop)
    size = scheduler.kv_cache.block_size
    written = [block for part in step.requests for block in part.blocks[part.start // size :]]
    held = [block for part in step.requests for block in set(part.blocks)]
    assert all(held.count(block) == 1 for block in written)


TRACE = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 24), st.integers(1, 8)),
        st.tuples(st.just("abort"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("step"), st.integers(0, 2), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(
    block_size=st.integers(1, 6),
    spare=st.integers(0, 6),
    max_num_seqs=st.integers(1, 5),
    more_budget=st.integers(0, 20),
    depth=st.integers(1, 3),
    lookahead=st.booleans(),
    microbatches=st.integers(1, 3),
    stop=st.integers(10, 20),
    trace=TRACE,
)
def test_blocks_are_conserved_and_every_request_gets_its_tokens(
    block_size: int,
    spare: int,
    max_num_seqs: int,
    more_budget: int,
    depth: int,
    lookahead: bool,
    microbatches: int,
    stop: int,
    trace: list[tuple[str, int, int]],
) -> None:
    """With `depth` steps in flight, aborts between them, equal prompts, priorities, and a pool
    that barely holds one."""
    longest = 32
    scheduler = make(
        num_blocks=-(-longest // block_size) + spare,
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        budget=max_num_seqs + more_budget,
        max_model_len=longest,
        lookahead=lookahead,
        microbatches=microbatches,
    )
    ranks = Ranks(block_size)
    requests: dict[str, Request] = {}
    outputs: list[Output] = []
    in_flight: list[tuple[Step, StepResult]] = []

    def launch() -> bool:
        step = scheduler.schedule()
        scheduler.kv_cache.check()
        if step is None:
            return False
        check_step(scheduler, step)
        in_flight.append((step, ranks.execute(step, requests)))
        return True

    def retire() -> None:
        _, result = in_flight.pop(0)
        outputs.extend(scheduler.commit(result))
        scheduler.kv_cache.check()

    for action, first, second in trace:
        if action == "add":
            name = str(len(requests))
            requests[name] = request(name, first, second, stop_token_ids=(stop,))
            requests[name].priority = first % 3
            scheduler.add(requests[name])
        elif action == "abort":
            ended = scheduler.abort(str(first))
            outputs.extend([ended] if ended else [])
        elif (len(in_flight) == depth or not launch()) and in_flight:
            retire()
        scheduler.kv_cache.check()
    while launch() or in_flight:
        retire()

    assert not scheduler.has_work
    assert scheduler.kv_cache.num_free == scheduler.kv_cache.num_blocks
    for name, one in requests.items():
        ends = [o.finish_reason for o in outputs if o.request_id == name and o.finish_reason]
        assert ends == [one.finish_reason]
        wanted = one.sampling.max_tokens
        assert wanted is not None
        expected = [10 + n for n in range(wanted) if 10 + n <= stop]
        if one.finish_reason == "abort":
            assert one.output_token_ids == expected[: len(one.output_token_ids)]
        else:
            reason = "stop" if expected[-1] == stop else "length"
            assert (one.finish_reason, one.output_token_ids) == (reason, expected)


# The order of things.


def test_running_requests_come_before_waiting_ones_within_one_budget() -> None:
    scheduler = added(make(budget=8), request("a", 4), request("b", 10))
    step = scheduler.schedule()
    assert scheduled(step) == [("a", 0, 4, True), ("b", 0, 4, False)]
    assert step is not None
    scheduler.commit(answer(step))
    scheduler.add(request("c", 3))
    assert scheduled(scheduler.schedule()) == [
        ("a", 4, 1, True),
        ("c", 0, 1, False),
        ("b", 4, 6, True),
    ]


def test_waiting_requests_are_admitted_in_order_of_arrival() -> None:
    scheduler = make(num_blocks=8, max_num_seqs=8)
    added(scheduler, request("a", 16), request("too big now", 20), request("would fit", 4))
    assert [name for name, *_ in scheduled(scheduler.schedule())] == ["a"]


def test_no_more_than_max_num_seqs_run() -> None:
    scheduler = added(make(max_num_seqs=2), *(request(name, 2) for name in "abc"))
    assert [name for name, *_ in scheduled(scheduler.schedule())] == ["a", "b"]
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 1)


def test_a_request_is_in_one_uncommitted_step_at_most() -> None:
    scheduler = added(make(budget=8), request("a", 8), request("b", 8))
    first = scheduler.schedule()
    second = scheduler.schedule()
    assert scheduled(first) == [("a", 0, 8, True)]
    assert scheduled(second) == [("b", 0, 8, True)]
    assert scheduler.schedule() is None


def test_a_long_prompt_that_takes_the_whole_budget_leaves_no_empty_part() -> None:
    scheduler = added(make(budget=8), request("a", 20), request("b", 3))
    steps = [scheduler.schedule() for _ in range(3)]
    assert [scheduled(step) for step in steps] == [
        [("a", 0, 8, False)],
        [("a", 8, 8, False)],
        [("a", 16, 4, True), ("b", 0, 3, True)],
    ]


# How requests end.


def test_max_tokens_ends_by_length() -> None:
    outputs = run(added(make(), request("a", 3, max_tokens=3)))
    assert [(o.token_id, o.finish_reason) for o in outputs] == [
        (10, None),
        (11, None),
        (12, "length"),
    ]


def test_the_end_of_sequence_stops_unless_it_is_ignored() -> None:
    def model(part: ScheduledRequest) -> int:
        return EOS if part.num_generated == 1 else 7

    scheduler = added(make(), request("a", 3), request("b", 3, ignore_eos=True))
    outputs = run(scheduler, model)
    assert tokens_of(outputs, "a") == [7, EOS]
    assert tokens_of(outputs, "b") == [7, EOS, 7, 7]
    (stopped,) = [output for output in outputs if output.finish_reason == "stop"]
    assert stopped == Output("a", EOS, "stop", EOS)


def test_stop_token_ids_stop_even_where_the_end_of_sequence_is_ignored() -> None:
    scheduler = added(make(), request("a", 3, stop_token_ids=(11,), ignore_eos=True))
    assert run(scheduler)[-1] == Output("a", 11, "stop", 11)


def test_nothing_stops_before_min_tokens() -> None:
    scheduler = added(make(), request("a", 3, min_tokens=2, stop_token_ids=(10, 11, 12)))
    assert tokens_of(run(scheduler), "a") == [10, 11, 12]


def test_max_tokens_none_is_all_the_room_that_is_left() -> None:
    outputs = run(added(make(max_model_len=32), request("a", 30, max_tokens=None)))
    assert tokens_of(outputs, "a") == [10, 11]


def test_a_finished_request_is_forgotten_and_its_id_is_free_again() -> None:
    scheduler = added(make(), request("a", 3))
    run(scheduler)
    run(added(scheduler, request("a", 3)))


# What is refused.


def test_prompt_and_max_tokens_beyond_max_model_len_are_refused() -> None:
    scheduler = make(max_model_len=32)
    with pytest.raises(
        ValueError, match=r"prompt has 30 tokens and max_tokens is 3: .* is 32 tokens"
    ):
        scheduler.add(request("a", 30, max_tokens=3))
    scheduler.add(request("b", 30, max_tokens=2))
    with pytest.raises(ValueError, match="prompt has 32 tokens: "):
        scheduler.add(request("c", 32, max_tokens=None))


def test_an_empty_prompt_and_a_known_id_are_refused() -> None:
    scheduler = added(make(), request("a", 3))
    with pytest.raises(ValueError, match="prompt is empty"):
        scheduler.add(request("b", 0))
    with pytest.raises(ValueError, match="'a' is in use"):
        scheduler.add(request("a", 3))


def test_a_cache_smaller_than_the_longest_request_is_refused() -> None:
    with pytest.raises(ValueError, match=r"holds 28 tokens, fewer than max_model_len \(32\)"):
        make(num_blocks=7, block_size=4, max_model_len=32)
    make(num_blocks=8, block_size=4, max_model_len=32)


# Known bugs of compact engines.


def test_bug_a_chunk_attends_beyond_itself() -> None:
    """The blocks of a part end with the part, not with the prompt."""
    step = added(make(budget=8), request("a", 20)).schedule()
    assert step is not None
    (part,) = step.requests
    assert (len(part.token_ids), len(part.blocks)) == (8, 2)


def test_bug_only_the_last_chunk_samples() -> None:
    scheduler = added(make(budget=8), request("a", 20, max_tokens=1))
    parts = []
    while step := scheduler.schedule():
        parts += scheduled(step)
        scheduler.commit(answer(step))
    assert parts == [("a", 0, 8, False), ("a", 8, 8, False), ("a", 16, 4, True)]


def test_bug_decode_positions_start_after_the_prompt() -> None:
    scheduler = added(make(), request("a", 5))
    step = scheduler.schedule()
    assert step is not None
    scheduler.commit(answer(step))
    step = scheduler.schedule()
    assert step is not None
    (part,) = step.requests
    assert (part.start, part.token_ids, part.num_generated) == (5, (10,), 1)


@pytest.mark.parametrize("prompt", [3, 4, 5])
def test_bug_off_by_one_at_the_edge_of_a_block(prompt: int) -> None:
    """A pool with exactly the blocks that the tokens need: the last one generated is never
    written, so that it needs no slot."""
    scheduler = make(num_blocks=2, block_size=4, max_model_len=8)
    outputs = run(added(scheduler, request("a", prompt, max_tokens=8 - prompt)))
    assert len(outputs) == 8 - prompt


def preempting() -> tuple[Scheduler, Request, Request]:
    """Two requests that together outgrow the pool at the next token."""
    scheduler = make(num_blocks=4, block_size=4, max_model_len=16)
    old, new = request("old", 8, max_tokens=8), request("new", 7, max_tokens=4, begin=200)
    added(scheduler, old, new)
    for _ in range(2):
        step = scheduler.schedule()
        assert step is not None
        scheduler.commit(answer(step))
    return scheduler, old, new


def test_bug_a_preempted_request_comes_back_with_stale_blocks() -> None:
    scheduler, _, new = preempting()
    assert scheduler.num_running == 1
    assert (new.num_computed, scheduler.kv_cache.blocks("new")) == (0, ())
    outputs = run(scheduler)
    assert tokens_of(outputs, "new")[-1] == 13
    assert new.output_token_ids == [10, 11, 12, 13]


def test_bug_a_preempted_request_sends_only_its_last_token() -> None:
    """Recomputing needs prompt and output: the ranks hold nothing of it any more."""
    scheduler, _, new = preempting()
    again = []
    while step := scheduler.schedule():
        again += [part for part in step.requests if part.request_id == "new" and not part.start]
        scheduler.commit(answer(step))
    (part,) = again
    assert part.token_ids == (*new.prompt_token_ids, new.output_token_ids[0])
    assert part.num_generated == 1


def test_bug_preemption_takes_the_newest_and_it_returns_before_later_arrivals() -> None:
    scheduler = make(num_blocks=4, block_size=4, max_num_seqs=2, max_model_len=16)
    added(scheduler, request("old", 8), request("new", 7, begin=200), request("later", 1))
    ends = [output.request_id for output in run(scheduler) if output.finish_reason]
    assert ends == ["old", "new", "later"]


def test_bug_abort_and_finish_in_the_same_step_free_twice() -> None:
    scheduler = added(make(), request("a", 3, max_tokens=1))
    step = scheduler.schedule()
    assert step is not None
    assert scheduler.abort("a") == Output("a", None, "abort")
    assert scheduler.commit(answer(step)) == []
    assert scheduler.abort("a") is None
    scheduler.kv_cache.check()
    assert scheduler.kv_cache.num_free == scheduler.kv_cache.num_blocks


def test_bug_blocks_are_freed_while_a_step_still_writes_them() -> None:
    scheduler = added(make(num_blocks=8), request("a", 20))
    step = scheduler.schedule()
    assert step is not None
    scheduler.abort("a")
    assert len(scheduler.kv_cache.blocks("a")) == 5
    with pytest.raises(ValueError, match="'a' is in use"):
        scheduler.add(request("a", 3))
    scheduler.commit(answer(step))
    assert scheduler.kv_cache.num_free == 8


def test_bug_a_step_in_flight_loses_its_blocks_to_another_request() -> None:
    """The newest one may be preempted only when no step is writing its blocks."""
    scheduler = make(num_blocks=4, block_size=4, max_model_len=16)
    old, new = request("old", 8, max_tokens=8), request("new", 8, max_tokens=8, begin=200)
    first = added(scheduler, old).schedule()
    second = added(scheduler, new).schedule()
    assert first is not None
    assert second is not None
    scheduler.commit(answer(first))
    assert scheduler.schedule() is None
    assert len(scheduler.kv_cache.blocks("new")) == 2
    scheduler.commit(answer(second))
    assert scheduled(scheduler.schedule()) == [("old", 8, 1, True)]


def test_bug_the_order_of_a_batch_is_the_order_of_arrival() -> None:
    """A batch made from a set would differ between processes."""
    names = [f"request-{number}" for number in range(8)]
    scheduler = added(make(num_blocks=32), *(request(name, 2) for name in names))
    for _ in range(3):
        step = scheduler.schedule()
        assert [name for name, *_ in scheduled(step)] == names
        assert step is not None
        scheduler.commit(answer(step))


def test_bug_a_prompt_longer_than_the_budget_waits_for_ever() -> None:
    assert len(run(added(make(max_num_seqs=1, budget=1), request("a", 9, max_tokens=2)))) == 2


def test_abort_of_a_waiting_request_leaves_the_queue_whole() -> None:
    scheduler = added(make(max_num_seqs=1), *(request(name, 2) for name in "abc"))
    scheduler.abort("b")
    assert [o.request_id for o in run(scheduler) if o.finish_reason] == ["a", "c"]


def test_abort_of_an_unknown_request_is_nothing() -> None:
    assert make().abort("who") is None


# Prefixes that are known already.


def first_part(scheduler: Scheduler) -> ScheduledRequest:
    """Of the next step, which is committed."""
    step = scheduler.schedule()
    assert step is not None
    scheduler.commit(answer(step))
    return step.requests[0]


def test_a_known_prefix_is_shared_and_not_computed_again() -> None:
    scheduler = added(make(), request("a", 10, max_tokens=1))
    before = first_part(scheduler)
    part = first_part(added(scheduler, request("b", 14, max_tokens=1)))
    assert (part.start, len(part.token_ids)) == (8, 6)
    assert part.blocks[:2] == before.blocks[:2]


def test_bug_a_prompt_that_is_wholly_known_schedules_no_token() -> None:
    scheduler = make()
    for name in "ab":
        part = first_part(added(scheduler, request(name, 8, max_tokens=1)))
    assert (part.start, len(part.token_ids), part.sample) == (4, 4, True)


def test_bug_a_block_is_shared_while_a_step_still_computes_it() -> None:
    scheduler = added(make(), request("a", 9), request("b", 9))
    step = scheduler.schedule()
    assert scheduled(step) == [("a", 0, 9, True), ("b", 0, 9, True)]
    added(scheduler, request("c", 9))
    assert scheduled(scheduler.schedule()) == [("c", 0, 9, True)]


def test_bug_sizes_are_taken_before_the_cache_was_asked() -> None:
    """A hit makes the rest of a prompt small: what is left of the budget goes to others."""
    scheduler = make(budget=8, num_blocks=32)
    run(added(scheduler, request("a", 9, max_tokens=1)))
    other = Request("c", (7, 8, 9), SamplingParams(max_tokens=1))
    added(scheduler, request("b", 12), other)
    assert scheduled(scheduler.schedule()) == [("b", 8, 4, True), ("c", 0, 3, True)]


def test_what_must_read_its_whole_prompt_takes_nothing_from_the_cache() -> None:
    scheduler = make()
    first_part(added(scheduler, request("a", 9, max_tokens=1)))
    part = first_part(added(scheduler, request("b", 9, max_tokens=1, prompt_logprobs=1)))
    assert (part.start, len(part.token_ids)) == (0, 9)


def test_prefixes_are_forgotten_from_their_ends() -> None:
    """A pool of 8 blocks: 3 full ones are known, 6 are wanted, so that one may stay."""
    scheduler = make(num_blocks=8)
    run(added(scheduler, request("a", 13, max_tokens=1)))
    other = Request("x", tuple(range(500, 523)), SamplingParams(max_tokens=1))
    run(added(scheduler, other))
    part = first_part(added(scheduler, request("b", 13, max_tokens=1)))
    assert part.start == 8


# Ahead of what is known.


def test_a_token_is_computed_before_the_one_it_follows_is_known() -> None:
    scheduler = added(make(lookahead=True), request("a", 5, max_tokens=3))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert first is not None
    assert second is not None
    assert scheduled(second) == [("a", 5, 1, True)]
    assert second.requests[0].token_ids == (PENDING,)
    assert second.requests[0].num_generated == 1
    assert tokens_of(scheduler.commit(answer(first)), "a") == [10]


def test_nothing_is_computed_beyond_max_tokens() -> None:
    scheduler = added(make(lookahead=True), request("a", 5, max_tokens=2))
    assert scheduler.schedule() is not None
    assert scheduler.schedule() is not None
    assert scheduler.schedule() is None


def test_bug_a_finished_request_in_the_step_ahead_loses_its_blocks() -> None:
    """Its end is seen one step late: the blocks stay its own until that step is over."""
    scheduler = added(make(lookahead=True), request("a", 5, stop_token_ids=(10,)))
    first, ahead = scheduler.schedule(), scheduler.schedule()
    assert first is not None
    assert ahead is not None
    assert [output.finish_reason for output in scheduler.commit(answer(first))] == ["stop"]
    assert len(scheduler.kv_cache.blocks("a")) == 2
    assert scheduler.commit(answer(ahead)) == []
    assert scheduler.kv_cache.num_free == scheduler.kv_cache.num_blocks


def test_what_depends_on_the_tokens_before_is_not_computed_ahead() -> None:
    scheduler = added(make(lookahead=True), request("a", 5, presence_penalty=1.0))
    assert scheduler.schedule() is not None
    assert scheduler.schedule() is None


# Who comes first.


def test_a_long_prompt_leaves_half_of_the_budget_to_those_behind_it() -> None:
    budget = 4 * SMALLEST_SHARE
    scheduler = make(num_blocks=64, block_size=256, budget=budget, max_model_len=8 * budget)
    added(scheduler, request("long", 5 * budget), request("short", 300))
    assert scheduled(scheduler.schedule()) == [
        ("long", 0, budget - 300, False),
        ("short", 0, 300, True),
    ]


def test_priority_goes_before_arrival() -> None:
    scheduler = make(max_num_seqs=1)
    late, urgent = request("late", 2), request("urgent", 2)
    urgent.priority = -1
    added(scheduler, late, urgent)
    assert [name for name, *_ in scheduled(scheduler.schedule())] == ["urgent"]


def test_the_least_urgent_is_preempted_whenever_it_came() -> None:
    scheduler = make(num_blocks=4, block_size=4, max_model_len=16)
    old, new = request("old", 8, max_tokens=8), request("new", 7, max_tokens=8, begin=200)
    old.priority = 1
    added(scheduler, new, old)
    while scheduler.num_running in (0, 2):
        first_part(scheduler)
    assert scheduler.num_preempted == 1
    assert old.num_computed == 0


def test_each_microbatch_takes_its_part_of_the_decodes() -> None:
    scheduler = make(microbatches=2)
    added(scheduler, *(request(name, 2) for name in "abc"))
    first_part(scheduler)
    steps = scheduler.schedule(), scheduler.schedule()
    names = [[name for name, *_ in scheduled(step)] for step in steps]
    assert names == [["a", "b"], ["c"]]


def test_a_full_queue_refuses() -> None:
    scheduler = added(make(max_queued=1), request("a", 2))
    with pytest.raises(QueueFull, match="1 requests are waiting already"):
        scheduler.add(request("b", 2))
    assert scheduler.schedule() is not None
    added(scheduler, request("b", 2))
