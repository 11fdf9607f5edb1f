"""Gives a conversion the tensors that stand for quantised matrices, slice by slice."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from kogpt.checkpoint.quantization import IN_WORD, Quantization, Scheme
from kogpt.checkpoint.rounding import round_rows
from kogpt.checkpoint.shards import TensorSpec
from kogpt.errors import InputRefusedError
from kogpt.kernels.linear import pack_int4

AT_ONCE = 1 << 19  # values rounded at a time: their floats and what comes of them in between

SHAPE = "_shape"  # what the name of the tensor ends with that holds a packed matrix's N and K

ReadFloats = Callable[[str, slice], Tensor]


class Quantizer:
    """Rounds matrices while they are read.

    Attributes:
        specs: all tensors to be written, in network order; last those of 16 bytes that hold a
            shape, behind which weights would not begin at a cache line.
        source: name of a tensor to be written -> name of the tensor it comes from.
    """

    def __init__(
        self,
        read: ReadFloats,
        quantization: Quantization | None,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
        stored_name: Callable[[str], str] = str,
    ) -> None:
        """Plans the tensors.

        Args:
            read: gives rows of a float tensor by its released name.
            quantization: how matrices are stored; None for all as they are.
            shapes: of all tensors, by their released names.
            dtype: of the floats among those written.
            stored_name: gives the name that a tensor has where it is read, for messages.
        """
        self._read_floats, self._shapes, self._dtype = read, shapes, dtype
        self._stored_name = stored_name
        self._schemes: dict[str, Scheme] = {}
        self._matrix: _Matrix | None = None
        self.specs: list[TensorSpec] = []
        self.source: dict[str, str] = {}
        for name, shape in shapes.items():
            specs = [TensorSpec(name, dtype, shape)]
            if scheme := quantization and quantization.scheme(name):
                self._schemes[name] = scheme
                specs = scheme.stored(name, shape, dtype)
            self.specs += specs
            self.source |= {spec.name: name for spec in specs}
        self.specs.sort(key=lambda spec: spec.name.endswith(SHAPE))

    def read(self, name: str, rows: slice) -> Tensor:
        """Rows of a tensor to be written.

        Raises:
            InputRefusedError: a matrix holds NaN or infinity.
        """
        source = self.source[name]
        if source not in self._schemes:
            return self._read_floats(name, rows)
        if name.endswith(SHAPE):
            return torch.tensor(self._shapes[source])
        if self._matrix is None or self._matrix.name != source:
            shape, scheme = self._shapes[source], self._schemes[source]
            self._matrix = _Matrix(source, shape, scheme, self._dtype, self._read_finite)
        return self._matrix.part(name.removeprefix(source), rows)

    def _read_finite(self, name: str, rows: slice) -> Tensor:
        values = self._read_floats(name, rows)
        if not values.isfinite().all():
            name = self._stored_name(name)
            raise InputRefusedError(f"{name} holds NaN or infinity, which no integer can be")
        return values


class _Matrix:
    """One matrix, rounded while its numbers are written; scales and zero points are kept.

    Where an interrupted run has written the numbers, they are rounded again for those. Results go
    to memory set aside before: small tensors kept among large ones passing by would pin these.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        scheme: Scheme,
        dtype: torch.dtype,
        read: ReadFloats,
    ) -> None:
        self.name, self._shape, self._scheme, self._read = name, shape, scheme, read
        self._dtype = dtype
        self._rounded = 0  # rows so far
        size = (shape[0], scheme.groups(shape[1]))
        self._scale, self._zero_point = torch.empty(size, dtype=dtype), torch.empty(size).char()

    def part(self, suffix: str, rows: slice) -> Tensor:
        """Rows of what is stored under the name with a suffix; of the numbers in their order."""
        if suffix in ("", "_packed"):
            return self._numbers(rows)
        if self._rounded < self._shape[0]:
            for some in TensorSpec(self.name, torch.int8, self._shape).slices():
                self._numbers(some)
        return self._scale[rows] if suffix == "_scale" else pack_down(self._zero_point)[rows]

    def _numbers(self, rows: slice) -> Tensor:
        K, packed = self._shape[1], self._scheme.bits == 4
        size = (rows.stop - rows.start, K // IN_WORD if packed else K)
        numbers = torch.empty(size, dtype=torch.int32 if packed else torch.int8)
        step = max(1, AT_ONCE // K)
        for start in range(rows.start, rows.stop, step):
            some = slice(start, min(start + step, rows.stop))
            q = self._round(some)
            numbers[start - rows.start :][: len(q)] = pack_int4(q) if packed else q
        self._rounded = rows.stop
        return numbers

    def _round(self, rows: slice) -> Tensor:
        values = self._read(self.name, rows)
        q, self._scale[rows], zero_point = round_rows(values.float(), self._scheme, self._dtype)
        if zero_point is not None:
            self._zero_point[rows] = zero_point
        return q


def pack_down(zero_point: Tensor) -> Tensor:
    """Packs (N, G) numbers down the rows into (N / 8, G), filled up with empty bits."""
    missing = -len(zero_point) % IN_WORD
    return pack_int4(F.pad(zero_point.T, (0, missing), value=-8)).T.contiguous()
