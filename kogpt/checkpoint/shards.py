"""What is to be written: tensors, and the files they are dealt to."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from kogpt.checkpoint.safetensors_file import encode_header

SLICE = 8 << 20  # bytes of a tensor that are in hand at a time, were it read as float32
MAX_SHARD_SIZE = 5 * 10**9  # bytes; the ecosystem's default


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def slices(self) -> Iterator[slice]:
        """Ranges of the first dimension of at most `SLICE` bytes in float32 (or one row)."""
        rows = self.shape[0]
        step = max(1, SLICE // 4 * rows // math.prod(self.shape))
        return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


@dataclass(frozen=True)
class Shard:
    """A safetensors file to be written."""

    name: str
    tensors: tuple[TensorSpec, ...]

    @property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.tensors)

    def header(self, metadata: Mapping[str, str]) -> bytes:
        return encode_header(((t.name, t.dtype, t.shape) for t in self.tensors), metadata)


def plan_shards(tensors: Iterable[TensorSpec], max_shard_size: int) -> list[Shard]:
    """Deals tensors, in order, to files of at most `max_shard_size` bytes (or one tensor)."""
    groups: list[list[TensorSpec]] = [[]]
    room = max_shard_size
    for spec in tensors:
        if groups[-1] and spec.nbytes > room:
            groups.append([])
            room = max_shard_size
        groups[-1].append(spec)
        room -= spec.nbytes
    return [
        Shard(f"model-{i:05}-of-{len(groups):05}.safetensors", tuple(group))
        for i, group in enumerate(groups, start=1)
    ]
