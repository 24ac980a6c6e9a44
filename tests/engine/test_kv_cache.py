"""The block pool: blocks are conserved, whatever is asked of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.kv_cache import KVCache

OPERATIONS = st.lists(
    st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.integers(0, 40))), max_size=40
)


@given(st.integers(1, 8), st.integers(1, 5), OPERATIONS)
def test_blocks_are_conserved(
    num_blocks: int, block_size: int, operations: list[tuple[str, int | None]]
) -> None:
    cache = KVCache(num_blocks, block_size)
    sizes = dict.fromkeys("abc", 0)
    for request_id, num_tokens in operations:
        before = cache.blocks(request_id), cache.num_free
        if num_tokens is None:
            cache.release(request_id)
            sizes[request_id] = 0
        elif cache.grow(request_id, num_tokens):
            sizes[request_id] = max(sizes[request_id], cache.blocks_for(num_tokens))
            assert cache.blocks(request_id)[: len(before[0])] == before[0]
        else:
            assert (cache.blocks(request_id), cache.num_free) == before
        cache.check()
        assert {name: len(cache.blocks(name)) for name in sizes} == sizes


def test_a_request_that_owns_nothing_is_not_remembered() -> None:
    cache = KVCache(1, 4)
    assert cache.grow("a", 0)
    assert cache.blocks("a") == ()
    cache.release("a")
    cache.release("never seen")
    assert cache.num_free == 1


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_a_full_block_needs_no_further_one(tokens: int, blocks: int) -> None:
    cache = KVCache(8, 4)
    assert cache.grow("a", tokens)
    assert len(cache.blocks("a")) == cache.blocks_for(tokens) == blocks


def test_check_sees_a_block_that_is_lost_or_owned_twice() -> None:
    lost, doubled = KVCache(2, 4), KVCache(2, 4)
    lost._free.popitem()
    doubled._tables["a"] = [0]
    for cache in (lost, doubled):
        with pytest.raises(AssertionError, match="not conserved"):
            cache.check()
