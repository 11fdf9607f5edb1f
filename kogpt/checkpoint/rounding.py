"""Rounds the rows of a matrix to integers of 8 or 4 bits; needs no data, and no other rows.

Each value goes to the nearest. What that costs is in docs/benchmarks.md; scales searched for the
least squared error lower the error of nano's weights, but not its perplexity.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kogpt.checkpoint.quantization import Scheme

# Scales that the largest magnitude of a group spans. With 4 bits it is worth the half step by which
# the largest value may miss to have all others finer.
STEPS = {8: 127.0, 4: 7.5}


class Rounded(NamedTuple):
    """Rows of integers q, with which a weight is (q - zero_point) scale.

    Attributes:
        q: int8 (N, K).
        scale: (N, G).
        zero_point: int8 (N, G); None for zero.
    """

    q: Tensor
    scale: Tensor
    zero_point: Tensor | None = None


def round_rows(values: Tensor, scheme: Scheme, dtype: torch.dtype) -> Rounded:
    """Rounds rows (N, K).

    Args:
        values: finite, float32.
        scheme: to how many bits, and with what groups.
        dtype: of the scales; the integers are the nearest with the scales so rounded.
    """
    grouped = values.unflatten(1, (scheme.groups(values.size(1)), -1))  # (N, G, K / G)
    limit = 2 ** (scheme.bits - 1)
    if scheme.zero_points:
        scale, zero = _spread(grouped, limit, dtype)
    else:
        largest = grouped.abs().amax(2, keepdim=True)
        scale, zero = _storable(largest / STEPS[scheme.bits], dtype), None
    q = (grouped / scale.float()).round_()
    q = (q if zero is None else q.add_(zero)).clamp_(-limit, limit - 1)
    zero_point = None if zero is None else zero.squeeze(2).to(torch.int8)
    return Rounded(q.flatten(1).to(torch.int8), scale.squeeze(2), zero_point)


def _spread(grouped: Tensor, limit: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scales and zero points (N, G, 1) that spread all integers from the least value to the most.

    Zero itself stays among the values, and exact.
    """
    low = grouped.amin(2, keepdim=True).clamp_(max=0)
    high = grouped.amax(2, keepdim=True).clamp_(min=0)
    steps = 2 * limit - 1
    scale = (high - low) / steps
    scale = _storable(torch.where(scale.isfinite(), scale, high / steps - low / steps), dtype)
    return scale, (low / -scale.float()).round_().sub_(limit).clamp_(-limit, limit - 1)


def _storable(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales in their dtype, none of them zero."""
    least = 2.0**-24 if dtype == torch.float16 else torch.finfo(dtype).tiny
    return scale.clamp(min=least).to(dtype)
