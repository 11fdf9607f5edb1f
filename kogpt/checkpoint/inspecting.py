"""Tells what a checkpoint is and what it takes to run it, from headers alone."""

import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kogpt.checkpoint.dtypes import FORMATS, compute_dtype, dtype_name
from kogpt.checkpoint.reader import CheckpointReader, open_checkpoint
from kogpt.checkpoint.resources import human
from kogpt.model.config import KoGPTConfig


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint is.

    Attributes:
        path: as given.
        config: its `config.json`; None where that is missing.
        parameters: count of the weights.
        tensors: count of their tensors.
        dtypes: count of weights by the dtype they are stored in.
        nbytes: bytes of the weights as stored.
        files: size of each file of weights.
        ignored: derived buffers that are passed over.
        memory: bytes needed to run, by dtype: weights and one full context of keys and values.
        compute_dtype: what a CPU computes in unless told otherwise.
    """

    path: str
    config: dict[str, Any] | None
    parameters: int
    tensors: int
    dtypes: dict[str, int]
    nbytes: int
    files: dict[str, int]
    ignored: list[str]
    memory: dict[str, int]
    compute_dtype: str

    def to_dict(self) -> dict[str, Any]:
        """All of it, as `--json` prints it."""
        return asdict(self)

    def __str__(self) -> str:
        dtypes = ", ".join(f"{count:,} {dtype}" for dtype, count in self.dtypes.items())
        config = self.config or {"config.json": "missing"}
        memory = ", ".join(f"{dtype} {human(size)}" for dtype, size in self.memory.items())
        return "\n".join(
            [
                f"{self.path}: {self.parameters:,} parameters in {self.tensors} tensors",
                f"stored: {dtypes}; {human(self.nbytes)} and {len(self.ignored)} derived buffers",
                *(f"  {name}  {human(size)}" for name, size in self.files.items()),
                *(f"  {key}: {value}" for key, value in config.items()),
                f"memory to run: {memory}; on a CPU {self.compute_dtype} unless told otherwise",
            ]
        )


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Looks at a checkpoint without reading its weights.

    Args:
        path: folder or file, in any format that `open_checkpoint` reads.

    Raises:
        InputRefusedError: it is damaged, dangerous or of another kind.
    """
    with open_checkpoint(path) as reader:
        if reader.config is not None:
            reader.check(reader.config)
        return _inspect(reader)


def _inspect(reader: CheckpointReader) -> Inspection:
    dtypes: Counter[str] = Counter()
    nbytes = 0
    for name in reader.names:
        count = torch.Size(reader.shape(name)).numel()
        dtypes[dtype_name(reader.dtype(name))] += count
        nbytes += count * reader.dtype(name).itemsize
    stored = reader.stored_dtype
    return Inspection(
        path=str(reader.path),
        config=None if reader.config is None else reader.config.to_dict(),
        parameters=dtypes.total(),
        tensors=len(reader.names),
        dtypes=dict(dtypes),
        nbytes=nbytes,
        files={os.path.relpath(p, reader.folder): p.stat().st_size for p in reader.files},
        ignored=list(reader.ignored),
        memory=_memory(dtypes.total(), reader.config),
        compute_dtype=dtype_name(compute_dtype(stored, torch.device("cpu"))),
    )


def _memory(parameters: int, config: KoGPTConfig | None) -> dict[str, int]:
    cached = 0 if config is None else 2 * config.n_layer * config.n_positions * config.n_embd
    return {item.name: (parameters + cached) * item.torch.itemsize for item in FORMATS}
