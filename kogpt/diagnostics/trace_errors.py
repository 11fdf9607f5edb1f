"""How far a tensor is from what it should be: relative norm, units in the last place, absolute."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distance:
    """The distance of a tensor from its reference.

    Attributes:
        relative: norm of the difference over the norm of the reference.
        ulp: largest error of an element in units in the last place, as `error_in_ulp` counts them.
        absolute: largest error of an element.
    """

    relative: float
    ulp: float
    absolute: float


def distance(value: Tensor, reference: Tensor, *dtypes: torch.dtype) -> Distance:
    """The distance of tensors of one shape, computed in float64; NaN where either holds one.

    Args:
        value: of any dtype.
        reference: likewise.
        dtypes: in which they were computed, where they have been widened since.
    """
    dtype = coarser(value.dtype, reference.dtype, *dtypes)
    a, b = (x.detach().to("cpu", torch.float64) for x in (value, reference))
    error = torch.where(a == b, 0.0, (a - b).abs())  # equal infinities are equal
    b = torch.where(b.isfinite(), b, 0.0)  # what errors are measured by
    absolute = error.max().item()
    relative = absolute and (error.norm() / b.norm()).item()
    return Distance(relative, error_in_ulp(error, b, dtype).max().item(), absolute)


def error_in_ulp(error: Tensor, reference: Tensor, dtype: torch.dtype) -> Tensor:
    """Errors in units in the last place of `dtype`, at the magnitude of the reference.

    A value near 0 among larger ones comes of cancellation: its own unit says nothing of the
    arithmetic. So the unit is that of the root mean square of its row (the last dim), where that
    is larger.

    Args:
        error: absolute errors (..., C), float64.
        reference: of the same shape and dtype.
        dtype: whose units.
    """
    typical = reference.square().mean(-1, keepdim=True).sqrt()
    return error / ulp(torch.maximum(reference.abs(), typical), dtype)


def ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The step from each number (float64) to the next larger in magnitude that `dtype` has."""
    info = torch.finfo(dtype)
    mantissa, _ = torch.frexp(bounded := values.abs().clamp(min=info.smallest_normal))
    return info.eps / 2 * (bounded / mantissa)  # the quotient is a power of two, and exact


def coarser(*dtypes: torch.dtype) -> torch.dtype:
    """The one of them with the fewest digits."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
