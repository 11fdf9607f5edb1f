"""What an adapter is made of, in numbers; and which parameters are an adapter's."""

import re
from dataclasses import dataclass
from math import isfinite

import torch
from torch import nn

from kogpt.model import KoGPT

TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out")
ENCODERS = ("none", "mlp", "lstm")

# Names of parameters that adapters and heads add to a model, as `named_parameters` gives them. What
# they wrap keeps its released name but for one part: `q_proj.base.weight`, `wte.base.weight`.
ADDED = re.compile(r".*\.lora_[AB]|transformer\.wte\.(base\.)*prompt\..*|score\.weight")


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank updates of linear layers: W x + alpha / rank B A x (Hu et al., arXiv 2106.09685).

    Attributes:
        targets: which linear layers of every block, of `TARGETS`.
        rank: of the update.
        alpha: numerator of the update's scale, which is alpha / rank.
        dropout: of the update's input, in training.

    Raises:
        ValueError: a value is out of range.
    """

    targets: tuple[str, ...] = ("q_proj", "v_proj")
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.targets, str):
            object.__setattr__(self, "targets", (self.targets,))
        for target in self.targets:
            if target not in TARGETS:
                raise ValueError(f"targets names {target!r}, there are {', '.join(TARGETS)}")
        if not self.targets:
            raise ValueError(f"targets is empty, there are {', '.join(TARGETS)}")
        _check_count("rank", self.rank)
        if not (isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha is {self.alpha}, it must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, it must be 0 to less than 1")


@dataclass(frozen=True)
class PromptConfig:
    """Virtual tokens before every text: their embeddings are trained, and nothing else.

    Attributes:
        tokens: how many.
        encoder: "none" trains the embeddings themselves: prompt tuning (Lester et al., arXiv
            2104.08691). "mlp" and "lstm" train a network that computes them: p-tuning (Liu et al.,
            arXiv 2103.10385).
        hidden: width inside that network; None for the model's.

    Raises:
        ValueError: a value is out of range.
    """

    tokens: int = 20
    encoder: str = "none"
    hidden: int | None = None

    def __post_init__(self) -> None:
        _check_count("tokens", self.tokens)
        if self.encoder not in ENCODERS:
            raise ValueError(
                f"encoder is {self.encoder!r}, it must be one of {', '.join(ENCODERS)}"
            )
        if self.hidden is not None:
            _check_count("hidden", self.hidden)


def freeze(model: nn.Module) -> None:
    """Keeps all that was there before adapters and heads from being trained."""
    for name, parameter in model.named_parameters():
        if not ADDED.fullmatch(name):
            parameter.requires_grad_(False)


def refuse_prepared(model: KoGPT) -> None:
    """Raises ValueError for a model that was loaded with `fast=True`, which has no such layers."""
    if not hasattr(model.transformer, "wte"):
        raise ValueError(
            "a model prepared for decoding stays as it is: give `kogpt.load` its adapters"
        )


def home(model: KoGPT) -> torch.device:
    """Where what is added to a model goes: to the model's device.

    What is added to a model that is yet to get its values (on the meta device) has its own, on the
    CPU.
    """
    return torch.device("cpu") if model.device.type == "meta" else model.device


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}, it must be a whole number of at least 1")
