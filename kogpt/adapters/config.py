"""What an adapter is made of, in numbers; and which parameters are an adapter's."""

import re
from dataclasses import dataclass
from numbers import Real

import torch
from torch import nn

from kogpt.errors import ParameterError
from kogpt.model import KoGPT
from kogpt.ranges import ABOVE_ZERO, AT_LEAST_ONE, Range, check_choice, set_number

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
        targets = (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)
        object.__setattr__(self, "targets", targets)
        for target in self.targets:
            if target not in TARGETS:
                raise ParameterError(f"targets names {target!r}, there are {', '.join(TARGETS)}")
        if not self.targets:
            raise ParameterError(f"targets is empty, there are {', '.join(TARGETS)}")
        set_number(self, "rank", AT_LEAST_ONE)
        set_number(self, "alpha", ABOVE_ZERO)
        set_number(self, "dropout", Range(Real, 0, 1, high_excluded=True))


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
        set_number(self, "tokens", AT_LEAST_ONE)
        check_choice("encoder", self.encoder, ENCODERS)
        if self.hidden is not None:
            set_number(self, "hidden", AT_LEAST_ONE)


def freeze(model: nn.Module) -> None:
    """Keeps all that was there before adapters and heads from being trained."""
    for name, parameter in model.named_parameters():
        if not ADDED.fullmatch(name):
            parameter.requires_grad_(False)


def stored_name(name: str) -> str:
    """A parameter's name in a checkpoint: adapters have the layers that they surround as `base`."""
    return re.sub(r"(\.base)+\.", ".", name)


def refuse_prepared(model: KoGPT) -> None:
    """Raises ValueError for a model that was loaded with `fast=True`, which has no such layers."""
    if not hasattr(model.transformer, "wte"):
        raise ParameterError(
            "a model prepared for decoding stays as it is: give `kogpt.load` its adapters"
        )


def home(model: KoGPT) -> torch.device:
    """Where what is added to a model goes: to the model's device.

    What is added to a model that is yet to get its values (on the meta device) has its own, on the
    CPU.
    """
    return torch.device("cpu") if model.device.type == "meta" else model.device
