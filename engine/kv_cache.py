"""Which request owns which block of the paged KV cache. Numbers only: no tensors here.

A full block is known by the key of all tokens up to its end, each key hashed from the one before
it (vLLM's scheme). A request whose prompt begins with known blocks shares them instead of
computing them again. Free blocks keep what they hold until they are handed out, least recently
used first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

Tokens = Callable[[int, int], Sequence[int]]
"""The tokens at positions `start .. stop-1` of a request."""


class KVCache:
    """`num_blocks` blocks of `block_size` token positions, handed out one request at a time.

    A block is free, or it is in the tables of one or more requests. `check` states that invariant.
    """

    def __init__(self, num_blocks: int, block_size: int, prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._owners = [0] * num_blocks
        self._tables: dict[str, list[int]] = {}
        self._chains: dict[str, list[bytes]] = {}  # the keys of a request's full blocks so far
        self._known: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_tokens(self) -> int:
        return self.num_blocks * self.block_size

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def blocks(self, request_id: str, count: int | None = None) -> tuple[int, ...]:
        """The request's (first `count`) blocks in the order of its positions; empty when it owns
        none."""
        return tuple(self._tables.get(request_id, ())[:count])

    def reuse(self, request_id: str, tokens: Tokens, num_tokens: int) -> int:
        """Share the longest known prefix of the request, which owns nothing yet. Returns its
        length in tokens: less than `num_tokens`, because the last one must be computed."""
        if not self.prefix_caching:
            return 0
        table, chain = self._match(tokens, (num_tokens - 1) // self.block_size)
        for block in table:
            self._own(block)
        if table:
            self._tables[request_id], self._chains[request_id] = table, chain
        return len(table) * self.block_size

    def grow(self, request_id: str, num_tokens: int) -> bool:
        """Give the request room for positions `0 .. num_tokens-1`; false when the pool is too
        empty, and then nothing has changed."""
        table = self._tables.get(request_id, [])
        missing = self.blocks_for(num_tokens) - len(table)
        if missing > len(self._free):
            return False
        table.extend(self._new() for _ in range(missing))
        if table:
            self._tables[request_id] = table
        return True

    def publish(self, request_id: str, tokens: Tokens, num_computed: int) -> None:
        """The first `num_computed` tokens are in the cache: others may share their full blocks.
        Not to be called while a step still computes them."""
        if not self.prefix_caching:
            return
        size = self.block_size
        chain = self._chains.setdefault(request_id, [])
        for index in range(len(chain), num_computed // size):
            key = _key(chain, tokens(index * size, (index + 1) * size))
            chain.append(key)
            block = self._tables[request_id][index]
            if key not in self._known:  # else another request computed the same meanwhile
                self._known[key], self._key_of[block] = block, key

    def release(self, request_id: str) -> None:
        """Take back all the request's blocks; one that owns none is left as it is.

        The last ones are free first, and so forgotten first: a prefix outlives its ends.
        """
        self._chains.pop(request_id, None)
        for block in reversed(self._tables.pop(request_id, ())):
            self._owners[block] -= 1
            if not self._owners[block]:
                self._free[block] = None

    def check(self) -> None:
        """Raises AssertionError when a block is lost, free and owned, or wrongly known."""
        owners = [0] * self.num_blocks
        for table in self._tables.values():
            for block in table:
                owners[block] += 1
        unowned = [block for block, count in enumerate(owners) if not count]
        if owners != self._owners or unowned != sorted(self._free):
            raise AssertionError(
                f"KV blocks not conserved: {len(self._free)} free, owners {self._tables}"
            )
        if {block: key for key, block in self._known.items()} != self._key_of:
            raise AssertionError("KV blocks known under a key that is not theirs")

    def _match(self, tokens: Tokens, most: int) -> tuple[list[int], list[bytes]]:
        table: list[int] = []
        chain: list[bytes] = []
        for index in range(most):
            key = _key(chain, tokens(index * self.block_size, (index + 1) * self.block_size))
            if key not in self._known:
                break
            table.append(self._known[key])
            chain.append(key)
        return table, chain

    def _own(self, block: int) -> None:
        if not self._owners[block]:
            del self._free[block]
        self._owners[block] += 1

    def _new(self) -> int:
        """The free block that was used longest ago; what it held is forgotten."""
        block = next(iter(self._free))
        self._own(block)
        if key := self._key_of.pop(block, None):
            del self._known[key]
        return block


def _key(chain: Sequence[bytes], tokens: Iterable[int]) -> bytes:
    """128 bits over all tokens up to this block's end: no two prefixes meet by accident, nor by
    intent as with Python's own hash."""
    before = chain[-1] if chain else b""
    return blake2b(before + array("q", tokens).tobytes(), digest_size=16).digest()
