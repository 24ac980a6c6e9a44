"""The vocabulary's two tables, cut by rows: embedding and LM head.

The vocabulary is padded to a multiple of the group's size; padding rows stay unread.

    vocab 7, tp 2:   rank 0: rows 0 1 2 3 | rank 1: rows 4 5 6 (pad)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional

from engine.layers.base import Build, Shard, ShardedLayer
from engine.layers.product import Plain, Product, fastest


class VocabTable(ShardedLayer):
    """This rank's rows of a [vocab, hidden] table. `source`: its name in the checkpoint, if not
    this layer's own."""

    def __init__(self, build: Build, vocab: int, hidden: int, source: str | None = None) -> None:
        super().__init__()
        self.tp = build.tp
        self.vocab = vocab
        self.source = source
        self.rows = -(-vocab // build.tp.size)
        self.first = min(build.tp.rank * self.rows, vocab)
        self.weight = build.parameter(self.rows, hidden)

    def shards(self, name: str) -> Iterator[Shard]:
        hidden = self.weight.shape[1]
        held = slice(self.first, min(self.first + self.rows, self.vocab))
        target = self.weight[: held.stop - held.start]
        source = f"{self.source or name}.weight"
        yield Shard(source, (self.vocab, hidden), (held, slice(0, hidden)), target)


class VocabParallelEmbedding(VocabTable):
    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[tokens] -> [tokens, hidden], whole on every rank."""
        if self.tp.size == 1:
            return functional.embedding(token_ids, self.weight)
        local = token_ids - self.first
        foreign = (local < 0) | (local >= self.rows)
        embedded = functional.embedding(local.masked_fill(foreign, 0), self.weight)
        return self.tp.all_reduce(embedded.masked_fill(foreign.unsqueeze(-1), 0))


class ParallelLMHead(VocabTable):
    product: Product | None = None

    def settle(self, quantization: str | None) -> int:
        """Never in 8 bits: it chooses the token, and the embedding may share it."""
        self.product = fastest(self.weight)
        return self.product.nbytes

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] -> logits [rows, vocab], whole on every rank, padding cut off. In fp32,
        but on CUDA: there the sampler converts what it reads."""
        product = self.product or Plain(self.weight)  # a tied weight is set after construction
        logits = product(hidden)
        logits = self.tp.all_gather(logits, dim=-1)[:, : self.vocab]
        return logits if logits.is_cuda else logits.float()


class LearnedPositions(ShardedLayer):
    """A row for each position, whole on every rank; `offset` rows come before position 0."""

    def __init__(self, build: Build, rows: int, hidden: int, offset: int = 0) -> None:
        super().__init__()
        self.offset = offset
        self.weight = build.parameter(rows, hidden)

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """[tokens] -> [tokens, hidden]."""
        return functional.embedding(positions + self.offset, self.weight)
