"""The compiled kernels and the forms of a matrix against the same in plain torch."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from engine.attention.base import KVLayout, Span, Turn, View
from engine.attention.compiled import CompiledBackend
from engine.attention.sdpa import SdpaBackend
from engine.kernels import cpu
from engine.layers.product import FEW_ROWS, Packed, Panels, Plain, fastest, met_rows, quantised

CPU = torch.device("cpu")
DTYPES = pytest.mark.parametrize(
    ("dtype", "close"),
    [(torch.float32, {"atol": 2e-5, "rtol": 2e-5}), (torch.bfloat16, {"atol": 3e-2, "rtol": 3e-2})],
    ids=["fp32", "bf16"],
)


def noise(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def test_this_machine_compiles_them() -> None:
    assert cpu.library() is not None, "a C++ compiler belongs to what the tests need"


@DTYPES
@pytest.mark.parametrize("size", [7, 64, 576])
def test_the_norm_of_a_sum(dtype: torch.dtype, close: dict[str, float], size: int) -> None:
    x, delta, weight = (noise(5, size, seed=n).to(dtype) for n in range(3))
    normed, total = cpu.add_rms_norm(x, delta, weight[0], 1e-5)
    assert torch.equal(total, x + delta)
    expected = functional.rms_norm(total.float(), (size,), weight[0].float(), 1e-5)
    torch.testing.assert_close(normed.float(), expected, **close)
    alone, same = cpu.add_rms_norm(x, None, weight[0], 1e-5)
    assert same is x
    expected = functional.rms_norm(x.float(), (size,), weight[0].float(), 1e-5)
    torch.testing.assert_close(alone.float(), expected, **close)


@DTYPES
def test_the_gate(dtype: torch.dtype, close: dict[str, float]) -> None:
    both = (noise(3, 2 * 37) * 20).to(dtype)
    first, up = both.float().chunk(2, dim=-1)
    torch.testing.assert_close(cpu.silu_gate(both).float(), functional.silu(first) * up, **close)


def test_the_gate_at_the_ends() -> None:
    """Where e^x leaves fp32's range, and where the model is broken already."""
    gates = torch.tensor([[-1e4, -88.0, 0.0, 88.0, 1e4, float("nan"), 1, 1, 1, 1, 1, 1]])
    opened = cpu.silu_gate(gates)[0]
    torch.testing.assert_close(opened[:5], torch.tensor([0, 0, 0, 88.0, 1e4]), atol=1e-30, rtol=0)
    assert opened[5].isnan()


def turns(dim: int) -> Sequence[Turn | None]:
    angles = noise(64, dim // 2, seed=3)
    some = angles[:, : dim // 4].contiguous()
    norms = 1 + noise(dim, seed=4) / 4, 1 + noise(dim, seed=5) / 4
    return (
        None,
        Turn(angles.cos(), angles.sin()),
        Turn(some.cos(), some.sin()),  # turns half of a head
        Turn(angles.cos(), angles.sin(), *norms, eps=1e-6),
    )


@DTYPES
@pytest.mark.parametrize("view", [View(), View(window=5), View(softcap=2.0, scale=0.3)], ids=str)
@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_attention_is_the_reference_s(
    dtype: torch.dtype, close: dict[str, float], view: View, turn: int, kv_heads: int
) -> None:
    """Steps of single tokens and chunks, in blocks that lie anywhere."""
    dim, heads = 16, 8
    dice = random.Random(kv_heads)
    layout = KVLayout(1, 4, kv_heads, dim, dtype)
    backends = [kind(layout.allocate(40, CPU)) for kind in (SdpaBackend, CompiledBackend)]
    order = dice.sample(range(40), 40)
    blocks = [tuple(order[i * 10 : (i + 1) * 10]) for i in range(4)]
    lengths = [0] * 4
    for step in range(6):
        sizes = sorted((dice.choice((1, 1, 1, 3, 6)), request) for request in range(4))
        spans = [Span(lengths[r], size, blocks[r]) for size, r in sizes]
        for size, request in sizes:
            lengths[request] += size
        new = noise(sum(s.length for s in spans), heads + 2 * kv_heads, dim, seed=step).to(dtype)
        expected, found = (
            backend.plan(spans)(0, new.clone(), turns(dim)[turn], view) for backend in backends
        )
        torch.testing.assert_close(found, expected, **close)
    torch.testing.assert_close(backends[1].cache[0], backends[0].cache[0], **close)


@pytest.fixture
def no_library() -> Iterator[None]:
    cpu.library.cache_clear()
    yield
    cpu.library.cache_clear()


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ("/no/such/compiler", "No C++ compiler (g++ or $CXX): the engine runs uncompiled"),
        ("/bin/false", "/bin/false failed: the engine runs uncompiled"),
    ],
)
def test_without_a_compiler_it_says_so_and_still_computes(
    no_library: None,
    compiler: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: object,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with caplog.at_level(logging.WARNING, logger="engine.kernels.cpu"):
        assert not cpu.serves(noise(2, 2))
    assert said in caplog.text


@DTYPES
@pytest.mark.parametrize("rows", [1, 7, 16, 17, 32, 33, 1500])
@pytest.mark.parametrize(("out", "size"), [(48, 64), (100, 576), (1, 32)])
@pytest.mark.parametrize("ours", [True, False], ids=["panels", "onednn"])
def test_a_packed_matrix(
    dtype: torch.dtype,
    close: dict[str, float],
    rows: int,
    out: int,
    size: int,
    ours: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By our kernels where this CPU has what they need, else by oneDNN's. Rows and columns that
    fill their blocks, and that do not; more rows than a chunk."""
    weight, bias = noise(out, size, seed=1).to(dtype), noise(out, seed=2).to(dtype)
    if ours and not cpu.multiplies(weight):
        pytest.skip("this CPU lacks AVX-512 or AMX")
    monkeypatch.setattr(cpu, "multiplies", lambda weight: ours)
    inputs = noise(rows, size, seed=3).to(dtype)
    product = fastest(weight)
    assert isinstance(product, Panels if ours else Packed | Plain)
    expected = functional.linear(inputs.float(), weight.float(), bias.float())
    rounding = torch.finfo(dtype).eps * size**0.5
    torch.testing.assert_close(product(inputs, bias).float(), expected, atol=rounding, rtol=3e-2)
    without = expected - bias.float()
    torch.testing.assert_close(product(inputs).float(), without, atol=rounding, rtol=3e-2)
    assert ours or product.nbytes == weight.nbytes


def test_what_our_products_leave_to_others() -> None:
    assert not cpu.multiplies(noise(8, 60).bfloat16())  # tiles hold 32 elements of a row
    assert not cpu.multiplies(noise(8, 64).half())


def test_onednn_meets_few_numbers_of_rows() -> None:
    """It keeps code for each: memory grew with every batch of another size."""
    met = {rows: met_rows(rows) for rows in range(1, 2049)}
    assert len(set(met.values())) == 40
    assert all(rows <= more <= 1.25 * rows for rows, more in met.items())
    assert all(met[1 << power] == 1 << power for power in range(12))


def test_half_precision_is_left_as_it_is() -> None:
    assert isinstance(fastest(noise(8, 8).half()), Plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_eight_bits_a_weight(dtype: torch.dtype) -> None:
    """No element is further from the weight than half a step of its row, and the product is that
    of the rounded matrix, whichever way it is computed."""
    weight = (noise(48, 64, seed=1) * torch.logspace(-3, 2, 48).unsqueeze(1)).to(dtype)
    product = quantised(weight)
    rounded = product.weight.float() * product.scale.float().unsqueeze(1)
    step = weight.float().abs().amax(dim=1, keepdim=True) / 127
    slack = 0.5 + 127 * torch.finfo(dtype).eps  # the scale is rounded to dtype
    assert ((rounded - weight.float()).abs() <= step * slack).all()
    assert product.nbytes == 48 * 64 + 48 * dtype.itemsize
    bias = noise(48, seed=2).to(dtype)
    for rows in (1, FEW_ROWS, FEW_ROWS + 1):
        inputs = noise(rows, 64, seed=rows).to(dtype)
        expected = functional.linear(inputs.float(), rounded, bias.float())
        error = (product(inputs, bias).float() - expected).norm() / expected.norm()
        assert error < 4 * torch.finfo(dtype).eps


def test_a_row_of_zeros_has_a_scale_too() -> None:
    assert quantised(torch.zeros(2, 4))(noise(1, 4)).eq(0).all()


def test_ranks_that_are_threads_compile_at_once_and_all_get_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    cpu.library.cache_clear()
    try:
        with ThreadPoolExecutor(3) as threads:
            made = list(threads.map(lambda _: cpu.library(), range(3)))
        assert None not in made
        assert [file.suffix for file in (tmp_path / "engine").iterdir()] == [".so"]
    finally:
        cpu.library.cache_clear()
