"""LoRA: a linear layer, and beside it a product of two narrow ones that is trained in its place.

Dimension key: `M` rows, `N` outputs, `K` inputs, `r` rank.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kogpt.adapters.config import LoRAConfig, freeze, home
from kogpt.errors import ParameterError
from kogpt.kernels import FrozenLinear
from kogpt.model import KoGPT

# Layers whose result is theirs alone, not kept for a gradient nor anywhere else.
GIVEN_AWAY = (nn.Linear, FrozenLinear)


class LoRALinear(nn.Module):
    """A layer and its update: base(x) + alpha / r B A dropout(x).

    The factors are float32 whatever the layer's dtype, so that small steps are not rounded away;
    they take part in a product in the dtype that the layer answers in, as under autocast.

    Attributes:
        base: the layer: any module that is called as a linear layer.
        lora_A: (r, K).
        lora_B: (N, r).
        alpha: numerator of the update's scale, which is alpha / rank.
    """

    def __init__(
        self, base: nn.Module, lora_A: Tensor, lora_B: Tensor, alpha: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(lora_A)
        self.lora_B = nn.Parameter(lora_B)
        self.alpha = alpha
        self.dropout = nn.Dropout(dropout)

    @property
    def rank(self) -> int:
        return self.lora_A.size(0)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)  # (M, K)
        y = self.base(rows)
        A, B = self.lora_A.to(y.dtype), self.lora_B.to(y.dtype)
        narrow = F.linear(self.dropout(rows.to(y.dtype)), A)  # (M, r)
        # The update is added where y lies, in the pass of the product, if nobody else holds it.
        add = y.addmm_ if type(self.base) in GIVEN_AWAY else y.addmm
        return add(narrow, B.T, alpha=self.scale).unflatten(0, x.shape[:-1])

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha:g}"


def attach_lora(model: KoGPT, config: LoRAConfig, generator: torch.Generator | None = None) -> None:
    """Puts updates beside the target layers of every block, and freezes all else.

    At first an update is zero: A is drawn as `nn.Linear` draws its weights, B is zeros.

    Args:
        model: changed in place.
        config: which layers, and how.
        generator: of a CPU; None for the global one.

    Raises:
        ValueError: a target is no layer of the model, whose class may be one's own, or no linear
            one.
    """
    for target in config.targets:
        if not any(target_layers(model, (target,))):
            raise ParameterError(
                f"targets names {target!r}, of which {type(model).__name__} has none"
            )
    freeze(model)
    for name, layer in list(target_layers(model, config.targets)):
        N, K = (getattr(layer, size, None) for size in ("out_features", "in_features"))
        if not isinstance(N, int) or not isinstance(K, int):
            raise ParameterError(
                f"targets names {name}, which is no linear layer: {type(layer).__name__}"
            )
        # Drawn on the CPU, so that a seed gives the same update on every device.
        A = torch.empty(config.rank, K, dtype=torch.float32, device="cpu")
        nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)
        B = A.new_zeros(N, config.rank, device=home(model))
        update = LoRALinear(layer, A.to(home(model)), B, config.alpha, config.dropout)
        model.set_submodule(name, update.train(model.training))


def target_layers(model: KoGPT, targets: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    """The layers of all blocks with such last names, by their names in the model, in its order."""
    for name, module in model.named_modules():
        if name.startswith("transformer.h.") and name.rpartition(".")[2] in targets:
            yield name, module
