"""Which request owns which block of the paged KV cache. Numbers only: no tensors here."""

from __future__ import annotations

from collections import deque


class KVCache:
    """`num_blocks` blocks of `block_size` token positions, handed out one request at a time.

    A block has exactly one owner: a request, or the free list. `check` states that invariant.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = deque(range(num_blocks))
        self._tables: dict[str, list[int]] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_tokens(self) -> int:
        return self.num_blocks * self.block_size

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def blocks(self, request_id: str) -> tuple[int, ...]:
        """The request's blocks in the order of its positions; empty when it owns none."""
        return tuple(self._tables.get(request_id, ()))

    def grow(self, request_id: str, num_tokens: int) -> bool:
        """Give the request room for positions `0 .. num_tokens-1`; false when the pool is too
        empty, and then nothing has changed."""
        table = self._tables.get(request_id, [])
        missing = self.blocks_for(num_tokens) - len(table)
        if missing > len(self._free):
            return False
        table.extend(self._free.popleft() for _ in range(missing))
        if table:
            self._tables[request_id] = table
        return True

    def release(self, request_id: str) -> None:
        """Take back all the request's blocks; one that owns none is left as it is."""
        self._free.extend(self._tables.pop(request_id, ()))

    def check(self) -> None:
        """Raises AssertionError when a block is lost, owned twice or unknown."""
        owned = [block for table in self._tables.values() for block in table]
        everywhere = sorted([*self._free, *owned])
        if everywhere != list(range(self.num_blocks)):
            raise AssertionError(
                f"KV blocks not conserved: {len(self._free)} free, owners {self._tables}"
            )
