"""What all rows begin with is read once: virtual tokens cost a row's worth, not a batch's.

    virtual tokens, one row  <-  text of row 1
                             <-  text of row 2
                                 ...

Exact but for the order of sums, gradients too. It pays where texts are short: 20 virtual tokens
before 17 of a review are more than half of what would else be computed.

Dimension key: `B` rows, `T` tokens in a row, `n` of them virtual.
"""

import torch
from torch import Tensor, nn

from kogpt.adapters.prompt import real_ids_alone
from kogpt.model import KoGPT, KVCache
from kogpt.model.source import change

HOMES = ("kogpt.", "torch.nn.")


def hidden_states(model: KoGPT, inputs: Tensor, starts: Tensor | None = None) -> Tensor:
    """What `model.transformer` makes of rows (B, T, C), with gradients.

    Args:
        model: with or without a soft prompt.
        inputs: (B, T); rows that are one text begin with the model's `prefix_ids`.
        starts: as for `KoGPT.forward`.
    """
    n, rows = len(model.prefix_ids), len(inputs)
    # Virtual tokens in the midst of a row are not shared, and each row has a dropout of its own.
    shared = n > 0 and rows > 1 and starts is None and not _drops(model)
    # Processes that gather each other's weights must take as many passes, whatever rows they have.
    gathers = hasattr(model, "unshard")
    if not shared or gathers or inputs.size(1) == n:
        return model.transformer(inputs, starts=starts)
    prefix = _Prefix(n)
    try:
        first = model.transformer(inputs[:1, :n], prefix)
        with real_ids_alone(model):
            rest = model.transformer(inputs[:, n:], _Behind(prefix))
    except _ReadsStateError:
        return model.transformer(inputs, starts=starts)
    return torch.cat((first.expand(rows, -1, -1), rest), dim=1)


@torch.compiler.assume_constant_result  # else torch.compile would trace how files are read
def is_unchanged() -> bool:
    """Whether the network of this package is as it was released."""
    return change() is None


def _drops(model: KoGPT) -> bool:
    """Whether rows differ by chance; what a class of one's own draws, nobody knows."""
    if not model.training:
        return False
    known = all(type(module).__module__.startswith(HOMES) for module in model.modules())
    if not (known and is_unchanged()):
        return True
    modules = (module.p for module in model.modules() if isinstance(module, nn.Dropout))
    return max(model.config.attn_pdrop, *modules, 0.0) > 0


class _ReadsStateError(Exception):
    """A layer of one's own asks for what is held in other ways than by appending to it."""


class _Computed(KVCache):
    """Has no buffers and no states, as no gradient goes through one."""

    def buffers(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        raise _ReadsStateError

    def state(self, layer: int, like: Tensor) -> Tensor:
        raise _ReadsStateError


class _Prefix(_Computed):
    """Keys and values of one row as they were computed."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        # Not for good: activation checkpointing computes a block, and this, a second time.
        self.layers[layer] = k, v
        return k, v


class _Behind(_Computed):
    """What rows see that follow a prefix."""

    def __init__(self, prefix: _Prefix) -> None:
        super().__init__(prefix.capacity)
        self.length = prefix.length
        self._prefix = prefix

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        first_k, first_v = self._prefix.layers[layer]
        return _behind(first_k, k), _behind(first_v, v)


def _behind(first: Tensor, x: Tensor) -> Tensor:
    """(1, n, H, D) and (B, T - n, H, D) -> (B, T, H, D)."""
    return torch.cat((first.expand(len(x), -1, -1, -1), x), dim=1)
