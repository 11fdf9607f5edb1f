"""A linear layer over weights as they are stored, 8 or 4 bits, that lets gradients through.

It is what low-rank updates are trained beside (QLoRA: Dettmers et al., arXiv 2305.14314). The
weights are never trained; the gradient is that of the input alone, and going back they are widened
anew, some outputs at a time. Both ways use the same widened numbers: the kernels that round the
input of many rows are for use, not for training.

Dimension key: `M` rows, `N` outputs, `K` inputs.
"""

from typing import Any

import torch
from torch import Tensor, nn

from kogpt.kernels.linear import Weight, linear_by_blocks, row_blocks, widened


class FrozenLinear(nn.Module):
    """Called as `nn.Linear`; its weights are no parameters, and in no state dict.

    Attributes:
        bias: (N,), or None.
    """

    def __init__(self, weight: Weight, bias: Tensor | None = None) -> None:
        super().__init__()
        for name, part in weight._asdict().items():
            self.register_buffer(name, part, persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.out_features, self.in_features = weight.shape

    @property
    def stored(self) -> Weight:
        """The matrix (N, K)."""
        return Weight(*(getattr(self, name) for name in Weight._fields))

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        y = _Product.apply(x.reshape(-1, x.size(-1)), self.bias, self.stored)
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.stored.bits}"


class _Product(torch.autograd.Function):
    """x Wᵀ + bias of rows (M, K), differentiable in x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: Weight) -> Tensor:
        # Kept as it is, not by `save_for_backward`: it is no activation, to be moved or recomputed.
        ctx.weight = weight
        with torch.autocast(x.device.type, enabled=False):
            return linear_by_blocks(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        with torch.autocast(grad.device.type, enabled=False):
            return product_by_blocks(grad, ctx.weight), None, None


def product_by_blocks(y: Tensor, weight: Weight) -> Tensor:
    """y W of rows (M, N), (M, K) in the dtype of `y`, the weights widened some at a time."""
    blocks = row_blocks(y, weight)
    if len(blocks) == 1:
        return y @ widened(y, weight)
    # Rounded are the products of a block; their sum is kept wide.
    x = y.new_zeros(len(y), weight.shape[1], dtype=torch.promote_types(y.dtype, torch.float32))
    for rows in blocks:
        x += y[:, rows] @ widened(y, weight.rows(rows))
    return x.to(y.dtype)
