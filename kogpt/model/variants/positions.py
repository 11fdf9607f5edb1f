"""Positions other than GPT-J's: learned ones, and rotation with the halves of a head as pairs."""

from torch import Tensor, nn

from kogpt.model.config import KoGPTConfig
from kogpt.model.rotary import RotaryEmbedding, Rotation
from kogpt.model.transformer import Block, Transformer


class LearnedPositions(Transformer):
    """Adds a learned vector of its position to each token (Vaswani et al. 2017, section 3.5)."""

    def __init__(self, config: KoGPTConfig, blocks: list[Block], rotary: nn.Module) -> None:
        super().__init__(config, blocks, rotary)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)

    def embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        return self.wte(input_ids) + self.wpe(positions)  # (B, T, C)


class HalfRotation(Rotation):
    """Pairs dim i with dim i + R/2, as GPT-NeoX and Llama do."""

    def rotate(self, x: Tensor) -> Tensor:
        pairs = x.unflatten(-1, (2, -1)).transpose(-1, -2)  # (B, T, H, R/2, 2)
        return self.turn(pairs).transpose(-1, -2).flatten(-2)


class HalfRotaryEmbedding(RotaryEmbedding):
    """A table of the same angles for those pairs."""

    rotation_class = HalfRotation
