"""A whole model with weights in 8 bits beside itself in fp32: what it says, and what it takes."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from engine.attention.base import Span
from tests.engine.conftest import MakeCheckpoint
from tests.engine.rank_loop import Ranks
from tests.engine.test_smollm2 import smollm2  # noqa: F401  (a fixture)

TEXT = "The capital of France is Paris. The capital of Italy is Rome. Water boils at 100 degrees."


@dataclass(frozen=True)
class Loaded:
    logits: torch.Tensor  # [tokens, vocab]
    mebibytes: float


def loaded(
    model: Path, ids: list[int], quantization: str | None, caplog: pytest.LogCaptureFixture
) -> Loaded:
    with caplog.at_level(logging.INFO, logger="engine.runner"):
        (runner,) = Ranks(model, quantization=quantization).runners
    (*_, said) = re.findall(r"Model weights take ([\d.]+) MiB", caplog.text)
    plan = runner.backend.plan([Span(0, len(ids), tuple(range(-(-len(ids) // 16))))])
    with torch.inference_mode():
        embedded = runner.model.embed(torch.tensor(ids))
        hidden = runner.model(embedded, torch.arange(len(ids)), plan)
        return Loaded(runner.model.logits(hidden), float(said))


def test_a_tiny_model(checkpoint: MakeCheckpoint, caplog: pytest.LogCaptureFixture) -> None:
    """Random weights of 4 layers: an element is off by 1/254 of its row's largest at most."""
    model, ids = checkpoint(), list(range(3, 60))
    whole, eighth = (loaded(model, ids, kind, caplog) for kind in (None, "int8"))
    error = (eighth.logits - whole.logits).norm() / whole.logits.norm()
    assert 1e-4 < error < 0.1
    assert eighth.mebibytes < whole.mebibytes / 2


@pytest.mark.full
def test_a_real_model(smollm2: Path, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    """It predicts the same words as surely, and its weights take what its shape says: 106.2 M in
    matrices, 28.3 M in a table that stays and, packed, is the LM head too."""
    from engine.tokenizer import Tokenizer

    ids = Tokenizer(smollm2).encode(TEXT)
    whole, eighth = (loaded(smollm2, ids, kind, caplog) for kind in (None, "int8"))
    told = [one.logits[:-1].log_softmax(-1) for one in (whole, eighth)]
    truth = torch.tensor(ids[1:]).unsqueeze(1)
    loss, loss_in_eighth = (-one.gather(1, truth).mean() for one in told)
    divergence = (told[0].exp() * (told[0] - told[1])).sum(-1).mean()
    assert abs(loss_in_eighth - loss) < 0.1
    assert divergence < 0.05
    assert (told[0].argmax(-1) == told[1].argmax(-1)).float().mean() > 0.85
    matrices = 106.2e6 / (1 << 20)
    assert whole.mebibytes - eighth.mebibytes == pytest.approx(3 * matrices, rel=0.02)
