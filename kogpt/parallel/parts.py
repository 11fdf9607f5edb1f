"""Which part of a tensor a process holds, and how it gets there without the whole.

`kogpt.parallel` cuts parameters into DTensors: every process holds a box of each, rows and columns
next to each other. What follows needs the box alone, and so serves tensors that are whole too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

SLICE = 8 << 20  # bytes that are in hand at a time

ReadRows = Callable[[slice], Tensor]


class Rows(Protocol):
    """What gives rows of a tensor, as a tensor itself does."""

    def __getitem__(self, rows: slice) -> Tensor: ...


@dataclass(frozen=True)
class Part:
    """A box of a tensor.

    Attributes:
        offsets: where it begins, in each dimension.
        shape: how far it reaches; 0 where a process holds nothing.
    """

    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def is_empty(self) -> bool:
        return 0 in self.shape


def is_cut(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether a tensor is a DTensor; by a method of it, since the type takes long to import."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts, on every process; all must ask for it."""
    return tensor.full_tensor() if is_cut(tensor) else tensor


def part_of(tensor: Tensor) -> Part:
    """The part of a tensor that this process holds: of a DTensor its shard, else all of it."""
    if not is_cut(tensor):
        return Part((0,) * tensor.ndim, tuple(tensor.shape))
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    # First by columns of the grid, then by rows: what is cut by both is one box still, because the
    # second cut goes through the pieces of the first (`_StridedShard`).
    shape, offsets = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return Part(tuple(offsets), tuple(shape))


def held(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor; shares its memory, and is no part of a graph."""
    detached = tensor.detach()
    return detached.to_local() if is_cut(detached) else detached


def copies(tensor: Tensor, processes: int) -> int:
    """How many of all processes hold the same part of a tensor."""
    if not is_cut(tensor):
        return processes
    owners = 1
    for size, placement in zip(tensor.device_mesh.shape, tensor.placements, strict=True):
        owners *= 1 if placement.is_replicate() else size
    return processes // owners


def fill(tensor: Tensor, read: ReadRows) -> None:
    """Fills what this process holds of a tensor.

    Args:
        tensor: is changed in place.
        read: gives rows of the whole, in any dtype; is asked for a few at a time.
    """
    part, values = part_of(tensor), held(tensor)
    if part.is_empty:
        return
    (first, *rest), (rows, *widths) = part.offsets, part.shape
    step = max(1, SLICE * tensor.size(0) // (tensor.numel() * tensor.element_size()))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        piece = read(slice(first + start, first + stop))
        for dim, (offset, width) in enumerate(zip(rest, widths, strict=True), start=1):
            piece = piece.narrow(dim, offset, width)
        values[start:stop].copy_(piece)
