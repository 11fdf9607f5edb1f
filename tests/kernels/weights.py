"""What the products with weights are tested on: formats, random weights and rows, the truth.

Dimension key: `M` rows, `N` outputs, `K` inputs.
"""

import pytest
import torch
from torch import Tensor

from kogpt.kernels import Weight
from kogpt.kernels.linear import linear_reference, pack_int4

from .budget import doubled

RANGES = {16: (-8, 8), 8: (-128, 128), 4: (-8, 8)}  # of integers, by the bits that they are kept in
FORMATS = [(16, 0), (8, 0), (4, 0), (8, 128), (4, 32), (4, 128)]  # bits, and inputs of a group

on_both_dtypes = pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"]
)
on_every_format = pytest.mark.parametrize(("bits", "group"), FORMATS)
on_every_integer = pytest.mark.parametrize(
    ("bits", "group"), [format for format in FORMATS if format[0] < 16]
)


def stored(q: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Integers (N, K) as the values of a `Weight`."""
    return {16: q.to(dtype), 8: q.to(torch.int8), 4: pack_int4(q)}[bits]


def make_weight(
    bits: int,
    group: int,
    N: int,
    K: int,
    dtype: torch.dtype,
    *,
    offset: bool = False,
    exact: bool = False,
) -> Weight:
    """Random weights; `group` 0 is all of K.

    Args:
        offset: with zero points, any that an integer could be.
        exact: weights and scales are such that float32 holds their sums with small integers.
    """
    generator = torch.Generator().manual_seed(N + K + bits)
    if bits == 16 and not exact:
        return Weight(torch.randn(N, K, generator=generator).to(dtype))
    values = stored(torch.randint(*RANGES[bits], (N, K), generator=generator), bits, dtype)
    if bits == 16:
        return Weight(values)
    scale = torch.rand(N, K // (group or K), generator=generator) + 0.01
    if exact:
        scale = 2.0 ** torch.randint(-4, 1, scale.shape, generator=generator)
    zeros = torch.randint(*RANGES[bits], scale.shape, generator=generator)
    scale = scale.to(dtype)
    return Weight(values, scale, (scale * zeros).to(dtype) if offset else None)


def make_rows(M: int, K: int, dtype: torch.dtype, *, exact: bool = False) -> Tensor:
    """Random inputs (M, K); small integers if `exact`."""
    generator = torch.Generator().manual_seed(100 * K + M)
    rows = torch.randn(M, K, generator=generator)
    return (rows * 2).round().to(dtype) if exact else rows.to(dtype)


def truth(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """The product in float64."""
    return linear_reference(*doubled((x, *weight, bias)))


def bits_of(x: Tensor) -> Tensor:
    """16-bit elements as integers: NaN equals itself, and 0 differs from -0."""
    return x.view(torch.int16)
