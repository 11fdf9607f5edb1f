"""Several matrices as one, in whatever format they are stored."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kogpt.kernels import Weight


class Format(NamedTuple):
    """What matrices have in common once they are one.

    Attributes:
        group_size: inputs that share a scale.
        widened: the dtype they are widened to, where they are stored differently.
    """

    group_size: int
    widened: torch.dtype | None


def common_format(weights: Sequence[Weight], dtype: torch.dtype) -> Format:
    """The format of matrices that become one; `dtype` is for those that are stored differently."""
    kinds = {(weight.values.dtype, weight.offset is None) for weight in weights}
    return Format(
        group_size=math.gcd(*(weight.group_size for weight in weights)),
        widened=dtype if len(kinds) > 1 else None,
    )


def side_by_side(weights: Sequence[Weight], format: Format) -> Weight:
    """Matrices with the same outputs (N, K1), (N, K2), ... as one (N, K1 + K2 + ...)."""
    if format.widened is not None:
        return Weight(torch.cat([weight.dequantize(format.widened) for weight in weights], 1))
    columns = zip(*(regrouped(weight, format.group_size) for weight in weights), strict=True)
    values, scale, offset = (_join(parts) for parts in columns)
    assert values is not None, "every matrix has values"
    return Weight(values, scale, offset)


def regrouped(weight: Weight, group_size: int) -> Weight:
    """The same matrix with a scale for so many inputs, fewer than share one."""
    times = weight.group_size // group_size
    if weight.scale is None or times == 1:
        return weight
    return weight.with_values(weight.values, lambda part: part.repeat_interleave(times, dim=1))


def _join(parts: Sequence[Tensor | None]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    if len(given) == 1:
        return given[0]
    return torch.cat(given, dim=1) if given else None
