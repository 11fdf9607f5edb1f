"""Several matrices as one, in whatever format they are stored."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kogpt.kernels import Weight


def fuse(weights: Sequence[Weight], dim: int, dtype: torch.dtype) -> Weight:
    """One matrix of several: their outputs one after the other (`dim` 0), or their inputs (1).

    Where their formats differ, they are widened to `dtype`.
    """
    if len(weights) == 1:
        return weights[0]
    if len({(weight.bits, weight.scale is None, weight.offset is None) for weight in weights}) > 1:
        weights = [Weight(weight.dequantize(dtype)) for weight in weights]
    values = torch.cat([weight.values for weight in weights], dim)
    size = math.gcd(*(weight.group_size for weight in weights))
    scale = _join([_regroup(weight.scale, weight.group_size // size) for weight in weights], dim)
    offset = _join([_regroup(weight.offset, weight.group_size // size) for weight in weights], dim)
    return Weight(values, scale, offset)


def _regroup(part: Tensor | None, times: int) -> Tensor | None:
    """Scales or offsets for groups that are so many times smaller."""
    return part if part is None or times == 1 else part.repeat_interleave(times, dim=1)


def _join(parts: Sequence[Tensor | None], dim: int) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.cat(given, dim) if given else None
