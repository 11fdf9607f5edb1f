"""Operators with a PyTorch reference and kernels for GPUs and CPUs; knows nothing of the model."""

from kogpt.kernels.attention import attention, attention_reference
from kogpt.kernels.decode import DecodeStep, decode_attention
from kogpt.kernels.extension import extension_available
from kogpt.kernels.frozen import FrozenLinear
from kogpt.kernels.linear import Weight, linear
from kogpt.kernels.step import (
    Layers,
    step_attention,
    step_block,
    step_linear,
    step_norm,
    step_obstacle,
)

__all__ = [
    "DecodeStep",
    "FrozenLinear",
    "Layers",
    "Weight",
    "attention",
    "attention_reference",
    "decode_attention",
    "extension_available",
    "linear",
    "step_attention",
    "step_block",
    "step_linear",
    "step_norm",
    "step_obstacle",
]
