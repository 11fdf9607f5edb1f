"""What happens to values that float16 cannot hold."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kogpt.checkpoint.reader import CheckpointReader
from kogpt.checkpoint.shards import TensorSpec

LARGEST = torch.finfo(torch.float16).max  # 65504
FIRST_TOO_LARGE = 65520.0  # halfway to the next power of two: rounds to infinity
LAST_TOO_SMALL = 2.0**-25  # halfway to the smallest subnormal: rounds to zero


@dataclass
class FitCounts:
    """Counts of finite values that do not survive rounding to float16.

    Attributes:
        overflowed: name of a tensor in the file -> values that would become infinite, where there
            are any.
        vanished: values other than zero that would become zero.
    """

    overflowed: dict[str, int] = field(default_factory=dict)
    vanished: int = 0

    @property
    def too_large(self) -> int:
        """All values that would become infinite."""
        return sum(self.overflowed.values())


def count_misfits(reader: CheckpointReader, specs: Iterable[TensorSpec]) -> FitCounts:
    """Reads all weights once to see which of them float16 cannot hold."""
    counts = FitCounts()
    for spec in specs:
        for rows in spec.slices():
            overflowed, vanished = misfits(reader.read(spec.name, rows))
            counts.vanished += vanished
            if overflowed:
                name = reader.stored_name(spec.name)
                counts.overflowed[name] = counts.overflowed.get(name, 0) + overflowed
    return counts


def misfits(values: Tensor) -> tuple[int, int]:
    """How many finite values round to infinity, and how many others to zero, in float16."""
    magnitudes = values.abs()
    overflowed = (magnitudes >= FIRST_TOO_LARGE) & (magnitudes < math.inf)
    vanished = (magnitudes <= LAST_TOO_SMALL) & (magnitudes > 0)
    return int(overflowed.sum()), int(vanished.sum())


def clamp_finite(values: Tensor) -> Tensor:
    """Values with the finite ones held to what float16 holds; infinities and NaNs stay."""
    return torch.where(values.isinf(), values, values.clamp(-LARGEST, LARGEST))
