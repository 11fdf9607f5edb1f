"""Folds updates into the weights they belong to: in memory, or from one folder into another."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kogpt.adapters.config import refuse_prepared, stored_name
from kogpt.adapters.files import Adapter, updated
from kogpt.adapters.head import StoredHead, head_in
from kogpt.adapters.loading import Folder, Folders, read_adapters
from kogpt.adapters.lora import LoRALinear
from kogpt.box import BOX
from kogpt.checkpoint import CheckpointReader, open_checkpoint
from kogpt.checkpoint.convert import companions, license_of, tokenizer_class
from kogpt.checkpoint.dtypes import dtype_name
from kogpt.checkpoint.layouts import layout_of
from kogpt.checkpoint.names import CLASSIFIER, aliases, expand
from kogpt.checkpoint.resources import human
from kogpt.checkpoint.shards import MAX_SHARD_SIZE, TensorSpec
from kogpt.checkpoint.writer import classifier_spec, describe_classifier, write_folder
from kogpt.errors import InputRefusedError, ParameterError
from kogpt.jsonfiles import read_config_object
from kogpt.kernels.frozen import FrozenLinear
from kogpt.model import KoGPT

WORTH_TELLING = 0.01  # a smaller share that rounding undoes is not told


@torch.no_grad()
def merge(model: KoGPT) -> None:
    """Folds all updates of a model into its weights, and takes their layers out.

    Sums are float32, rounded once to the dtype of the weights. A soft prompt and a head stay.

    Args:
        model: changed in place.

    Raises:
        ValueError: a layer keeps its weights as integers, which cannot hold an update, computes
            them from others, or has a weight in common with another; or the model is one prepared
            for decoding. Nothing is changed then.
    """
    refuse_prepared(model)
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, LoRALinear) and not name.endswith(".base")  # of another update
    ]
    bases = [_base(model, name, layer) for name, layer in layers]
    with torch.autocast(model.device.type, enabled=False):
        for (name, layer), base in zip(layers, bases, strict=True):
            wide = torch.promote_types(base.weight.dtype, torch.float32)
            base.weight.copy_(base.weight.to(wide) + _delta(layer))
            model.set_submodule(name, base)


def _delta(layer: LoRALinear) -> Tensor:
    """All updates of a layer, added up, (N, K)."""
    delta = layer.scale * (layer.lora_B @ layer.lora_A)
    return delta + _delta(layer.base) if isinstance(layer.base, LoRALinear) else delta


def _base(model: KoGPT, name: str, layer: LoRALinear) -> nn.Linear:
    """The layer below all updates.

    Raises:
        ValueError: its weight cannot be changed, or is another layer's, too.
    """
    base: nn.Module = layer
    while isinstance(base, LoRALinear):
        name, base = f"{name}.base", base.base
    weight = base._parameters.get("weight")
    plain = stored_name(f"{name}.").removesuffix(".")
    if isinstance(base, FrozenLinear):
        raise ParameterError(f"{plain} keeps integers: load the model without quantized=True")
    if not isinstance(base, nn.Linear):
        raise ParameterError(f"{plain} is no nn.Linear, but a {type(base).__name__}")
    # Tensors of other kinds are put together of parts; those of several processes may be written.
    packs = hasattr(weight, "__tensor_flatten__") and not hasattr(weight, "full_tensor")
    if weight is None or packs:
        raise ParameterError(f"{plain}.weight is no parameter of numbers: computed, or packed")
    for other, parameter in model.named_parameters(remove_duplicate=False):
        if parameter is weight and other != f"{name}.weight":
            same = stored_name(other)
            raise ParameterError(f"{plain}.weight cannot be updated alone: {same} is the same")
    return base


@dataclass(frozen=True)
class MergeReport:
    """What was merged.

    Attributes:
        source: the checkpoint.
        adapters: folders of what was added to it.
        destination: the folder written.
        matrices: how many weights were changed.
        rounded_away: the share of their numbers that the update would have changed, had the dtype
            not rounded it away.
        has_head: whether a classifier's head lies beside the weights.
        nbytes: bytes of the weights.
        license: the notice written to the result: that of the source.
    """

    source: str
    adapters: list[str]
    destination: str
    matrices: int
    rounded_away: float
    has_head: bool
    nbytes: int
    license: str

    def to_dict(self) -> dict[str, Any]:
        """All of it, as `--json` prints it."""
        return asdict(self)

    def __str__(self) -> str:
        head = ", with the head of a classifier" if self.has_head else ""
        lost = (
            f"rounding undid {self.rounded_away:.1%} of the changes; with a copy in float32 (kogpt"
            f" convert {self.source} WIDE --dtype float32) it does not\n"
        )
        return (
            f"{self.destination}: wrote {human(self.nbytes)}, {self.source} with"
            f" {self.matrices} matrices changed by {', '.join(self.adapters)}{head}\n"
            f"{lost if self.rounded_away >= WORTH_TELLING else ''}"
            f"licence of the weights: {self.license}"
        )


def merge_checkpoint(
    src: Folder | None,
    adapters: Folders,
    dst: Folder,
    *,
    model_class: type[KoGPT] | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    quiet: bool = False,
) -> MergeReport:
    """Writes a checkpoint folder with adapters folded in, complete or not at all.

    Weights pass through memory slice by slice; sums are float32, rounded once to the dtype that
    the weight is stored in. An adapter's head is written beside the weights, as is that of the
    source where no adapter has one.

    Args:
        src: folder or file of the checkpoint; None for the model in the box.
        adapters: folder of an adapter, or several.
        dst: the folder to write; must not exist, or be empty.
        model_class: of the model; None for the one that belongs to its config.
        max_shard_size: bytes of a file of weights.
        quiet: no progress bar, not even on a terminal.

    Raises:
        InputRefusedError: the source is quantised, an adapter is a soft prompt, one of them cannot
            be used, a sum is beyond the dtype, or `dst` exists.
        NotEnoughResourcesError: the disk has no room.
    """
    with open_checkpoint(BOX if src is None else src, model_class) as reader:
        reader.check(reader.require_config())
        _refuse_quantized(reader)
        found = read_adapters(adapters, reader.require_config(), model_class)
        _refuse_prompts(found)
        _refuse_shared(found, aliases(reader.require_config(), model_class))
        return _Merge(reader, found, Path(dst)).run(max_shard_size, quiet)


class _Merge:
    """One merge: what is read, and what is to be written."""

    def __init__(self, reader: CheckpointReader, adapters: list[Adapter], dst: Path) -> None:
        self.reader, self.adapters, self.dst = reader, adapters, dst
        self.config = reader.require_config()
        heads = [adapter.head for adapter in adapters] + [head_in(reader)]
        self.head = next((head for head in heads if head is not None), None)
        self.changes = 0  # numbers that updates change
        self.undone = 0  # those that rounding changes back

    def specs(self) -> list[TensorSpec]:
        shapes = expand(self.config, self.reader.model_class).items()
        specs = [TensorSpec(name, self.reader.dtype(name), shape) for name, shape in shapes]
        if self.head is not None:
            specs.append(classifier_spec(len(self.head.weight), self.config))
        return specs

    def read(self, name: str, rows: slice) -> Tensor:
        """Rows of a tensor to be written, not rounded yet."""
        if name == CLASSIFIER:
            assert self.head is not None, "it is among the tensors"
            return self.head.weight[rows]
        values = self.reader.read(name, rows)
        sums = updated(values, self.adapters, name.removesuffix(".weight"), rows)
        return values if sums is values else self._rounded(name, sums, values)

    def _rounded(self, name: str, sums: Tensor, values: Tensor) -> Tensor:
        """Sums in the dtype of the values that they change."""
        rounded = sums.to(values.dtype)
        if not rounded.isfinite().all() and values.isfinite().all():
            stored, dtype = self.reader.stored_name(name), dtype_name(values.dtype)
            path, names = self.reader.path, ", ".join(str(each.folder) for each in self.adapters)
            wider = f"; kogpt convert {path} WIDE --dtype float32 makes a copy that may hold them"
            raise InputRefusedError(
                f"{path}: {stored} with {names} has values that {dtype} cannot hold"
                f"{wider if values.dtype != torch.float32 else ''}"
            )
        changed = sums != values
        self.changes += int(changed.sum())
        self.undone += int((changed & (rounded == values)).sum())
        return rounded

    def _describe(self, head: StoredHead) -> dict[str, Any]:
        """What `config.json` says of a head; of its own, what the source says."""
        described = describe_classifier(len(head.weight), head.labels)
        if any(adapter.head is not None for adapter in self.adapters):
            return described
        values = read_config_object(self.reader.folder / "config.json")
        return {key: values.get(key, value) for key, value in described.items()}

    def run(self, max_shard_size: int, quiet: bool) -> MergeReport:
        notice = license_of(self.reader.folder, self.config)
        further = tokenizer_class(self.reader.folder)
        if self.head is not None:
            further |= self._describe(self.head)
        nbytes = write_folder(
            self.dst,
            self.config,
            self.specs(),
            self.read,
            layout=layout_of(self.config, self.reader.model_class),
            files=companions(self.reader.folder),
            license_notice=notice,
            max_shard_size=max_shard_size,
            further=further,
            quiet=quiet,
        )
        return MergeReport(
            source=str(self.reader.path),
            adapters=[str(adapter.folder) for adapter in self.adapters],
            destination=str(self.dst),
            matrices=len({layer for adapter in self.adapters for layer in adapter.updates}),
            rounded_away=self.undone / max(1, self.changes),
            has_head=self.head is not None,
            nbytes=nbytes,
            license=notice,
        )


def _refuse_quantized(reader: CheckpointReader) -> None:
    if reader.quantization is not None:
        raise InputRefusedError(
            f"{reader.path}: quantised, {reader.quantization}, which cannot hold an update; merge"
            f" with the original weights, or widen these: kogpt convert {reader.path} WIDENED"
        )


def _refuse_shared(adapters: Sequence[Adapter], tied: Mapping[str, str]) -> None:
    """Refuses to change one of several layers that have a weight in common."""
    for name, first in tied.items():
        for layer in (name.removesuffix(".weight"), first.removesuffix(".weight")):
            if any(layer in adapter.updates for adapter in adapters):
                raise InputRefusedError(f"{layer} cannot be updated alone: {name} is {first}")


def _refuse_prompts(adapters: Sequence[Adapter]) -> None:
    for adapter in adapters:
        if adapter.prompt is not None:
            raise InputRefusedError(
                f"{adapter.folder}: a soft prompt, which is no change of the weights: it cannot be"
                " merged, but be used with --adapter"
            )
