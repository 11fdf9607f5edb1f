"""Checkpoints in slices, as several processes write them: each its own part of every tensor.

The layout is that of `torch.distributed.checkpoint` with its safetensors storage: files
`shard-00001-model-00001-of-00001.safetensors`, one of each process, in whose header the text
`DCP_SHARDING_INFO` gives for every tensor where its slice begins. So PyTorch's
`HuggingFaceStorageReader` reads what is written here, on any number of processes, and what
`HuggingFaceStorageWriter` writes is read here.

The texts do not say how large a tensor is, so a lost file could pass for a smaller tensor; ours say
how many files there are as well.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kogpt.checkpoint.files import require_regular
from kogpt.checkpoint.safetensors_file import MAX_RANK, SafetensorsFile, is_size
from kogpt.errors import InputRefusedError
from kogpt.jsonfiles import parse_json
from kogpt.textfiles import brief

FILE_NAME = "shard-{:05}-model-00001-of-00001.safetensors"
FILE_NAMES = re.compile(r"shard-(\d{5})-model-\d{5}-of-\d{5}\.safetensors")
OFFSETS, COUNT = "DCP_SHARDING_INFO", "kogpt_files"


@dataclass(frozen=True)
class Slice:
    """A box of a tensor.

    Attributes:
        file: the file that holds it.
        offsets: where it begins, in each dimension.
        shape: how far it reaches.
    """

    file: SafetensorsFile
    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def ends(self) -> tuple[int, ...]:
        return tuple(map(sum, zip(self.offsets, self.shape, strict=True)))

    def meets(self, other: "Slice") -> bool:
        """Whether both hold an element."""
        sides = zip(self.offsets, self.ends, other.offsets, other.ends, strict=True)
        return all(a < d and c < b for a, b, c, d in sides)


@dataclass(frozen=True)
class SlicedTensor:
    """A tensor, as the slices that make it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    slices: tuple[Slice, ...]

    def read(self, name: str, rows: slice) -> Tensor:
        """Rows of it."""
        start, stop, _ = rows.indices(self.shape[0])
        shape = (max(stop - start, 0), *self.shape[1:])
        values = torch.empty(shape, dtype=self.dtype, device="cpu")
        for part in self.slices:
            first, last = max(start, part.offsets[0]), min(stop, part.ends[0])
            if first < last:
                sides = map(slice, part.offsets[1:], part.ends[1:])
                within = slice(first - part.offsets[0], last - part.offsets[0])
                values[first - start : last - start, *sides] = part.file.read(name, within)
        return values


class SlicedCheckpoint:
    """An open folder of slices."""

    def __init__(self, path: Path) -> None:
        """Reads the headers of all files in `path`.

        Raises:
            InputRefusedError: a file is missing or damaged, or slices leave gaps or overlap.
        """
        self.path = path
        self.paths = sorted(file for file in path.iterdir() if FILE_NAMES.fullmatch(file.name))
        if not self.paths:
            raise InputRefusedError(f"{path}: holds no slices of tensors")
        self._files: list[SafetensorsFile] = []
        try:
            for file in self.paths:
                require_regular(file)
                self._files.append(SafetensorsFile(file))
            self._check_count()
            self.tensors = self._join()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for file in self._files:
            file.close()

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        return self.tensors[name].read(name, rows)

    def _check_count(self) -> None:
        for file in self._files:
            count = file.header.metadata.get(COUNT, str(len(self._files)))
            if count != str(len(self._files)):
                raise InputRefusedError(
                    f"{self.path}: holds {len(self._files)} files of slices of {brief(count)}"
                )

    def _join(self) -> dict[str, SlicedTensor]:
        found: dict[str, list[Slice]] = {}
        for file in self._files:
            offsets = _offsets(file)
            for name, entry in file.tensors.items():
                if math.prod(entry.shape):
                    found.setdefault(name, []).append(Slice(file, offsets[name], entry.shape))
        return {name: _joined(name, slices) for name, slices in found.items()}


def is_sliced(folder: Path) -> bool:
    """Whether a folder looks like one."""
    return folder.is_dir() and any(FILE_NAMES.fullmatch(path.name) for path in folder.iterdir())


def metadata(offsets: Mapping[str, Iterable[int]], count: int, notice: str) -> dict[str, str]:
    """The texts in the header of one of `count` files."""
    info = {name: {"saved_offsets": list(begin)} for name, begin in offsets.items()}
    return {
        "format": "pt",
        "license": notice,
        "DCP_VERSION": "1.0",
        OFFSETS: json.dumps(info),
        COUNT: str(count),
    }


def _offsets(file: SafetensorsFile) -> dict[str, tuple[int, ...]]:
    """Where each slice in a file begins."""
    try:
        table: Any = parse_json(file.header.metadata[OFFSETS])
        if table.keys() != file.tensors.keys():
            raise ValueError("it names other tensors than the file holds")
        return {
            name: _begin(name, table[name], entry.shape) for name, entry in file.tensors.items()
        }
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputRefusedError(f"{file.path}: bad {OFFSETS}: {brief(str(error))}") from None


def _begin(name: str, entry: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    begin = entry["saved_offsets"]
    if not isinstance(begin, list) or not all(map(is_size, begin)):
        raise ValueError(f"{name} begins at {brief(begin)}")
    if not 0 < len(begin) == len(shape) <= MAX_RANK:
        raise ValueError(f"{name} has {len(begin)} offsets and {len(shape)} dimensions")
    return tuple(begin)


def _joined(name: str, slices: list[Slice]) -> SlicedTensor:
    """The tensor that slices make.

    Raises:
        InputRefusedError: they leave gaps, overlap or differ in kind.
    """
    first = slices[0]
    dtypes = {part.file.tensors[name].dtype for part in slices}
    if len(dtypes) > 1 or len({len(part.shape) for part in slices}) > 1:
        raise InputRefusedError(f"{first.file.path.parent}: slices of {name} differ in kind")
    shape = tuple(map(max, zip(*(part.ends for part in slices), strict=True)))
    whole = sum(math.prod(part.shape) for part in slices) == math.prod(shape)
    if not whole or any(a.meets(b) for a, b in combinations(slices, 2)):
        raise InputRefusedError(f"{first.file.path.parent}: slices of {name} overlap or leave gaps")
    return SlicedTensor(dtypes.pop(), shape, tuple(slices))
