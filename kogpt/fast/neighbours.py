"""Blocks of KoGPT's neighbours, prepared for decoding: what `kogpt/model/variants/` computes."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kogpt.fast.model import Attend, FastBlock, Linear, Norm


@dataclass
class FastTwoNormBlock(FastBlock):
    """Attention and MLP side by side, each behind a norm of its own: GPT-NeoX, in three products.

    Attributes:
        norm_2: ln_2.
        inner: fc_in; `enter` is q_proj, k_proj and v_proj alone.
        approximate: which GELU, as torch names it.
        order: dims of a head in the order in which neighbours are rotated together, (D,); None for
            as they are. Of q and k alike, so what they give together is the same.
    """

    norm_2: Norm
    inner: Linear
    approximate: str
    order: Tensor | None

    def __call__(self, x: Tensor, attend: Attend) -> Tensor:
        return self.leave(self.mix(x, attend), self.widen(x)).add_(x)

    def mix(self, x: Tensor, attend: Attend) -> Tensor:
        """What attention gives of x, before out_proj, (B, T, C)."""
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in self.enter(self.norm(x)))
        if self.order is not None:
            q, k = q.index_select(-1, self.order), k.index_select(-1, self.order)
        return attend(self.layer, q, k, v).flatten(2)

    def widen(self, x: Tensor) -> Tensor:
        """What the MLP gives of x, before fc_out, (B, T, F)."""
        return torch.ops.aten.gelu_(self.inner(self.norm_2(x)), approximate=self.approximate)

    def norms(self) -> Iterator[Norm]:
        yield from (self.norm, self.norm_2)

    def linears(self) -> Iterator[Linear]:
        yield from (*self.enter.linears, self.inner, *self.leave.linears)

    def has_chain(self, x: Tensor) -> bool:
        return False  # the kernels of a chain read one norm


@dataclass
class FastSequentialBlock(FastTwoNormBlock):
    """First attention, then the MLP, which reads what attention has added: GPT-2, in four.

    `leave` is out_proj and fc_out, each on its own; it is not called, which would add them up.
    """

    def __call__(self, x: Tensor, attend: Attend) -> Tensor:
        out_proj, fc_out = self.leave.linears
        x = out_proj(self.mix(x, attend)).add_(x)
        return fc_out(self.widen(x)).add_(x)
