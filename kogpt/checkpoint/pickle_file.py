"""Reading weights from a `torch.save` file, after the guard has let it pass."""

import os
import pickle
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from kogpt.checkpoint.files import read_rows
from kogpt.checkpoint.pickle_guard import StoredTensor, describe
from kogpt.errors import InputRefusedError


class PickleFile:
    """An open file of which tensors are read; nothing is held beyond that."""

    def __init__(self, path: Path) -> None:
        """Reads what the file says it holds.

        Raises:
            InputRefusedError: it holds anything but plain weights.
        """
        self.path = path
        self.tensors: Mapping[str, StoredTensor]
        self._file = path.open("rb", buffering=0)
        try:
            self.tensors, self._starts = describe(path)
            self._refuse_replaced()
        except BaseException:
            self._file.close()
            raise

    @property
    def paths(self) -> list[Path]:
        return [self.path]

    def close(self) -> None:
        self._file.close()
        self.__dict__.pop("_mapped", None)

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """A tensor, or a range of its first dimension.

        Raises:
            InputRefusedError: the file has become shorter since it was opened.
        """
        tensor = self.tensors[name]
        if not tensor.is_contiguous:  # as transposed ones, of which rows lie all over the storage
            return self._mapped[name][rows] if tensor.shape else self._mapped[name]
        start = self._starts[tensor.storage.key] + tensor.offset * tensor.dtype.itemsize
        what = f"{self.path}: {name}"
        return read_rows(self._file, tensor.dtype, tensor.shape, start, rows, what)

    @cached_property
    def _mapped(self) -> dict[str, Tensor]:
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, ValueError, pickle.UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise InputRefusedError(f"{self.path}: torch cannot load it: {reason}") from None
        self._refuse_replaced()
        seen = {name: (tuple(t.shape), t.dtype, t.stride()) for name, t in state.items()}
        if seen != {n: (t.shape, t.dtype, t.stride) for n, t in self.tensors.items()}:
            raise InputRefusedError(f"{self.path}: torch reads other tensors than it describes")
        return state

    def _refuse_replaced(self) -> None:
        """Refuses what was read by name, if the name is no longer that of the open file."""
        if not os.path.samestat(self.path.stat(), os.fstat(self._file.fileno())):
            raise InputRefusedError(f"{self.path}: was replaced while it was read")
