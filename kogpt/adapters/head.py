"""A head on hidden states: numbers for a text instead of the next token."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kogpt.adapters.config import home
from kogpt.checkpoint import load_model, open_checkpoint
from kogpt.checkpoint.names import CLASSIFIER, numbered_labels
from kogpt.checkpoint.reader import CheckpointReader
from kogpt.errors import InputRefusedError, ParameterError
from kogpt.jsonfiles import read_config_object
from kogpt.model import KoGPT
from kogpt.ranges import AT_LEAST_ONE


class StoredHead(NamedTuple):
    """A head as files hold it.

    Attributes:
        weight: (outputs, C), float32.
        labels: names of the outputs.
    """

    weight: Tensor
    labels: tuple[str, ...]


class Head(nn.Linear):
    """A linear layer (outputs, C) without bias, float32.

    Attributes:
        labels: names of the outputs; one output is a number and not a class.
    """

    def __init__(self, weight: Tensor, labels: Sequence[str]) -> None:
        outputs, width = weight.shape
        super().__init__(width, outputs, bias=False, device="meta")
        self.weight, self.labels = nn.Parameter(weight.float()), tuple(labels)


def attach_head(
    model: KoGPT,
    outputs: int,
    generator: torch.Generator | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Gives the model `score`, a linear layer (outputs, C) without bias, float32.

    The name and the form are those of transformers' `GPTJForSequenceClassification`, which reads
    the hidden state of a text's last token. New weights are normal(0, initializer_range).

    Args:
        model: changed in place; what is trained of it stays as it is.
        outputs: classes; 1 for a number.
        generator: of a CPU; None for the global one.
        labels: names of the outputs; None numbers them.

    Raises:
        ValueError: `outputs` is below 1, there are other than one label for each, or there is a
            head.
    """
    AT_LEAST_ONE.check("outputs", outputs)
    weight = torch.empty(outputs, model.config.n_embd, dtype=torch.float32, device="cpu")
    weight.normal_(0.0, model.config.initializer_range, generator=generator)
    labels = numbered_labels(outputs) if labels is None else tuple(labels)
    if len(labels) != outputs:
        raise ParameterError(f"there are {len(labels)} labels, the head has {outputs} outputs")
    put_head(model, StoredHead(weight, labels))


def put_head(model: KoGPT, stored: StoredHead) -> None:
    """Gives the model a head.

    Raises:
        ValueError: there is one.
    """
    refuse_second_head(model)
    head = Head(stored.weight.to(home(model)), stored.labels)
    model.add_module("score", head.train(model.training))


def head_of(model: KoGPT) -> Head | None:
    """The head of a model, if it has one."""
    head = getattr(model, "score", None)
    return head if isinstance(head, Head) else None


def refuse_second_head(model: KoGPT) -> None:
    """Raises ValueError if there is a head."""
    if hasattr(model, "score"):
        raise ParameterError("the model has a head already")


def load_classifier(
    path: str | os.PathLike[str],
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    *,
    model_class: type[KoGPT] | None = None,
) -> KoGPT:
    """Loads a checkpoint with the head of a classifier beside it, as `model.score`.

    Args: as for `kogpt.load_model`.

    Raises:
        InputRefusedError: there is no head; or what `kogpt.load_model` refuses.
    """
    model = load_model(path, dtype, device, model_class=model_class)
    load_head(model, path, model_class)
    return model


def load_head(
    model: KoGPT, path: str | os.PathLike[str], model_class: type[KoGPT] | None = None
) -> None:
    """Gives the model the head that lies in its checkpoint.

    Raises:
        InputRefusedError: there is none.
    """
    stored = read_head(path, model_class)
    if stored is None:
        raise InputRefusedError(f"{path}: {CLASSIFIER} is missing: it has no head")
    put_head(model, stored)


def read_head(
    path: str | os.PathLike[str], model_class: type[KoGPT] | None = None
) -> StoredHead | None:
    """The head of a classifier that lies in a checkpoint; None where there is none."""
    with open_checkpoint(path, model_class) as reader:
        return head_in(reader)


def head_in(reader: CheckpointReader) -> StoredHead | None:
    """The same of a checkpoint that is open."""
    if CLASSIFIER not in reader.ignored:
        return None
    weight = reader.read(CLASSIFIER)
    values = read_config_object(reader.folder / "config.json")
    return StoredHead(weight, labels_in(values, len(weight)))


def labels_in(values: Mapping[str, Any], outputs: int) -> tuple[str, ...]:
    """The names of so many outputs in a `config.json`; numbers where it names others."""
    names = values.get("id2label")
    if isinstance(names, dict) and names.keys() == set(map(str, range(outputs))):
        labels = [names[str(i)] for i in range(outputs)]
        if all(isinstance(label, str) for label in labels):
            return tuple(labels)
    return numbered_labels(outputs)
