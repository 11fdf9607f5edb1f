"""Parts that differ from GPT-J's, for other blocks to be made of."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from kogpt.model.cache import KVCache
from kogpt.model.config import KoGPTConfig
from kogpt.model.rotary import RotaryEmbedding, Rotation
from kogpt.model.transformer import Attention, Block, Transformer


class BiasedAttention(Attention):
    """Attention whose four projections have biases."""

    def __init__(self, config: KoGPTConfig, layer: int) -> None:
        super().__init__(config, layer)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.set_submodule(name, nn.Linear(config.n_embd, config.n_embd))


class TwoNormBlock(Block):
    """Attention and MLP side by side, each behind a norm of its own."""

    def __init__(self, config: KoGPTConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.ln_2 = self.norm_class(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(
        self, x: Tensor, rotate: Rotation, cache: KVCache | None, starts: Tensor | None
    ) -> Tensor:
        return x + self.attn(self.ln_1(x), rotate, cache, starts) + self.mlp(self.ln_2(x))


class SequentialBlock(TwoNormBlock):
    """First attention, then the MLP, which reads what attention has added."""

    def forward(
        self, x: Tensor, rotate: Rotation, cache: KVCache | None, starts: Tensor | None
    ) -> Tensor:
        x = x + self.attn(self.ln_1(x), rotate, cache, starts)
        return x + self.mlp(self.ln_2(x))  # (B, T, C)


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


class TiedHead(nn.Module):
    """An output head whose weights are the embedding's; a state dict has none of its own."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self._embedding = (embedding,)  # in a tuple: a module would be named twice

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The embedding's, for those who train the head; the model has them once all the same."""
        return self._embedding[0].parameters(recurse)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self._embedding[0].weight)
