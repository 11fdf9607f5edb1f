"""Tells what a checkpoint is and what it takes to run it, from headers alone."""

import math
import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kogpt.checkpoint.dtypes import FORMATS, compute_dtype, dtype_name
from kogpt.checkpoint.names import aliases, count_parameters
from kogpt.checkpoint.quantization import parse_quantization
from kogpt.checkpoint.reader import CheckpointReader, open_checkpoint
from kogpt.checkpoint.resources import human
from kogpt.model import KoGPT, KVCache
from kogpt.model.hollow import NO_CONTENTS, hollow

ON_A_CPU = "on a CPU"


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint is.

    Attributes:
        path: as given.
        config: its `config.json`; None where that is missing.
        parameters: count of the weights, shared ones once and buffers not.
        tensors: count of their tensors.
        dtypes: count of weights by what they are stored in, `float16` or `int4`.
        quantization: the `quantization_config`; None for floats.
        nbytes: bytes of the weights as stored.
        files: size of each file of weights.
        ignored: tensors that are passed over: derived buffers, the head of a classifier.
        memory: bytes needed to run, by dtype: weights and one full context of keys and values;
            of a quantised checkpoint also `as stored`, keys and values then in 16 bits; and
            `on a CPU`, unless told otherwise: keys and values in `compute_dtype`, weights as they
            are stored where the network can be prepared for speed.
        compute_dtype: what a CPU computes in unless told otherwise.
    """

    path: str
    config: dict[str, Any] | None
    parameters: int
    tensors: int
    dtypes: dict[str, int]
    quantization: dict[str, Any] | None
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
        memory = {name: human(size) for name, size in self.memory.items()}
        here = memory.pop(ON_A_CPU)
        needed = ", ".join(f"{dtype} {size}" for dtype, size in memory.items())
        return "\n".join(
            [
                f"{self.path}: {self.parameters:,} parameters in {self.tensors} tensors",
                f"stored: {dtypes}; {human(self.nbytes)}, {len(self.ignored)} tensors passed over",
                *self._quantized(),
                *(f"  {name}  {human(size)}" for name, size in self.files.items()),
                *(f"  {key}: {value}" for key, value in config.items()),
                f"memory to run: {needed}; on a CPU {here} unless told otherwise, computing in"
                f" {self.compute_dtype}",
            ]
        )

    def _quantized(self) -> list[str]:
        if self.quantization is None:
            return []
        scheme = parse_quantization(self.quantization, self.path)
        return [f"quantised: {scheme}; format {self.quantization['format']}"]


def inspect(path: str | os.PathLike[str], model_class: type[KoGPT] | None = None) -> Inspection:
    """Looks at a checkpoint without reading its weights.

    Args:
        path: folder or file, in any format that `open_checkpoint` reads.
        model_class: of the model; None for the one that belongs to its `config.json`.

    Raises:
        InputRefusedError: it is damaged, dangerous or of another kind.
    """
    with open_checkpoint(path, model_class) as reader:
        if reader.config is not None:
            reader.check(reader.config)
        return _inspect(reader)


def _inspect(reader: CheckpointReader) -> Inspection:
    dtypes: Counter[str] = Counter()
    for name in reader.names:
        dtypes[reader.stored_as(name)] += math.prod(reader.shape(name))
    stored, quantization = reader.stored_dtype, reader.quantization
    return Inspection(
        path=str(reader.path),
        config=None if reader.config is None else reader.config.to_dict(),
        parameters=_parameters(reader),
        tensors=len(reader.names),
        dtypes=dict(dtypes),
        quantization=None if quantization is None else quantization.to_dict(),
        nbytes=reader.nbytes,
        files={os.path.relpath(p, reader.folder): p.stat().st_size for p in reader.files},
        ignored=list(reader.ignored),
        memory=_memory(reader),
        compute_dtype=dtype_name(compute_dtype(stored, torch.device("cpu"))),
    )


def _parameters(reader: CheckpointReader) -> int:
    if reader.config is None:
        return _count(reader)
    return count_parameters(reader.config, reader.model_class)


def _memory(reader: CheckpointReader) -> dict[str, int]:
    weights, cached = _count(reader), _cached(reader)
    memory = {item.name: (weights + cached) * item.torch.itemsize for item in FORMATS}
    if reader.quantization is not None:
        memory["as stored"] = reader.nbytes + 2 * cached
    computed = compute_dtype(reader.stored_dtype, torch.device("cpu")).itemsize
    is_prepared = reader.model_class is None and reader.config is not None
    memory[ON_A_CPU] = cached * computed + (reader.nbytes if is_prepared else weights * computed)
    return memory


def _count(reader: CheckpointReader) -> int:
    """Numbers in the tensors of a checkpoint, those of shared parameters once."""
    tied = {} if reader.config is None else aliases(reader.config, reader.model_class)
    return sum(math.prod(reader.shape(name)) for name in reader.names if name not in tied)


def _cached(reader: CheckpointReader) -> int:
    """Keys and values of one full context."""
    config, own = reader.config, reader.model_class
    if config is None:
        return 0
    if own is not None:
        cache = KVCache(config.n_positions)
        try:
            with torch.inference_mode():
                hollow(own, config)(torch.zeros(1, 1, dtype=torch.long, device="meta"), cache)
            return cache.nbytes // torch.get_default_dtype().itemsize
        except (RuntimeError, TypeError, BufferError) as error:
            if not NO_CONTENTS.search(str(error)):  # it may need values to compute
                raise
    return 2 * config.n_layer * config.n_positions * config.n_embd
