"""Reading and writing the safetensors format, strictly.

A file is eight bytes of header length (little-endian), that many bytes of JSON, and the data:

    {"__metadata__": {str: str}, name: {"dtype", "shape", "data_offsets": [begin, end]}, ...}

The reader accepts only what the format's description allows: no name twice, offsets that tile
the data without gap or overlap, and a file of exactly that length. Weights are read by name and
slice, and nothing is held beyond the slice asked for; or they are mapped, and nothing is read; or
looked up by row.
"""

import copy
import json
import math
import mmap
import os
import weakref
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kogpt.checkpoint.dtypes import QUANTISED_COPY
from kogpt.checkpoint.files import read_exactly, read_rows
from kogpt.errors import InputRefusedError
from kogpt.jsonfiles import parse_json
from kogpt.textfiles import brief

MAX_HEADER = 16 << 20  # bytes; the released model's takes 40 KB
MAX_NAME = 256
MAX_RANK = 16
ALIGNMENT = 64  # of the data's first byte: a cache line, and the widest vector registers

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NARROW = ("F8_", "F6_", "F4")  # floats of 8 bits and fewer
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: what it is, and where its bytes begin and end in the data."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """The parsed header of a file.

    Attributes:
        entries: name -> entry, in the order of their data.
        metadata: the free texts.
        data_start: offset in the file of the first byte of data.
    """

    entries: dict[str, Entry]
    metadata: dict[str, str]
    data_start: int


class SafetensorsFile:
    """An open file of weights."""

    def __init__(self, path: Path) -> None:
        """Opens the file and reads its header.

        Raises:
            InputRefusedError: it breaks the format's rules; the message names file and key.
        """
        self.path = path
        self._map: mmap.mmap | None = None
        self._file = path.open("rb", buffering=0)
        try:
            self.header = read_header(self._file, str(path))
        except BaseException:
            self.close()
            raise

    @property
    def tensors(self) -> Mapping[str, Entry]:
        return self.header.entries

    @property
    def paths(self) -> list[Path]:
        return [self.path]

    def close(self) -> None:
        self._file.close()

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """Reads a tensor, or a range of its first dimension.

        Raises:
            InputRefusedError: the file has become shorter since it was opened.
        """
        entry = self.header.entries[name]
        start, what = self.header.data_start + entry.begin, f"{self.path}: {name}"
        return read_rows(self._file, entry.dtype, entry.shape, start, rows, what)

    def map(self, name: str) -> Tensor | None:
        """A tensor whose memory is the system's cache of the file; outlives this object.

        Nothing is read or copied until it is used, and processes that map the same file share it.
        To write to the tensor changes a copy. To shorten the file under it kills the process, as
        with any mapping; folders that are replaced as a whole, as those written here are, do not.

        Returns:
            None where the tensor does not begin at a multiple of `ALIGNMENT`.
        """
        entry = self.header.entries[name]
        start, count = self.header.data_start + entry.begin, math.prod(entry.shape)
        if start % ALIGNMENT or not count:
            return None
        if self._map is None:
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        flat = torch.frombuffer(self._map, dtype=entry.dtype, count=count, offset=start)
        return flat.view(entry.shape)

    def rows(self, name: str) -> "StoredRows":
        """A matrix of which single rows are read when they are asked for; outlives this object."""
        return StoredRows(self, name)

    def read_raw(self, begin: int, end: int) -> bytes:
        """Bytes of the file itself."""
        return os.pread(self._file.fileno(), end - begin, begin)

    def state(self) -> tuple[int, int]:
        """By which a file that was changed is known: its size, and when it was written."""
        stat = os.fstat(self._file.fileno())
        return stat.st_size, stat.st_mtime_ns

    def reopened(self) -> "SafetensorsFile":
        """The same file, whatever lies at its path by now, to be closed on its own."""
        twin = copy.copy(self)
        twin._file = os.fdopen(os.dup(self._file.fileno()), "rb", buffering=0)
        return twin


class StoredRows:
    """Rows of a matrix (N, K) that stay in their file until they are looked up.

    A mapping would take memory for more than the rows: the system maps what lies around each, of a
    file that it holds in large pages up to 2 MB, and counts that as this process's.
    """

    def __init__(self, file: SafetensorsFile, name: str) -> None:
        self._file, self._name = file.reopened(), name
        weakref.finalize(self, self._file.close)
        self._entry, self._state = file.tensors[name], file.state()
        self._start = file.header.data_start + self._entry.begin

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen_rows, (self._file.path, self._name, self._state)

    def __call__(self, ids: Tensor) -> Tensor:
        """Rows (..., K) of ids (...).

        Raises:
            IndexError: there is no such row.
            InputRefusedError: the file was changed since it was opened, and so were matrices that
                are mapped.
        """
        if self._file.state() != self._state:
            raise InputRefusedError(
                f"{self._file.path}: was changed since it was loaded; load it again, and replace"
                " folders as a whole"
            )
        places = ids.flatten().tolist()
        N, K = self._entry.shape
        rows = torch.empty(len(places), K, dtype=self._entry.dtype, device="cpu")
        for place, row in zip(places, rows.view(torch.uint8).numpy(), strict=True):
            if not 0 <= place < N:
                raise IndexError(f"{self._name} has {N} rows, none is {place}")
            offset, what = self._start + place * row.nbytes, f"{self._file.path}: {self._name}"
            read_exactly(self._file._file, row.data, offset, what)
        return rows.view(*ids.shape, K)


def _reopen_rows(path: Path, name: str, state: tuple[int, int]) -> StoredRows:
    """Rows of a matrix in the file that they were of, for a copy of them or in another process."""
    with closing(SafetensorsFile(path)) as file:
        if file.state() != state:
            raise InputRefusedError(f"{path}: was changed since {name} was read")
        return StoredRows(file, name)


def read_header(file: FileIO, where: str) -> Header:
    """Reads and checks the header of an open file.

    Raises:
        InputRefusedError: the file breaks the format's rules.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise InputRefusedError(f"{where}: truncated, or not a safetensors file")
    if length > MAX_HEADER:
        raise InputRefusedError(f"{where}: a header of {length} bytes; at most {MAX_HEADER}")
    return parse_header(file.read(length), size - 8 - length, where)


def parse_header(raw: bytes, data_size: int, where: str) -> Header:
    """Parses the JSON of a header.

    Args:
        raw: the bytes of the JSON.
        data_size: bytes that follow it in the file.
        where: the file, for messages.

    Raises:
        InputRefusedError: the header breaks the format's rules; the message names the key.
    """
    try:
        if not raw.startswith(b"{"):
            raise ValueError("it begins with another byte than '{'")
        table = parse_json(raw)
        metadata = _metadata(table.pop("__metadata__", {}))
        entries = {name: _entry(name, value) for name, value in table.items()}
        entries = _tiled(entries, data_size)
    except InputRefusedError as error:  # of what the header says, which is in order
        raise InputRefusedError(f"{where}: {error}") from None
    except ValueError as error:
        raise InputRefusedError(f"{where}: bad safetensors header: {error}") from None
    return Header(entries, metadata, 8 + len(raw))


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("__metadata__ is no table of texts")
    return value


def _entry(name: str, value: object) -> Entry:
    if not name.isprintable() or len(name) > MAX_NAME:
        raise ValueError(f"{brief(name)} is no name for a tensor")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} is not described by dtype, shape and data_offsets")
    dtype = value["dtype"]
    if isinstance(dtype, str) and dtype.startswith(NARROW):
        raise InputRefusedError(f"{name} is {dtype}, {QUANTISED_COPY}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name!r} has the unknown dtype {brief(dtype)}")
    shape, offsets = _sizes(name, value["shape"]), _sizes(name, value["data_offsets"])
    if len(shape) > MAX_RANK:
        raise ValueError(f"{name!r} has {len(shape)} dimensions")
    if len(offsets) != 2:
        raise ValueError(f"{name!r} has {len(offsets)} data_offsets")
    size = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != size:
        raise ValueError(f"{name!r} needs {size} bytes, its data_offsets are {list(offsets)}")
    return Entry(DTYPES[dtype], shape, *offsets)


def is_size(value: object) -> bool:
    """Whether a value of a file is a whole number that a size or an offset can be."""
    return type(value) is int and 0 <= value < 1 << 63


def _sizes(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(map(is_size, value)):
        raise ValueError(f"{name!r} has sizes that are no whole numbers: {brief(value)}")
    return tuple(value)


def _tiled(entries: dict[str, Entry], data_size: int) -> dict[str, Entry]:
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    end = 0
    for name, entry in ordered.items():
        if entry.begin != end:
            raise ValueError(f"{name!r} begins at {entry.begin}, the tensor before ends at {end}")
        end = entry.end
    if end != data_size:
        raise ValueError(f"its tensors take {end} bytes, the file holds {data_size}")
    return ordered


def encode_header(
    tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """The header, length included, of a file that holds these tensors in this order."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        table[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
