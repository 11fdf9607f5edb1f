"""Checkpoints of mesh-transformer-jax, the library that GPT-J was trained with.

Its slim checkpoints are folders `shard_0`, `shard_1`, ..., one for each part of a model that was
split over devices, each with numbered archives `0.npz`, `1.npz`, ... The arrays have no names:
they are the leaves of the tree of parameters, in order, dealt to the archives. bfloat16 is
stored as the raw type `V2`. Source: `checkpoint.py` and `to_hf_weights.py` of the library.

Linear layers are stored as (in, out), the transpose of ours, and split over shards along one of
the two. What every shard holds whole is either a copy (layer norms) or a term of a sum (biases
added by every shard). The embedding has a bias, which we add to its rows.
"""

import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from kogpt.checkpoint.archive import Archive
from kogpt.checkpoint.files import require_regular
from kogpt.errors import InputRefusedError
from kogpt.textfiles import brief

MEMBER = re.compile(r"arr_\d+\.npy")
MAX_NPY_HEADER = 10_000  # bytes
DTYPES = {"V2": torch.bfloat16, "f2": torch.float16, "f4": torch.float32}
DTYPES |= {"i4": torch.int32, "i8": torch.int64}  # only of the step counter


class Join(Enum):
    """How the parts of an array on all shards make the whole."""

    ROWS = "one above the other"
    COLUMNS = "side by side"
    SUM = "added up"
    COPY = "the same everywhere"


@dataclass(frozen=True)
class Leaf:
    """Where one of our tensors comes from.

    Attributes:
        leaf: name in the tree of parameters, behind that of the block.
        join: how its parts make the whole.
        transposed: the whole is the transpose of ours.
        plus: another leaf, a sum over shards, that is added to every row.
    """

    leaf: str
    join: Join
    transposed: bool = False
    plus: str | None = None


EMBEDDING = {
    "transformer.wte.weight": Leaf(
        "embedding_shard/~/linear/w", Join.ROWS, plus="embedding_shard/~/linear/b"
    ),
}
BLOCK = {
    "ln_1.weight": Leaf("replicated_layer_norm/scale", Join.COPY),
    "ln_1.bias": Leaf("replicated_layer_norm/offset", Join.COPY),
    "attn.q_proj.weight": Leaf("linear/w", Join.COLUMNS, transposed=True),
    "attn.k_proj.weight": Leaf("linear_2/w", Join.COLUMNS, transposed=True),
    "attn.v_proj.weight": Leaf("linear_1/w", Join.COLUMNS, transposed=True),
    "attn.out_proj.weight": Leaf("linear_3/w", Join.ROWS, transposed=True),
    "mlp.fc_in.weight": Leaf("linear_4/w", Join.COLUMNS, transposed=True),
    "mlp.fc_in.bias": Leaf("linear_4/b", Join.ROWS),
    "mlp.fc_out.weight": Leaf("linear_5/w", Join.ROWS, transposed=True),
    "mlp.fc_out.bias": Leaf("linear_5/b", Join.SUM),
}
HEAD = {
    "transformer.ln_f.weight": Leaf("projection_shard/~/replicated_layer_norm/scale", Join.COPY),
    "transformer.ln_f.bias": Leaf("projection_shard/~/replicated_layer_norm/offset", Join.COPY),
    "lm_head.weight": Leaf("projection_shard/~/linear/w", Join.COLUMNS, transposed=True),
    "lm_head.bias": Leaf("projection_shard/~/linear/b", Join.ROWS),
}
OUTSIDE_BLOCKS = len(EMBEDDING) + 1 + len(HEAD)  # leaves; the embedding has two


def rows_of(layers: int) -> dict[str, Leaf]:
    """The whole table: ours -> theirs, in network order."""
    table = dict(EMBEDDING)
    for layer in range(layers):
        for name, row in BLOCK.items():
            leaf = f"layer_{layer}/~/{row.leaf}"
            table[f"transformer.h.{layer}.{name}"] = Leaf(leaf, row.join, row.transposed)
    return table | HEAD


def leaves_of(table: Mapping[str, Leaf]) -> list[str]:
    """Names of all leaves in the order of the tree, which is that of their names."""
    return sorted(leaf for row in table.values() for leaf in (row.leaf, row.plus) if leaf)


@dataclass(frozen=True)
class Array:
    """One shard's part of a leaf, as it lies in its archive."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    column_major: bool

    def open(self) -> np.ndarray:
        """The raw bits, mapped; nothing is read before it is used."""
        bits = np.dtype(np.int16 if self.dtype.itemsize == 2 else np.int32)
        shape = self.shape[::-1] if self.column_major else self.shape
        mapped = np.memmap(self.path, bits, "r", self.offset, shape)
        return mapped.T if self.column_major else mapped

    def read(self, index: tuple[slice, ...]) -> Tensor:
        """A part of it."""
        part = np.array(self.open()[index], order="C")  # a copy, in memory of its own
        return torch.from_numpy(part).view(self.dtype)


@dataclass(frozen=True)
class JoinedTensor:
    """One of our tensors, as the parts it is made of."""

    row: Leaf
    parts: tuple[Array, ...]
    added: tuple[Array, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @cached_property
    def shape(self) -> tuple[int, ...]:
        whole = list(self.parts[0].shape)
        if self.row.join in (Join.ROWS, Join.COLUMNS):
            whole[self._axis] *= len(self.parts)
        return tuple(reversed(whole)) if self.row.transposed else tuple(whole)

    @property
    def _axis(self) -> int:
        return 0 if self.row.join is Join.ROWS else 1

    def read(self, rows: slice) -> Tensor:
        """Rows of our tensor; sums come in float32."""
        start, stop, _ = rows.indices(self.shape[0])
        values = self._joined(start, stop)
        if self.added:
            values = values.float() + _sum(self.added, slice(None))
        return values

    def _joined(self, start: int, stop: int) -> Tensor:
        if self.row.join is Join.SUM:
            return _sum(self.parts, slice(start, stop))
        if self.row.join is Join.COPY:
            return self.parts[0].read((slice(start, stop),))
        if self.row.transposed and self.row.join is Join.ROWS:
            columns = (slice(None), slice(start, stop))
            return torch.cat([part.read(columns).T for part in self.parts], dim=1)
        return torch.cat([*self._split_rows(start, stop)])

    def _split_rows(self, start: int, stop: int) -> Iterator[Tensor]:
        """Our rows where each part holds a run of them."""
        each = self.parts[0].shape[self._axis]
        for i, part in enumerate(self.parts):
            local = slice(max(start - i * each, 0), min(max(stop - i * each, 0), each))
            if local.start < local.stop:
                index = (slice(None), local) if self.row.transposed else (local,)
                yield part.read(index).T if self.row.transposed else part.read(index)


def _sum(parts: tuple[Array, ...], rows: slice) -> Tensor:
    return torch.stack([part.read((rows,)).float() for part in parts]).sum(0)


class MeshCheckpoint:
    """An open checkpoint of mesh-transformer-jax."""

    def __init__(self, path: Path) -> None:
        """Reads the headers of all arrays in `path`, the folder of the shards.

        Raises:
            InputRefusedError: shards or arrays are missing, or not as in a slim checkpoint.
        """
        self.path = path
        self.paths: list[Path] = []
        shards = [self._read_shard(folder) for folder in _numbered(path, "shard_", "")]
        counts = {len(shard) for shard in shards}
        layers, odd = divmod(min(counts) - OUTSIDE_BLOCKS, len(BLOCK))
        if len(counts) != 1 or layers < 1 or odd:
            raise InputRefusedError(
                f"{path}: {sorted(counts)} arrays in its shards, which is not a slim GPT-J"
            )
        table = rows_of(layers)
        leaves = dict(zip(leaves_of(table), zip(*shards, strict=True), strict=True))
        self.tensors = {
            name: JoinedTensor(row, leaves[row.leaf], leaves[row.plus] if row.plus else ())
            for name, row in table.items()
        }
        self._check_parts()

    def close(self) -> None:
        """Nothing is held open."""

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        return self.tensors[name].read(rows)

    def _read_shard(self, folder: Path) -> list[Array]:
        """The arrays of one shard in the order of the tree, without the step counter."""
        files = _numbered(folder, "", ".npz")
        self.paths += files
        arrays = [array for file in files for array in _read_archive(file)]
        if arrays and not arrays[0].shape:
            arrays.reverse()  # some tools write the leaves from last to first
        return arrays[:-1] if arrays and not arrays[-1].shape else arrays

    def _check_parts(self) -> None:
        for name, tensor in self.tensors.items():
            dims = 2 if tensor.row.transposed or tensor.row.plus else 1
            first = tensor.parts[0]
            for part in tensor.parts:
                if (part.shape, part.dtype) != (first.shape, first.dtype):
                    raise InputRefusedError(f"{part.path}: {name} differs between shards")
            if len(first.shape) != dims:
                raise InputRefusedError(f"{first.path}: {name} has shape {list(first.shape)}")
            for part in tensor.added:
                if part.shape != first.shape[1:]:
                    raise InputRefusedError(f"{part.path}: {tensor.row.plus} does not fit {name}")


def is_mesh_checkpoint(folder: Path) -> bool:
    """Whether a folder looks like one."""
    return (folder / "shard_0").is_dir()


def _numbered(folder: Path, prefix: str, suffix: str) -> list[Path]:
    """`PREFIX0SUFFIX`, `PREFIX1SUFFIX`, ... in a folder; refuses gaps."""
    found = {path.name for path in folder.glob(f"{prefix}*{suffix}")}
    names = [f"{prefix}{i}{suffix}" for i in range(len(found))]
    for name in names:
        if name not in found:
            raise InputRefusedError(f"{folder / name}: missing")
    return [folder / name for name in names]


def _read_archive(path: Path) -> Iterator[Array]:
    require_regular(path)
    archive = Archive(path, MEMBER)
    with path.open("rb") as file:
        for i in range(len(archive.members)):
            name = f"arr_{i}.npy"
            if name not in archive.members:
                raise InputRefusedError(f"{path}: {name} is missing")
            member = archive.members[name]
            file.seek(member.offset)
            array = _read_npy_header(file, path, name)
            size = int(np.prod(array.shape, dtype=object)) * array.dtype.itemsize
            if array.offset + size != member.offset + member.size:
                raise InputRefusedError(f"{path}: {name} is not {size} bytes of data")
            yield array


def _read_npy_header(file: BinaryIO, path: Path, name: str) -> Array:
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"npy version {version}")
        shape, column_major, dtype = np.lib.format.read_array_header_1_0(
            file, max_header_size=MAX_NPY_HEADER
        )
        code = dtype.str.lstrip("<|")
        if code not in DTYPES:
            raise ValueError(f"dtype {code}")
    except (ValueError, tokenize.TokenError, MemoryError, RecursionError) as error:
        raise InputRefusedError(f"{path}: {name}: {brief(str(error))}") from None
    return Array(path, file.tell(), DTYPES[code], shape, column_major)
