"""Rotary position embedding in GPT-J's form: interleaved pairs on the first dims of each head.

Source: Su et al., "RoFormer" (arXiv 2104.09864), section 3.4. GPT-J pairs neighbouring dims
(0, 1), (2, 3), ..., where GPT-NeoX and Llama pair dim i with dim i + R/2.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Rotation(NamedTuple):
    """The rotation that belongs to some positions; call it on queries and on keys.

    Attributes:
        cos: cosines of the angles, (B or 1, T, 1, R/2), float32.
        sin: sines of the same shape.
    """

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Rotates the first R dims of every head of `x` (B, T, H, D); the rest passes through.

        The arithmetic is at least float32; what returns has the dtype of `x`.
        """
        rotary_dim = 2 * self.cos.size(-1)
        if not rotary_dim:
            return x
        turned, rest = x.split((rotary_dim, x.size(-1) - rotary_dim), dim=-1)
        wide = turned.to(torch.promote_types(x.dtype, torch.float32))
        return torch.cat((self.rotate(wide).to(x.dtype), rest), dim=-1)

    def rotate(self, x: Tensor) -> Tensor:
        """Rotates all of `x` (B, T, H, R), neighbours being pairs; the place to pair others."""
        return self.turn(x.unflatten(-1, (-1, 2))).flatten(-2)

    def turn(self, pairs: Tensor) -> Tensor:
        """Rotates pairs (B, T, H, R/2, 2), of at least float32."""
        if torch.compiler.is_compiling():  # which makes no code of complex numbers
            even, odd = pairs.unbind(-1)
            return torch.stack(
                (even * self.cos - odd * self.sin, odd * self.cos + even * self.sin), dim=-1
            )
        # The same sums of products in one pass: a third of the time, the gradient's included.
        angles = torch.complex(self.cos, self.sin)
        return torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * angles)


class RotaryEmbedding(nn.Module):
    """Table of angles for every position; gives the `Rotation` of the positions asked for.

    The table is derived, so it is no part of the state dict, and it stays float32 when the model
    is cast: half precision cannot tell neighbouring positions apart beyond a few hundred.
    """

    rotation_class: type[Rotation] = Rotation
    table: Tensor  # (2, n_positions, R/2): cosines, sines

    def __init__(self, rotary_dim: int, n_positions: int, base: float = 10000.0) -> None:
        super().__init__()
        self.rotary_dim, self.n_positions, self.base = rotary_dim, n_positions, base
        self.register_buffer("table", self.angles(torch.empty(0).device), persistent=False)

    def angles(self, device: torch.device) -> Tensor:
        """The table, made anew wherever the model goes; the place to change it."""
        # The order of operations and the float32 of the reference, to the last bit. On a CPU, for
        # all devices alike.
        pairs = torch.arange(0, self.rotary_dim, 2, dtype=torch.float32, device="cpu")
        exponents = pairs / self.rotary_dim
        positions = torch.arange(self.n_positions, dtype=torch.float32, device="cpu")
        angles = positions[:, None] * (1.0 / self.base**exponents)
        return torch.stack((angles.cos(), angles.sin())).to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RotaryEmbedding":
        super()._apply(fn, recurse)
        # A cast would have rounded the table and `to_empty` left it blank: make it anew.
        self.table = self.angles(self.table.device)
        return self

    def forward(self, positions: Tensor) -> Rotation:
        """Rotation of `positions` (B or 1, T), each in [0, n_positions)."""
        cos, sin = self.table[:, positions].unsqueeze(-2)  # (B, T, 1, R/2) each
        return self.rotation_class(cos, sin)
