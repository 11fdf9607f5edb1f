"""Loads a checkpoint into a model, tensor by tensor."""

import math
import os
from typing import TypeVar, overload

import torch
from torch import Tensor

from kogpt.box import BOX
from kogpt.checkpoint.dtypes import compute_dtype, parse_dtype
from kogpt.checkpoint.names import aliases, expand, refuse_unsavable
from kogpt.checkpoint.reader import CheckpointReader, open_checkpoint
from kogpt.checkpoint.resources import require_memory
from kogpt.checkpoint.shards import TensorSpec
from kogpt.errors import InputRefusedError
from kogpt.kernels import FrozenLinear, Weight
from kogpt.model import KoGPT
from kogpt.model.hollow import hollow, materialise
from kogpt.model.variants import class_of

ROOM_TO_RUN = 64 << 20  # bytes, beside the weights


M = TypeVar("M", bound=KoGPT)


@overload
def load_model(
    path: str | os.PathLike[str] | None = ...,
    dtype: str | torch.dtype | None = ...,
    device: str | int | torch.device | None = ...,
    *,
    model_class: None = None,
    quantized: bool = ...,
) -> KoGPT: ...
@overload
def load_model(
    path: str | os.PathLike[str] | None = ...,
    dtype: str | torch.dtype | None = ...,
    device: str | int | torch.device | None = ...,
    *,
    model_class: type[M],
    quantized: bool = ...,
) -> M: ...
def load_model(
    path: str | os.PathLike[str] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | int | torch.device | None = None,
    *,
    model_class: type[KoGPT] | None = None,
    quantized: bool = False,
) -> KoGPT:
    """Loads a model, ready to run (dropout off).

    Args:
        path: a checkpoint folder, or a file of weights beside its `config.json`, in any format
            that `open_checkpoint` reads. None for the model in the box.
        dtype: to compute in. None takes what is stored, except that float16 on a CPU becomes
            float32: a CPU is never silently half.
        device: to load to, a number for that GPU; None for the CPU.
        model_class: of the model; None for the one that belongs to its `config.json`.
        quantized: keep matrices of 8 and 4 bits as they are stored, in `FrozenLinear` layers: to
            train adapters beside them in little memory. Otherwise they are widened to `dtype`.

    Raises:
        InputRefusedError: the checkpoint is damaged, dangerous, or not of this architecture.
        NotEnoughResourcesError: the device has no room for the weights.
        ValueError: `dtype` is none that weights come in.
    """
    device = torch.device("cpu" if device is None else device)
    with open_checkpoint(BOX if path is None else path, model_class) as reader:
        config = reader.require_config()
        reader.check(config)
        model_class = model_class or class_of(config)
        target = compute_dtype(reader.stored_dtype, device) if dtype is None else parse_dtype(dtype)
        kept = [name for name in reader.names if quantized and reader.is_integer(name)]
        narrow = sum(map(reader.stored_bytes, kept))
        tied = aliases(config, model_class)
        names = [name for name in expand(config, model_class) if name not in kept]
        wide = sum(math.prod(reader.shape(name)) for name in names if name not in tied)
        require_memory(device, narrow + wide * target.itemsize + ROOM_TO_RUN, str(reader.path))
        model = hollow(model_class, config)
        refuse_unsavable(model)
        for name in kept:
            weight = on_device(reader.read_weight(name), target, device)
            _freeze(model, name.removesuffix(".weight"), weight)
        state = {name: _load(reader, name, target, device) for name in names}
        _refuse_torn(state, tied, str(reader.path))
    model.load_state_dict(state, strict=True, assign=True)
    for name, first in tied.items():
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, model.get_parameter(first))
    materialise(model, lambda _: device)  # what is left is derived: rotary tables
    return model.eval()


def _refuse_torn(state: dict[str, Tensor], tied: dict[str, str], where: str) -> None:
    """Refuses values that differ of what is one parameter."""
    for name, first in tied.items():
        if name in state and first in state and not state[name].equal(state[first]):
            raise InputRefusedError(f"{where}: {name} differs from {first}, which it should be")


def _freeze(model: KoGPT, name: str, weight: Weight) -> None:
    """Puts a layer over stored weights in the place of one; its bias, on meta, is yet to come."""
    bias = model.get_submodule(name).bias
    assert bias is None or isinstance(bias, Tensor), f"{name} is a linear layer"
    model.set_submodule(name, FrozenLinear(weight, None if bias is None else bias.detach()))


def on_device(stored: Weight, dtype: torch.dtype, device: torch.device) -> Weight:
    """Integers and their scales on the device that multiplies inputs of `dtype` by them."""
    # A GPU's kernels want scales in the dtype of x; a CPU's take any.
    scales = None if device.type == "cpu" else dtype
    return stored.with_values(stored.values.to(device), lambda part: part.to(device, scales))


def _load(reader: CheckpointReader, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    shape = reader.shape(name)
    values = torch.empty(shape, dtype=dtype, device=device)
    for rows in TensorSpec(name, dtype, shape).slices():
        values[rows].copy_(reader.read(name, rows))
    return values
