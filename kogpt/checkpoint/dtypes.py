"""The floating-point formats weights are stored in, under each of their names."""

from dataclasses import dataclass

import numpy as np
import torch

from kogpt.errors import InputRefusedError, ParameterError

QUANTISED_COPY = "so this is a quantised copy; convert the original weights instead"


@dataclass(frozen=True)
class FloatFormat:
    """One format: its names, and what its bits mean.

    Attributes:
        name: as in `--dtype` and `config.json`.
        torch: the dtype.
        bits: the unsigned integer of the same width.
        infinity: the bits of +inf; larger magnitudes are NaN.
    """

    name: str
    torch: torch.dtype
    bits: type[np.unsignedinteger]
    infinity: int


FORMATS = (
    FloatFormat("float16", torch.float16, np.uint16, 0x7C00),
    FloatFormat("bfloat16", torch.bfloat16, np.uint16, 0x7F80),
    FloatFormat("float32", torch.float32, np.uint32, 0x7F80_0000),
)
BY_NAME = {item.name: item for item in FORMATS}
BY_TORCH = {item.torch: item for item in FORMATS}


def parse_dtype(value: str | torch.dtype) -> torch.dtype:
    """The dtype of a name such as `float16`; dtypes pass through.

    Raises:
        ValueError: weights are not written in that format.
    """
    dtype = BY_NAME[value].torch if value in BY_NAME else value
    if dtype not in BY_TORCH:
        raise ParameterError(f"dtype is {value!r}, it must be one of {', '.join(BY_NAME)}")
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype without `torch.`."""
    return str(dtype).removeprefix("torch.")


def compute_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype to compute in where the user names none."""
    return torch.float32 if stored == torch.float16 and device.type == "cpu" else stored


def check_float(dtype: torch.dtype, name: str, where: str) -> None:
    """Refuses weights that are no floating-point numbers: quantised copies, most of all.

    Raises:
        InputRefusedError: `name` in `where` has another dtype.
    """
    if dtype in BY_TORCH:
        return
    reason = "not a floating-point format that weights come in"
    if dtype in (torch.int8, torch.uint8, torch.int32):
        reason = QUANTISED_COPY
    raise InputRefusedError(f"{where}: {name} is {dtype_name(dtype)}, {reason}")
