"""Weights of 8 and 4 bits: how they are stored, and what `config.json` says of it.

The layout is that of the library compressed-tensors (`int-quantized`, `pack-quantized`), with which
transformers opens the folder. A weight is (q - zero point) scale. Beside or in place of `X.weight`
of a linear layer with N outputs, K inputs and G groups of inputs lie

    8 bits   X.weight             int8  (N, K)
             X.weight_scale       float (N, 1)
    4 bits   X.weight_packed      int32 (N, K / 8), eight to a word from its low end, as q + 8
             X.weight_scale       float (N, G)
             X.weight_zero_point  int32 (N / 8, G) rounded up, packed down the rows; if any
             X.weight_shape       int64 (2), which is N and K
"""

from dataclasses import dataclass
from typing import Any

import torch

from kogpt.checkpoint.shards import TensorSpec
from kogpt.errors import InputRefusedError
from kogpt.model.config import KoGPTConfig
from kogpt.textfiles import brief

IN_WORD = 8  # numbers of 4 bits in an int32
HEAD = "lm_head.weight"
FORMATS = {8: "int-quantized", 4: "pack-quantized"}


@dataclass(frozen=True)
class Scheme:
    """How one matrix is stored.

    Attributes:
        bits: 8 or 4.
        group_size: inputs that share a scale; None for all of a row.
        zero_points: whether zero is another number than 0 in each group.
    """

    bits: int
    group_size: int | None = None
    zero_points: bool = False

    def groups(self, columns: int) -> int:
        """Scales of a row."""
        return 1 if self.group_size is None else columns // self.group_size

    def stored(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> list[TensorSpec]:
        """The tensors that stand for `name`, the numbers themselves first.

        Args:
            name: `X.weight`.
            shape: N and K.
            dtype: of the scales.
        """
        N, K = shape
        scale = TensorSpec(f"{name}_scale", dtype, (N, self.groups(K)))
        if self.bits == 8:
            return [TensorSpec(name, torch.int8, shape), scale]
        packed = TensorSpec(f"{name}_packed", torch.int32, (N, K // IN_WORD))
        zeros = TensorSpec(f"{name}_zero_point", torch.int32, (-(-N // IN_WORD), self.groups(K)))
        sizes = TensorSpec(f"{name}_shape", torch.int64, (2,))
        return [packed, scale, *([zeros] if self.zero_points else []), sizes]

    def __str__(self) -> str:
        group = "per row" if self.group_size is None else f"in groups of {self.group_size}"
        return f"int{self.bits} {group}{' with zero points' if self.zero_points else ''}"

    def to_dict(self, target: str) -> dict[str, Any]:
        """A group of `quantization_config`."""
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": not self.zero_points,
            "strategy": "channel" if self.group_size is None else "group",
            "group_size": self.group_size,
            "dynamic": False,
        }
        # Without the format in the group, transformers takes int8 without int8 inputs for packed.
        return {"targets": [target], "weights": weights, "format": FORMATS[self.bits]}


INT8 = Scheme(8)


@dataclass(frozen=True)
class Quantization:
    """How the matrices of the linear layers are stored; the embedding is never quantised.

    Attributes:
        body: of the blocks.
        head: of `lm_head`; None where that is float.
    """

    body: Scheme
    head: Scheme | None

    @classmethod
    def of(cls, kind: str, group_size: int, zero_points: bool) -> "Quantization":
        """What `kogpt convert --quantize int8|int4` writes.

        With zero points the head stays float: what transformers 5.23 reads of those (only with
        `dequantize=True`) it reads with one scheme for all layers.
        """
        if kind == "int8":
            return cls(INT8, INT8)
        return cls(Scheme(4, group_size, zero_points), None if zero_points else INT8)

    def scheme(self, name: str) -> Scheme | None:
        """How a tensor is stored, by its released name; None for as it is."""
        if name == HEAD:
            return self.head
        is_matrix = name.endswith(".weight") and (".attn." in name or ".mlp." in name)
        return self.body if is_matrix else None

    def check_fits(self, config: KoGPTConfig, where: str) -> None:
        """Refuses matrices whose rows are no whole number of groups.

        Raises:
            InputRefusedError: the message names the size that is wrong.
        """
        unit = self.body.group_size or 1
        for name, K in (("n_embd", config.n_embd), ("n_inner", config.inner_dim)):
            if K % unit:
                raise InputRefusedError(
                    f"{where}: {name} is {K}, no multiple of the group size {unit}"
                )

    def __str__(self) -> str:
        head = "float" if self.head is None else self.head
        return f"{self.body}" if self.head == self.body else f"{self.body}, lm_head {head}"

    def to_dict(self) -> dict[str, Any]:
        """The `quantization_config` of `config.json`."""
        groups = [self.body.to_dict("Linear")]
        if self.head not in (None, self.body):
            # First: transformers asks the groups in turn, and a head is a Linear, too.
            groups.insert(0, self.head.to_dict("lm_head"))
        formats = {group["format"] for group in groups}
        return {
            "quant_method": "compressed-tensors",
            "format": formats.pop() if len(formats) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "config_groups": {f"group_{i}": group for i, group in enumerate(groups)},
            "ignore": ["lm_head"] if self.head is None else [],
        }


def parse_quantization(table: object, where: str) -> Quantization:
    """Reads a `quantization_config`.

    Args:
        table: as in `config.json`.
        where: the file, for messages.

    Raises:
        InputRefusedError: another layout, or another variant of it; the message names the key.
    """
    try:
        return _parse(_Table(table, "quantization_config"))
    except ValueError as error:
        raise InputRefusedError(
            f"{where}: {error}; convert the original weights of this quantised copy instead"
        ) from None


class _Table:
    """A JSON object from a file, whose values are asked for by key and held to what is read."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{path} is {brief(value)}, no table")
        self.values, self.path = value, path

    def require(self, key: str, *allowed: Any) -> Any:
        """A value; absent is None.

        Raises:
            ValueError: it is none of those allowed.
        """
        value = self.values.get(key)
        if not any(value == one and type(value) is type(one) for one in allowed):
            wanted = " or ".join(map(repr, allowed))
            raise ValueError(f"{self.path}.{key} is {brief(value)}, read is only {wanted}")
        return value

    def table(self, key: str) -> "_Table":
        shown = key if key.isidentifier() and len(key) < 40 else brief(key)
        return _Table(self.values.get(key), f"{self.path}.{shown}")


def _parse(top: _Table) -> Quantization:
    top.require("quant_method", "compressed-tensors")
    top.require("quantization_status", "compressed")
    for key in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        top.require(key, None, {})
    default = top.require("format", *FORMATS.values(), "mixed-precision")
    ignore = top.require("ignore", None, [], ["lm_head"])
    groups = top.table("config_groups")
    schemes = dict(_parse_group(groups.table(name), default) for name in groups.values)
    if "Linear" not in schemes or len(schemes) != len(groups.values):
        raise ValueError(f"{groups.path} has no group of the target Linear, or two of one target")
    head = None if ignore else schemes.get("lm_head", schemes["Linear"])
    return Quantization(schemes["Linear"], head)


def _parse_group(group: _Table, default: str) -> tuple[str, Scheme]:
    """The target of a group, and how its weights are stored."""
    (target,) = group.require("targets", ["Linear"], ["lm_head"])
    for key in ("input_activations", "output_activations"):
        group.require(key, None)
    weights = group.table("weights")
    weights.require("type", "int")
    weights.require("dynamic", None, False)
    weights.require("block_structure", None)
    weights.require("actorder", None, False, "weight", "static")
    bits = weights.require("num_bits", 8, 4)
    if (group.values.get("format") or default) != FORMATS[bits]:
        raise ValueError(f"{group.path}.format is not {FORMATS[bits]}, as {bits} bits are read")
    if bits == 8:
        weights.require("strategy", "channel")
        weights.require("symmetric", True)
        return target, INT8
    weights.require("strategy", "group")
    return target, Scheme(4, _group_size(weights), not weights.require("symmetric", True, False))


def _group_size(weights: _Table) -> int:
    size = weights.values.get("group_size")
    if type(size) is not int or size < IN_WORD or size % IN_WORD:
        raise ValueError(f"{weights.path}.group_size is {brief(size)}, no multiple of {IN_WORD}")
    return size
