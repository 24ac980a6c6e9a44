"""input @ weight.T, the weight as it is, packed for the CPU, or in 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from engine.kernels import cpu

ROWS = 32
"""Of the inputs that packed weights are laid out for: a batch of decoding requests."""

FEW_ROWS = 8
"""Up to here the int8 kernel, which reads half of bf16's bytes, beats unpacking into a product."""


class Product(Protocol):
    def __call__(self, inputs: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """[rows, in] -> [rows, out]."""
        ...

    @property
    def nbytes(self) -> int: ...

    @property
    def weight(self) -> torch.Tensor:
        """In its own form."""
        ...

    @property
    def scale(self) -> torch.Tensor | None:
        """Of each row, where it is in 8 bits."""
        ...


@dataclass(frozen=True)
class Plain:
    weight: torch.Tensor
    scale: None = None

    def __call__(self, inputs: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return functional.linear(inputs, self.weight, bias)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes


@dataclass(frozen=True)
class Packed:
    """In oneDNN's own layout, so that it need not be brought into it at every call."""

    weight: torch.Tensor
    nbytes: int
    scale: None = None

    def __call__(self, inputs: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        linear, rows = torch.ops.mkldnn._linear_pointwise, inputs.shape[0]
        padded = functional.pad(inputs, (0, 0, 0, met_rows(rows) - rows))
        return linear(padded, self.weight, bias, "none", [], "")[:rows]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Panels:
    """In our own layout, for kernels.cpu.product."""

    weight: torch.Tensor
    columns: int
    nbytes: int
    scale: None = None

    def __call__(self, inputs: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return cpu.product(inputs, self.weight, self.columns, bias)


@dataclass(frozen=True)
class Int8:
    """`weight` int8 [out, in], and what each row is multiplied by: [out], in the inputs' dtype."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __call__(self, inputs: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if not inputs.is_cuda and inputs.shape[0] <= FEW_ROWS:
            output = torch._weight_int8pack_mm(inputs, self.weight, self.scale)
        else:
            output = functional.linear(inputs, self.weight.to(inputs.dtype)) * self.scale
        return output if bias is None else output + bias

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.scale.nbytes


def met_rows(rows: int) -> int:
    """How many rows oneDNN is given for so many: quarters of a power of two. It makes code of its
    own, some 0.5 MB, for every number of rows that it meets, and keeps a thousand of them."""
    step = 1 << max(0, (rows - 1).bit_length() - 3)
    return -(-rows // step) * step


def quantised(weight: torch.Tensor) -> Int8:
    """Each row by its own scale, so that its largest element becomes 127: symmetric, to nearest."""
    scale = weight.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / 127
    numbers = (weight / scale).round().to(torch.int8)
    return Int8(numbers, scale.squeeze(1).to(weight.dtype))


def fastest(weight: torch.Tensor) -> Product:
    """Packed where oneDNN computes this dtype faster so; it then holds a copy of the weight."""
    if cpu.multiplies(weight):
        panels = cpu.panels(weight)
        return Panels(panels, weight.shape[0], panels.nbytes)
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return Plain(weight)
    bf16 = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not (bf16 or weight.dtype == torch.float32):
        return Plain(weight)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
    return Packed(packed, weight.nbytes)
