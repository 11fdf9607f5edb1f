"""A head on hidden states: numbers for a text instead of the next token."""

import os

import torch
from torch import Tensor, nn

from kogpt.adapters.config import home
from kogpt.checkpoint import load_model, open_checkpoint
from kogpt.checkpoint.names import CLASSIFIER
from kogpt.errors import InputRefusedError, ParameterError
from kogpt.model import KoGPT
from kogpt.ranges import AT_LEAST_ONE


def attach_head(model: KoGPT, outputs: int, generator: torch.Generator | None = None) -> None:
    """Gives the model `score`, a linear layer (outputs, C) without bias, float32.

    The name and the form are those of transformers' `GPTJForSequenceClassification`, which reads
    the hidden state of a text's last token. New weights are normal(0, initializer_range).

    Args:
        model: changed in place; what is trained of it stays as it is.
        outputs: classes; 1 for a number.
        generator: of a CPU; None for the global one.

    Raises:
        ValueError: `outputs` is below 1, or there is a head.
    """
    AT_LEAST_ONE.check("outputs", outputs)
    weight = torch.empty(outputs, model.config.n_embd, dtype=torch.float32, device="cpu")
    put_head(model, weight.normal_(0.0, model.config.initializer_range, generator=generator))


def put_head(model: KoGPT, weight: Tensor) -> None:
    """Gives the model a head with these weights (outputs, C).

    Raises:
        ValueError: there is one.
    """
    refuse_second_head(model)
    head = nn.Linear(weight.size(1), weight.size(0), bias=False, device="meta")
    head.weight = nn.Parameter(weight.to(home(model), torch.float32))
    model.add_module("score", head.train(model.training))


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
    head = read_head(path, model_class)
    if head is None:
        raise InputRefusedError(f"{path}: {CLASSIFIER} is missing: it has no head")
    put_head(model, head)
    return model


def read_head(
    path: str | os.PathLike[str], model_class: type[KoGPT] | None = None
) -> Tensor | None:
    """The head of a classifier (outputs, C) that lies in a checkpoint; None where there is none."""
    with open_checkpoint(path, model_class) as reader:
        return reader.read(CLASSIFIER) if CLASSIFIER in reader.ignored else None
