"""One way to read every kind of checkpoint: names, shapes and dtypes first, then slices."""

import math
import os
import re
from collections.abc import Collection
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kogpt.checkpoint.dtypes import check_float, dtype_name
from kogpt.checkpoint.files import ORIGINAL, refuse_foreign, require_regular
from kogpt.checkpoint.index import ShardIndex, read_index
from kogpt.checkpoint.layouts import LAYOUTS, Layout, ReleasedTensors
from kogpt.checkpoint.mesh import MeshCheckpoint, is_mesh_checkpoint
from kogpt.checkpoint.names import CLASSIFIER, check_names, is_ignored, is_passed_over
from kogpt.checkpoint.pickle_file import PickleFile
from kogpt.checkpoint.quantization import Quantization, parse_quantization
from kogpt.checkpoint.quantized import Matrix, QuantizedMatrices
from kogpt.checkpoint.safetensors_file import SafetensorsFile
from kogpt.checkpoint.sliced import SlicedCheckpoint, is_sliced
from kogpt.checkpoint.sources import LookUp, Source, WeightsFile, map_tensor, stored_rows
from kogpt.errors import InputRefusedError
from kogpt.jsonfiles import read_config_object
from kogpt.kernels.linear import Weight
from kogpt.model.config import KoGPTConfig
from kogpt.model.transformer import KoGPT
from kogpt.model.variants import read_config
from kogpt.textfiles import abridged, brief

# Where a folder keeps its weights, in the order of preference.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

# What a folder without any of those may hold instead.
FOREIGN = {
    "adapter_model.*": "an adapter, which is no model of its own; give it as one, beside its model",
    "*.gguf": f"a GGUF file; {ORIGINAL}",
    "*.h5": f"weights of TensorFlow; {ORIGINAL}",
    "*.msgpack": f"weights of Flax; {ORIGINAL}",
    "*.distcp": "a part of a distributed checkpoint; make one file of it with"
    " `python -m torch.distributed.checkpoint.format_utils dcp_to_torch`",
}

# What weights may be in under any name, and what is in such files too: parts, and what training
# leaves beside weights.
FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth")
NO_WEIGHTS = re.compile(
    r".*-of-.*|(optimizer|scheduler|training_args|rng_state)\b.*|(trained|best)\.safetensors"
)


class Declaration(NamedTuple):
    """What a folder says of its weights; see `CheckpointReader`."""

    config: KoGPTConfig | None
    model_class: type[KoGPT] | None
    quantization: Quantization | None
    layout: Layout | None


class CheckpointReader:
    """An open checkpoint. Use as a context manager.

    Attributes:
        path: the folder or file it was opened by.
        folder: the folder its files are in.
        files: every file that holds weights, and the index where there is one.
        config: the shape of the model, where a `config.json` or the caller tells it.
        model_class: of the model; None for the one that belongs to the config.
        quantization: how matrices are stored; None for as floats.
        names: the model's tensors, in the order found.
        ignored: tensors that are passed over: derived buffers, the head of a classifier.
    """

    def __init__(
        self,
        path: Path,
        parts: list[WeightsFile],
        declared: Declaration,
        index: ShardIndex | None = None,
    ) -> None:
        self.path = path
        self.folder = path if path.is_dir() else path.parent
        self.config, self.model_class, self.quantization, layout = declared
        self._parts = parts
        self._owner: dict[str, Source] = {}
        for part in parts:
            for name in part.tensors:
                if name in self._owner:
                    raise InputRefusedError(
                        f"{part.path}: {name} is in {self._owner[name].path.name} too"
                    )
                self._owner[name] = part
        if index is not None:
            self._check_index(index, layout)
        self.files = [path for part in parts for path in part.paths]
        self.files += [] if index is None else [index.path]
        if layout is not None:
            self._rename(layout)
        quantization = self.quantization
        self._matrices = {} if quantization is None else self._find_matrices(quantization)
        self.names = [name for name in self._owner if not is_passed_over(name)]
        self.ignored = [name for name in self._owner if is_passed_over(name)]

    def __enter__(self) -> "CheckpointReader":
        return self

    def __exit__(self, *_: object) -> None:
        for part in self._parts:
            part.close()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._owner[name].tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._owner[name].tensors[name].dtype

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """A tensor, or a range of its first dimension, as stored (sums and products: float32)."""
        return self._owner[name].read(name, rows)

    def read_weight(self, name: str, rows: slice = slice(None)) -> Weight:
        """The same, but integers and scales where that is what is stored.

        Raises:
            InputRefusedError: a scale is NaN or infinite.
        """
        source = self._owner[name]
        if isinstance(source, QuantizedMatrices):
            return source.read_weight(name, rows)
        return Weight(self.read(name, rows))

    def map_weight(self, name: str) -> Weight | None:
        """The same of a whole tensor, whose numbers are read when they are used and not copied.

        Returns:
            None where the file cannot be mapped: a pickle, or one of another alignment.

        Raises:
            InputRefusedError: a scale is NaN or infinite.
        """
        source = self._owner[name]
        if isinstance(source, QuantizedMatrices):
            return source.map_weight(name)
        values = map_tensor(source, name)
        return None if values is None else Weight(values)

    def stored_rows(self, name: str) -> LookUp | None:
        """A matrix of floats whose rows are read when they are looked up; None from a pickle."""
        return stored_rows(self._owner[name], name)

    def stored_name(self, name: str) -> str:
        """The name of the tensor in the file that a tensor lies in, for messages."""
        source = self._owner[name]
        return source.stored_name(name) if isinstance(source, ReleasedTensors) else name

    def stored_as(self, name: str) -> str:
        """What the numbers of a tensor are in the file: `float16`, `int8`, `int4`."""
        matrix = self._matrices.get(name)
        return dtype_name(self.dtype(name)) if matrix is None else f"int{matrix.scheme.bits}"

    def is_integer(self, name: str) -> bool:
        """Whether a tensor is kept as integers with scales."""
        return name in self._matrices

    def stored_bytes(self, name: str) -> int:
        """Bytes of a tensor in the file, scales and zero points included."""
        matrix = self._matrices.get(name)
        size = math.prod(self.shape(name)) * self.dtype(name).itemsize
        return size if matrix is None else matrix.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored; also what they take in memory that are kept so."""
        return sum(map(self.stored_bytes, self.names))

    @property
    def stored_dtype(self) -> torch.dtype:
        """The narrowest dtype that holds every weight as stored.

        Raises:
            InputRefusedError: there are no weights.
        """
        if not self.names:
            raise InputRefusedError(f"{self.path}: holds no weights")
        return reduce(torch.promote_types, (self.dtype(name) for name in self.names))

    def require_config(self) -> KoGPTConfig:
        """The shape of the model.

        Raises:
            InputRefusedError: there is no `config.json`.
        """
        if self.config is None:
            raise InputRefusedError(f"{self.path}: config.json is missing")
        return self.config

    def check(self, config: KoGPTConfig, allow_extra: Collection[str] = ()) -> list[str]:
        """Holds names, shapes and dtypes against a config.

        Returns:
            Names of additional tensors that a pattern of `allow_extra` lets pass.

        Raises:
            InputRefusedError: something is missing, unknown, misshapen or quantised.
        """
        shapes = {name: self.shape(name) for name in self._owner}
        allowed = check_names(shapes, config, str(self.path), allow_extra, self.model_class)
        for name in (*self.names, *filter(CLASSIFIER.__eq__, self.ignored)):
            if name not in allowed:
                check_float(self.dtype(name), name, str(self._owner[name].path))
        self.names = [name for name in self.names if name not in allowed]
        return allowed

    def _rename(self, layout: Layout) -> None:
        """Puts our tensors in the place of those of a released layout."""
        released = ReleasedTensors(self.path, dict(self._owner), self.require_config(), layout)
        self._owner = {n: part for n, part in self._owner.items() if n not in released.parts}
        self._owner |= dict.fromkeys(released.tensors, released)

    def _find_matrices(self, quantization: Quantization) -> dict[str, Matrix]:
        """Puts quantised matrices in the place of the tensors that stand for them."""
        config, owner = self.require_config(), dict(self._owner)
        matrices = QuantizedMatrices(self.path, owner, config, quantization)
        self._owner = {n: part for n, part in owner.items() if n not in matrices.parts}
        self._owner |= dict.fromkeys(matrices.tensors, matrices)
        return matrices.tensors

    def _check_index(self, index: ShardIndex, layout: Layout | None) -> None:
        for name, file in index.weight_map.items():
            if name not in self._owner or self._owner[name].path.name != file:
                raise InputRefusedError(f"{index.path}: {name} is not in {file}")
        for name in self._owner:
            if name not in index.weight_map and not is_ignored(name):
                raise InputRefusedError(f"{index.path}: {name} is not listed")
        self._check_total(index, set() if layout is None else layout.twins)

    def _check_total(self, index: ShardIndex, twins: Collection[str]) -> None:
        # Libraries count masks at one byte a value, one bit, or not at all, and what two tensors
        # share once or twice.
        sizes = {True: 0, False: 0}
        for name in self._owner:
            count = math.prod(self.shape(name)) * self.dtype(name).itemsize
            sizes[is_ignored(name) or name in twins] += count
        total = index.total_size
        if total is not None and not sizes[False] <= total <= sizes[False] + sizes[True]:
            raise InputRefusedError(
                f"{index.path}: total_size is {total}, the tensors take {sizes[False]}"
            )


def open_checkpoint(
    path: str | os.PathLike[str],
    model_class: type[KoGPT] | None = None,
    config: KoGPTConfig | None = None,
) -> CheckpointReader:
    """Opens a checkpoint: reads headers, but no weights.

    Args:
        path: a folder with one of `WEIGHTS`, in slices (`kogpt.checkpoint.sliced`), or of
            mesh-transformer-jax (`step_N`), or a file of weights itself, with `config.json` beside
            it.
        model_class: of the model; None for the one that belongs to the config.
        config: the shape of the model; None for what `config.json` says.

    Raises:
        InputRefusedError: it is missing, damaged, dangerous or of another kind.
    """
    path = Path(path)
    weights = _locate(path)
    declared = _describe(path if path.is_dir() else path.parent, model_class, config)
    index = _index_of(weights)
    parts: list[WeightsFile] = []
    try:
        for each in [weights] if index is None else map(weights.parent.joinpath, index.files):
            parts.append(_open(each))
        return CheckpointReader(path, parts, declared, index)
    except BaseException:
        for part in parts:
            part.close()
        raise


def _locate(path: Path) -> Path:
    """What holds the weights that a path stands for: a file, an index of some, or the folder."""
    if not path.exists():
        raise InputRefusedError(f"{path}: no such file or folder")
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        raise InputRefusedError(f"{path}: no permission to read it")
    if not path.is_dir() or is_mesh_checkpoint(path) or is_sliced(path):
        return path
    for name in WEIGHTS:
        if os.path.lexists(path / name):
            return path / name
    for pattern, what in FOREIGN.items():
        for found in path.glob(pattern):
            raise InputRefusedError(f"{found}: {what}")
    if steps := sorted(path.glob("step-*/config.json")):
        raise InputRefusedError(
            f"{path}: the folder of a run; name one of its checkpoints, such as {steps[-1].parent}"
        )
    names = sorted(file.name for pattern in FILES for file in path.glob(pattern))
    others = abridged(", ".join(brief(name) for name in names if not NO_WEIGHTS.fullmatch(name)))
    hint = f"; weights of another name are read if the file is given: {others}" if others else ""
    expected = ", ".join(WEIGHTS)
    raise InputRefusedError(f"{path}: holds no weights; expected one of {expected}{hint}")


def _describe(
    folder: Path, model_class: type[KoGPT] | None, config: KoGPTConfig | None
) -> Declaration:
    path = folder / "config.json"
    if not path.exists():
        layout = None if config is None else LAYOUTS.get(config.released_type)
        return Declaration(config, model_class, None, layout)
    require_regular(path)
    values = read_config_object(path)
    table = values.get("quantization_config")
    quantization = None if table is None else parse_quantization(table, str(path))
    config = config or read_config(path, model_class)
    kind = values.get("model_type")
    layout = LAYOUTS.get(kind) if isinstance(kind, str) else None
    return Declaration(config, model_class, quantization, layout)


def _index_of(weights: Path) -> ShardIndex | None:
    if not weights.name.endswith(".index.json"):
        return None
    extension = ".bin" if weights.name.endswith(".bin.index.json") else ".safetensors"
    return read_index(weights, extension)


def _open(path: Path) -> WeightsFile:
    if is_mesh_checkpoint(path):
        return MeshCheckpoint(path)
    if is_sliced(path):
        return SlicedCheckpoint(path)
    require_regular(path)
    refuse_foreign(path)
    return SafetensorsFile(path) if path.suffix == ".safetensors" else PickleFile(path)
