"""Smallest and largest value, NaN and infinity counts of a tensor, in one fast pass."""

import math

import numpy as np
import torch
from torch import Tensor

from kogpt.checkpoint.dtypes import BY_TORCH, FloatFormat

BLOCK = 1 << 18  # values; small enough that the second look finds them still in the cache


class Statistics:
    """Running statistics of the values of one tensor, fed slice by slice.

    Attributes:
        min: smallest finite value so far, +inf while there is none.
        max: largest finite value so far, -inf while there is none.
        nan: count of NaNs.
        inf: count of infinities of either sign.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._format = BY_TORCH.get(dtype)  # None for the integers of quantised weights
        self.min, self.max = math.inf, -math.inf
        self.nan = self.inf = 0

    def update(self, values: Tensor) -> None:
        """Counts in a contiguous tensor of the dtype given at the start."""
        if self._format is None:
            lowest, highest = values.aminmax()
            self._widen(lowest.item(), highest.item())
            return
        bits = bits_of(values)
        for start in range(0, bits.size, BLOCK):
            finite = self._count_nonfinite(bits[start : start + BLOCK], self._format.infinity)
            if finite.size:
                self._widen(*extremes(finite, self._format))

    def _widen(self, lowest: float, highest: float) -> None:
        self.min, self.max = min(self.min, lowest), max(self.max, highest)

    def _count_nonfinite(self, bits: np.ndarray, infinity: int) -> np.ndarray:
        sign = _sign_bit(bits)
        if _signed(bits).max() < infinity and bits.max() < sign + infinity:
            return bits  # nearly always
        magnitudes = bits & bits.dtype.type(sign - 1)
        self.nan += int(np.count_nonzero(magnitudes > infinity))
        self.inf += int(np.count_nonzero(magnitudes == infinity))
        return bits[magnitudes < infinity]


def bits_of(values: Tensor) -> np.ndarray:
    """The bits of a contiguous float tensor as flat unsigned integers, sharing its memory."""
    signed = torch.int16 if values.itemsize == 2 else torch.int32
    return values.view(-1).view(signed).numpy().view(BY_TORCH[values.dtype].bits)


def extremes(bits: np.ndarray, format: FloatFormat) -> tuple[float, float]:
    """Smallest and largest of finite values given by their bits.

    Integers are compared, which vectorises in every format: without the sign bit, integer order
    is the order of the floats; with it, the reverse.
    """
    largest, magnitude = int(_signed(bits).max()), int(bits.max())
    if largest < 0:  # every value has the sign bit
        largest = int(bits.min())
    smallest = magnitude if magnitude >= _sign_bit(bits) else int(bits.min())
    return _value(smallest, format), _value(largest, format)


def _sign_bit(bits: np.ndarray) -> int:
    return 1 << (8 * bits.itemsize - 1)


def _signed(bits: np.ndarray) -> np.ndarray:
    return bits.view(np.int16 if bits.itemsize == 2 else np.int32)


def _value(bits: int, format: FloatFormat) -> float:
    holder = torch.from_numpy(np.array([bits], dtype=format.bits).view(f"i{format.torch.itemsize}"))
    return holder.view(format.torch).item()
