"""Reads quantised matrices under their released names, from the tensors that stand for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kogpt.checkpoint.dtypes import check_float, dtype_name
from kogpt.checkpoint.names import expand
from kogpt.checkpoint.quantization import IN_WORD, Quantization, Scheme
from kogpt.checkpoint.shards import TensorSpec
from kogpt.checkpoint.sources import Source, map_tensor
from kogpt.errors import InputRefusedError
from kogpt.kernels.linear import Weight, unpack_int4
from kogpt.model.config import KoGPTConfig


@dataclass(frozen=True)
class Matrix:
    """A quantised matrix.

    Attributes:
        scheme: how it is stored.
        shape: N and K.
        dtype: of its scales; that of the weights, as far as they have one.
        parts: the tensors that stand for it, the numbers first.
    """

    scheme: Scheme
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: list[TensorSpec]

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return sum(part.nbytes for part in self.parts)


class QuantizedMatrices:
    """The matrices of a checkpoint that are stored as integers.

    Attributes:
        path: the checkpoint.
        tensors: the matrices by their released names.
        parts: names of all tensors that stand for them.
    """

    def __init__(
        self,
        path: Path,
        owner: Mapping[str, Source],
        config: KoGPTConfig,
        quantization: Quantization,
    ) -> None:
        """Finds the matrices and holds their parts against the config; reads sizes alone.

        Args:
            path: the checkpoint, for messages.
            owner: of each tensor stored.
            config: the shape of the model.
            quantization: how the matrices are stored.

        Raises:
            InputRefusedError: a part is missing, misshapen or of another dtype, or groups do not
                divide the rows.
        """
        quantization.check_fits(config, str(path))
        self.path, self._owner = path, owner
        self.tensors = {
            name: self._find(name, shape, scheme)
            for name, shape in expand(config).items()
            if (scheme := quantization.scheme(name))
        }
        self.parts = {part.name for matrix in self.tensors.values() for part in matrix.parts}
        for name in self.tensors:
            if name in owner and name not in self.parts:
                raise InputRefusedError(f"{owner[name].path}: {name} is there beside {name}_packed")

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """Rows of a matrix as float32, which holds every product of integer and scale."""
        return self.read_weight(name, rows).dequantize(torch.float32)

    def read_weight(self, name: str, rows: slice = slice(None)) -> Weight:
        """Rows of a matrix as stored.

        Raises:
            InputRefusedError: a scale is NaN or infinite.
        """
        part = self.tensors[name].parts[0].name
        return self._weight(name, self._owner[part].read(part, rows), rows)

    def map_weight(self, name: str) -> Weight | None:
        """A matrix whose numbers stay in their file; None where they cannot.

        Raises:
            InputRefusedError: a scale is NaN or infinite.
        """
        part = self.tensors[name].parts[0].name
        values = map_tensor(self._owner[part], part)
        return None if values is None else self._weight(name, values, slice(None))

    def _weight(self, name: str, values: Tensor, rows: slice) -> Weight:
        matrix = self.tensors[name]
        scale = self._part(f"{name}_scale", rows)
        if not scale.isfinite().all():
            where = self._owner[f"{name}_scale"].path
            raise InputRefusedError(f"{where}: {name}_scale holds NaN or infinity")
        if not matrix.scheme.zero_points:
            return Weight(values, scale)
        zero_point = self._zero_point(f"{name}_zero_point", rows, matrix.shape[0])
        return Weight(values, scale, scale.float() * zero_point)

    def _part(self, name: str, rows: slice) -> Tensor:
        return self._owner[name].read(name, rows)

    def _zero_point(self, name: str, rows: slice, count: int) -> Tensor:
        """Rows of zero points (N, G), which are packed down the rows."""
        start, stop, _ = rows.indices(count)
        first = start // IN_WORD
        words = self._part(name, slice(first, -(-stop // IN_WORD)))
        return unpack_int4(words.T.contiguous()).T[start - first * IN_WORD :][: stop - start]

    def _find(self, name: str, shape: tuple[int, ...], scheme: Scheme) -> Matrix:
        dtype = self._scale_dtype(f"{name}_scale")
        matrix = Matrix(scheme, shape, dtype, scheme.stored(name, shape, dtype))
        for part in matrix.parts:
            found = self._require(part.name).tensors[part.name]
            self._hold(part.name, "has shape", list(found.shape), list(part.shape))
            self._hold(part.name, "is", dtype_name(found.dtype), dtype_name(part.dtype))
            if part.name == f"{name}_shape":
                self._hold(part.name, "is", self._part(part.name, slice(None)).tolist(), [*shape])
        return matrix

    def _scale_dtype(self, name: str) -> torch.dtype:
        owner = self._require(name)
        dtype = owner.tensors[name].dtype
        check_float(dtype, name, str(owner.path))
        return dtype

    def _hold(self, name: str, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            path = self._owner[name].path
            raise InputRefusedError(f"{path}: {name} {what} {found}, the config asks for {wanted}")

    def _require(self, name: str) -> Source:
        if name not in self._owner:
            raise InputRefusedError(f"{self.path}: {name} is missing; quantization_config names it")
        return self._owner[name]
