"""What every kind of file of weights can do, however it keeps them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

# Rows (..., K) of a matrix by their ids (...).
LookUp = Callable[[Tensor], Tensor]


class Description(Protocol):
    """What is known of a tensor before it is read."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


class Source(Protocol):
    """A source of tensors by name."""

    @property
    def path(self) -> Path: ...

    @property
    def tensors(self) -> Mapping[str, Description]: ...

    def read(self, name: str, rows: slice = ...) -> Tensor: ...


@runtime_checkable
class Mappable(Source, Protocol):
    """A source whose tensors can lie in memory as they lie in the file, or stay in it."""

    def map(self, name: str) -> Tensor | None: ...

    def rows(self, name: str) -> LookUp | None: ...


class WeightsFile(Source, Protocol):
    """An open file, or several, that hold tensors under their released names."""

    @property
    def paths(self) -> list[Path]: ...

    def close(self) -> None: ...


def map_tensor(source: Source, name: str) -> Tensor | None:
    """A tensor whose memory is that of its file; None where it cannot be."""
    return source.map(name) if isinstance(source, Mappable) else None


def stored_rows(source: Source, name: str) -> LookUp | None:
    """A matrix whose rows are read when they are looked up; None where they cannot be."""
    return source.rows(name) if isinstance(source, Mappable) else None
