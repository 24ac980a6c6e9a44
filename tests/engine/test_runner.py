from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine import memory, runner
from engine.sampling_params import SamplingParams
from engine.shapes import ShapeError
from engine.step import ScheduledRequest
from tests.engine.conftest import MakeCheckpoint
from tests.engine.rank_loop import GREEDY, Ranks
from tests.engine.test_models import TOKENS, prompts

SEEDED = SamplingParams(temperature=0.8, top_p=0.9, seed=11)


@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_chunked_prefill_gives_the_same_tokens(checkpoint: MakeCheckpoint, chunk: int) -> None:
    ranks = Ranks(checkpoint())
    whole = ranks.generate(prompts(), TOKENS)
    assert ranks.generate(prompts(), TOKENS, chunk=chunk) == whole


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("piece", [1, 4, 20])
def test_a_step_in_pieces_gives_the_same_tokens(
    checkpoint: MakeCheckpoint, piece: int, tp: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of 3, 17, 40 and 1 tokens: whole, whatever the size of a piece."""
    whole = Ranks(checkpoint()).generate(prompts(), TOKENS)
    monkeypatch.setattr(runner, "PIECE_TOKENS", piece)
    assert Ranks(checkpoint(), tp).generate(prompts(), TOKENS) == whole


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED])
def test_a_request_does_not_depend_on_its_batch(
    checkpoint: MakeCheckpoint, sampling: SamplingParams
) -> None:
    ranks = Ranks(checkpoint())
    together = ranks.generate(prompts(), TOKENS, sampling=sampling)
    alone = [ranks.generate([p], TOKENS, sampling=sampling)[0] for p in prompts()]
    assert together == alone


def test_every_cut_draws_the_same_seeded_tokens(checkpoint: MakeCheckpoint) -> None:
    whole = Ranks(checkpoint()).generate(prompts(), TOKENS, sampling=SEEDED)
    cut = Ranks(checkpoint(), 2, 2).generate(prompts(), TOKENS, sampling=SEEDED)
    assert cut == whole
    assert len({tuple(text) for text in whole}) == len(whole)


def test_a_preempted_request_goes_on_as_if_nothing_had_happened(
    checkpoint: MakeCheckpoint,
) -> None:
    """Recompute: prompt and tokens so far are read again, into other blocks."""
    ranks = Ranks(checkpoint())
    prompt = prompts()[1]
    (text,) = ranks.generate([prompt], 10, sampling=SEEDED)
    so_far = (*prompt, *text[:6])
    blocks = ranks.blocks(3, len(so_far))
    again = ScheduledRequest("0", so_far, 0, blocks, True, SEEDED, 6)
    assert ranks.execute(again) == {"0": text[6]}


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_a_chunk_that_is_not_the_last_gives_no_token(
    checkpoint: MakeCheckpoint, tp: int, pp: int
) -> None:
    ranks = Ranks(checkpoint(), tp, pp)
    chunk = ScheduledRequest("a", (5, 6, 7), 0, ranks.blocks(0, 3), False, GREEDY, 0)
    last = ScheduledRequest("b", (5, 6), 0, ranks.blocks(1, 2), True, GREEDY, 0)
    assert ranks.execute(chunk) == {}
    assert ranks.execute(chunk, last).keys() == {"b"}


def test_an_illegal_split_is_refused_before_anything_is_built(checkpoint: MakeCheckpoint) -> None:
    with pytest.raises(ShapeError, match="8 attention heads cannot be split over tp=3"):
        Ranks(checkpoint(), 3)


def block_bytes(ranks: Ranks) -> list[int]:
    return [runner.layout.block_bytes for runner in ranks.runners]


def test_kv_blocks_come_from_the_bytes_given(checkpoint: MakeCheckpoint) -> None:
    """4 layers, 4 KV heads of 8, fp32: 2 x 4 x 16 x 4 x 8 x 4 = 16384 bytes a block."""
    whole = Ranks(checkpoint(), kv_cache_memory_bytes=1_000_000)
    assert block_bytes(whole) == [16384]
    assert whole.collective("measure_kv_blocks") == [61]
    cut = Ranks(checkpoint(), 2, 2, kv_cache_memory_bytes=1_000_000)
    assert block_bytes(cut) == [16384 // 4] * 4
    assert cut.collective("measure_kv_blocks") == [244] * 4
    replicated = Ranks(checkpoint(), 8, kv_cache_memory_bytes=1_000_000)
    assert block_bytes(replicated) == [16384 // 4] * 8


def test_without_bytes_a_cpu_rank_takes_one_gib_if_the_host_has_it(
    checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    meminfo.write_text("MemTotal: 99999999 kB\nMemAvailable:   33554432 kB\n")
    assert memory.cpu_kv_bytes(2) == 1 << 30
    meminfo.write_text("MemTotal: 99999999 kB\nMemAvailable:   1048576 kB\n")
    assert memory.cpu_kv_bytes(2) == 1 << 28
    assert Ranks(checkpoint()).collective("measure_kv_blocks") == [(1 << 29) // 16384]


def test_bfloat16_runs(checkpoint: MakeCheckpoint) -> None:
    ranks = Ranks(checkpoint(), 2, 2, dtype="bfloat16")
    assert ranks.runners[0].dtype == torch.bfloat16
    assert block_bytes(ranks) == [16384 // 8] * 4
    assert [len(text) for text in ranks.generate(prompts(), 4)] == [4] * 4
