"""Adapters as peft's files: `adapter_config.json` and `adapter_model.safetensors`.

Three kinds are read and written, each with a head beside it or without:

    LORA            base_model.model.{layer}.lora_A.weight (r, K), .lora_B.weight (N, r)
    PROMPT_TUNING   prompt_embeddings (n, C)
    P_TUNING        prompt_embeddings (n, C), as its encoder computed them in the end
    the head        base_model.model.score.weight, or base_model.score.weight beside a prompt

What a file asks for beyond that is refused by its key, not passed over.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from kogpt.adapters.config import TARGETS
from kogpt.adapters.head import StoredHead, head_of
from kogpt.adapters.lora import LoRALinear
from kogpt.adapters.peft_config import (
    P_TUNING,
    PROMPT_TUNING,
    LoRATable,
    PromptTable,
    describe_lora,
    describe_prompt,
    parse_config,
)
from kogpt.adapters.prompt import LSTMPrompt, MLPPrompt, PromptedEmbedding, prompt_embeddings
from kogpt.box import BOX
from kogpt.checkpoint.convert import license_of
from kogpt.checkpoint.dtypes import check_float
from kogpt.checkpoint.files import refuse_foreign, require_regular
from kogpt.checkpoint.names import CLASSIFIER, expand, numbered_labels
from kogpt.checkpoint.safetensors_file import SafetensorsFile, encode_header
from kogpt.checkpoint.staging import put_in_place, writing, written_beside
from kogpt.checkpoint.writer import raw_bytes
from kogpt.errors import InputRefusedError, ParameterError
from kogpt.jsonfiles import parse_json, read_config_object, to_json
from kogpt.model import KoGPT, KoGPTConfig
from kogpt.textfiles import brief

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
LORA_PREFIX, PROMPT_PREFIX = "base_model.model.", "base_model."
LABELS = "labels"  # in the header of the weights


LayerShapes = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Update:
    """The update of one linear layer: alpha / r B A.

    Attributes:
        A: (r, K), float32.
        B: (N, r), float32.
        alpha: what it is scaled by, times r.
    """

    A: Tensor
    B: Tensor
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.A.size(0)

    def delta(self, rows: slice = slice(None)) -> Tensor:
        """What some rows of the layer's weights are to be raised by, (rows, K), float32."""
        return self.scale * (self.B[rows] @ self.A)


@dataclass(frozen=True)
class Adapter:
    """All that an adapter's folder holds.

    Attributes:
        folder: where it was read from.
        updates: of linear layers, by their names in the model.
        prompt: embeddings of virtual tokens (n, C), float32.
        head: the head.
        license: the notice in the file, if there is one.
    """

    folder: Path
    updates: Mapping[str, Update] = field(default_factory=dict)
    prompt: Tensor | None = None
    head: StoredHead | None = None
    license: str | None = None


def updated(values: Tensor, adapters: Iterable[Adapter], layer: str, rows: slice) -> Tensor:
    """Rows of a layer's matrix with what adapters change them by, in float32 if any does."""
    for adapter in adapters:
        if layer in adapter.updates:
            values = values.float() + adapter.updates[layer].delta(rows)
    return values


def read_adapter(
    folder: str | os.PathLike[str],
    config: KoGPTConfig,
    model_class: type[KoGPT] | None = None,
) -> Adapter:
    """Reads an adapter for a model of this shape.

    Args:
        folder: of the adapter.
        config: the shape of the model.
        model_class: of the model; None for the one that belongs to the config.

    Raises:
        InputRefusedError: it is missing, damaged, of a kind that is not read, or for another
            shape; the message names file and key.
    """
    folder = Path(folder)
    path = folder / WEIGHTS_NAME
    if not path.exists() and (folder / PICKLE_NAME).exists():
        raise InputRefusedError(f"{folder / PICKLE_NAME}: a pickle; only safetensors are read")
    if folder.is_dir() and not (folder / CONFIG_NAME).exists():
        raise InputRefusedError(f"{folder}: no adapter: it has no {CONFIG_NAME}")
    for each in (folder / CONFIG_NAME, path):
        require_regular(each)
    refuse_foreign(path)
    table = parse_config(read_config_object(folder / CONFIG_NAME), str(folder / CONFIG_NAME))
    with _Weights(path) as weights:
        if isinstance(table, PromptTable):
            adapter = _read_prompt(weights, folder, table, config)
        else:
            shapes = linear_layers(config, model_class)
            adapter = _read_lora(weights, folder, table, config, shapes)
        weights.refuse_rest()
    return adapter


def _read_lora(
    weights: "_Weights", folder: Path, table: LoRATable, config: KoGPTConfig, shapes: LayerShapes
) -> Adapter:
    updates = {}
    for layer in table.layers(shapes):
        (N, K), r = shapes[layer], table.rank(layer)
        A = weights.take(f"{LORA_PREFIX}{layer}.lora_A.weight", (r, K))
        B = weights.take(f"{LORA_PREFIX}{layer}.lora_B.weight", (N, r))
        updates[layer] = Update(A, B, table.alpha(layer))
    head = weights.take_head(f"{LORA_PREFIX}{CLASSIFIER}", config) if table.has_head else None
    return Adapter(folder, updates, head=head, license=weights.license)


def _read_prompt(
    weights: "_Weights", folder: Path, table: PromptTable, config: KoGPTConfig
) -> Adapter:
    if table.tokens >= config.n_positions:
        raise InputRefusedError(
            f"{folder / CONFIG_NAME}: num_virtual_tokens is {table.tokens}, the context of the"
            f" model holds {config.n_positions}"
        )
    prompt = weights.take("prompt_embeddings", (table.tokens, config.n_embd))
    head = weights.take_head(f"{PROMPT_PREFIX}{CLASSIFIER}", config) if table.has_head else None
    return Adapter(folder, prompt=prompt, head=head, license=weights.license)


def linear_layers(config: KoGPTConfig, model_class: type[KoGPT] | None = None) -> LayerShapes:
    """All layers that can have an update, with (N, K), in network order."""
    layers = {}
    for name, shape in expand(config, model_class).items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and layer.rpartition(".")[2] in TARGETS:
            layers[layer] = (shape[0], shape[1])
    return layers


class _Weights:
    """The tensors of an adapter's file, each to be taken once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = SafetensorsFile(path)
        self.names = list(self._file.tensors)
        self.license = self._file.header.metadata.get("license")
        self._labels = self._file.header.metadata.get(LABELS)

    def __enter__(self) -> "_Weights":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor as float32, of that shape and finite."""
        found = self._shape(name)
        if found != shape:
            raise InputRefusedError(
                f"{self.path}: {name} has shape {list(found)}, the model and"
                f" {CONFIG_NAME} ask for {list(shape)}"
            )
        check_float(self._file.tensors[name].dtype, name, str(self.path))
        values = self._file.read(name).float()
        if not values.isfinite().all():
            raise InputRefusedError(f"{self.path}: {name} holds NaN or infinity")
        self.names.remove(name)
        return values

    def take_head(self, name: str, config: KoGPTConfig) -> StoredHead:
        """A head: as many outputs as there are."""
        outputs = max(1, next(iter(self._shape(name)), 1))
        weight = self.take(name, (outputs, config.n_embd))
        return StoredHead(weight, self._names_of(outputs))

    def _names_of(self, outputs: int) -> tuple[str, ...]:
        """The head's labels, which peft's files have no place for but the header of the weights."""
        if self._labels is None:
            return numbered_labels(outputs)
        try:
            labels = parse_json(self._labels)
        except ValueError:
            labels = None
        texts = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
        if not texts or len(labels) != outputs:
            raise InputRefusedError(
                f"{self.path}: {LABELS} in its header is {brief(self._labels)}, it must be a list"
                f" of {outputs} names"
            )
        return tuple(labels)

    def refuse_rest(self) -> None:
        """Refuses what was not asked for."""
        for name in self.names:
            raise InputRefusedError(
                f"{self.path}: {name} is no part of the adapter that {CONFIG_NAME} describes"
            )

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self._file.tensors:
            raise InputRefusedError(f"{self.path}: {name} is missing")
        return self._file.tensors[name].shape


def write_adapter(
    folder: str | os.PathLike[str],
    model: KoGPT,
    base: str | os.PathLike[str] | None = None,
    license_notice: str | None = None,
) -> None:
    """Writes what was attached to a model; `adapter_config.json` appears last.

    Args:
        folder: made if need be; of what is there, only the adapter's two files are replaced.
        model: with updates or a soft prompt, and a head or none.
        base: the checkpoint folder that the adapter belongs to; None for the model in the box.
        license_notice: of the adapter; None for that of the base.

    Raises:
        ValueError: the model has neither updates nor a prompt, or both: a file holds one kind; or
            several updates of one layer.
        KoGPTError: the folder cannot be written.
    """
    base = Path(BOX if base is None else base)
    notice = license_notice or license_of(base, model.config)
    write_adapter_content(Path(folder), adapter_content(model), base, notice)


class AdapterContent(NamedTuple):
    """What the two files of an adapter hold.

    Attributes:
        values: the keys of the config.
        tensors: by peft's names, float32 on the CPU.
        labels: of the head's outputs; None where there is no head.
    """

    values: dict[str, Any]
    tensors: dict[str, Tensor]
    labels: tuple[str, ...] | None = None


def write_adapter_content(
    folder: Path, content: AdapterContent, base: Path, license_notice: str
) -> None:
    """Writes what `adapter_content` gave; for its arguments and errors see `write_adapter`."""
    values, tensors, labels = content
    metadata = {"format": "pt", "license": license_notice}
    if labels is not None:
        metadata[LABELS] = json.dumps(labels, ensure_ascii=False)
    path = folder / CONFIG_NAME
    config = to_json({**values, "base_model_name_or_path": str(base)})
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        header = encode_header(
            ((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()),
            metadata,
        )
        weights = folder / WEIGHTS_NAME
        data = map(raw_bytes, tensors.values())
        with (
            written_beside(weights, header, *data) as new_weights,
            written_beside(path, config) as new_config,
        ):
            if path.exists() and path.read_bytes() != config:
                path.unlink()  # it would describe weights that are not its own
            put_in_place(new_weights, weights)
            put_in_place(new_config, path)


def adapter_content(model: KoGPT) -> AdapterContent:
    """What was attached to a model, ready to be written.

    Of a model that lies in parts on several processes, all of them must call this.

    Raises:
        ValueError: as `write_adapter`.
    """
    updates, prompt = dict(_updates(model)), prompt_embeddings(model)
    if bool(updates) == (prompt is not None):
        have = "both updates and a soft prompt" if updates else "neither updates nor a soft prompt"
        raise ParameterError(f"the model has {have}: an adapter's file holds one of them")
    head = head_of(model)
    if prompt is None:
        layers = list(linear_layers(model.config, type(model)))
        values = describe_lora(updates, layers, head is not None)
        tensors = {
            f"{LORA_PREFIX}{layer}.lora_{factor}.weight": getattr(update, f"lora_{factor}")
            for layer, update in updates.items()
            for factor in "AB"
        }
        prefix = LORA_PREFIX
    else:
        values = _describe_prompt(model, len(prompt), head is not None)
        tensors, prefix = {"prompt_embeddings": prompt}, PROMPT_PREFIX
    if head is not None:
        tensors[f"{prefix}{CLASSIFIER}"] = head.weight
    whole = {name: _whole(value) for name, value in tensors.items()}
    return AdapterContent(values, whole, None if head is None else head.labels)


def _whole(value: Tensor) -> Tensor:
    """A parameter as float32 on the CPU, gathered where each process has a part of it."""
    # By the method and not by the type, whose import takes half a second.
    gather = getattr(value.detach(), "full_tensor", value.detach)
    return gather().float().cpu()


def _updates(model: KoGPT) -> Iterator[tuple[str, LoRALinear]]:
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            if isinstance(module.base, LoRALinear):
                raise ParameterError(f"{name} has several updates: merge them, or write each alone")
            yield name, module


def _describe_prompt(model: KoGPT, tokens: int, has_head: bool) -> dict[str, Any]:
    table = model.transformer.wte
    assert isinstance(table, PromptedEmbedding), "there is a prompt"
    config, encoder = model.config, table.prompt
    if not isinstance(encoder, MLPPrompt | LSTMPrompt):
        return describe_prompt(PROMPT_TUNING, tokens, config, has_head)
    kind = "MLP" if isinstance(encoder, MLPPrompt) else "LSTM"
    inside = {"encoder_reparameterization_type": kind, "encoder_hidden_size": encoder.hidden}
    return {**describe_prompt(P_TUNING, tokens, config, has_head), **inside}
