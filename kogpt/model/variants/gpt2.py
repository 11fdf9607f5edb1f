"""GPT-2: attention and MLP one after the other, learned positions, a head that is the embedding.

SKT-AI's KoGPT2 is one. HyperCLOVA (Kim et al., arXiv 2109.04650) is GPT-3's network: this one, with
attention that is sparse in every other layer, and that here is dense.
Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from kogpt.errors import InputRefusedError
from kogpt.model.config import KoGPTConfig
from kogpt.model.transformer import KoGPT
from kogpt.model.variants.parts import (
    BiasedAttention,
    LearnedPositions,
    SequentialBlock,
    TiedHead,
)


@dataclass(frozen=True)
class GPT2Config(KoGPTConfig):
    """Sizes and probabilities of a GPT-2, by default those of KoGPT2 (125,164,032 parameters).

    The attributes are those of `KoGPTConfig`; nothing is rotated, so `rotary_dim` is 0.
    """

    model_type: ClassVar[str] = "kogpt-gpt2"
    released_type: ClassVar[str] = "gpt2"
    architecture: ClassVar[str] = "GPT2"
    fixed: ClassVar[Mapping[str, Any]] = {
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }
    absent: ClassVar[Mapping[str, Any]] = {"bos_token_id": None, "eos_token_id": None}

    vocab_size: int = 51200
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    rotary_dim: int | None = 0
    resid_pdrop: float = 0.1
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 1
    pad_token_id: int | None = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rotary_dim != 0:
            raise InputRefusedError(
                f"rotary_dim is {self.rotary_dim!r}, in a GPT-2 nothing rotates"
            )

    @property
    def num_parameters(self) -> int:
        C, F, V = self.n_embd, self.inner_dim, self.vocab_size
        attention, mlp, norm = 4 * (C * C + C), 2 * C * F + F + C, 2 * C
        return self.n_layer * (attention + mlp + 2 * norm) + (V + self.n_positions) * C + norm

    def to_released_dict(self) -> dict[str, Any]:
        kind = {"architectures": ["GPT2LMHeadModel"], "model_type": self.released_type}
        return {key: value for key, value in self.to_dict().items() if key != "rotary_dim"} | kind


class GPT2Block(SequentialBlock):
    """Attention with biases, then the MLP."""

    attention_class = BiasedAttention


class GPT2(KoGPT):
    """The language model of GPT-2."""

    config_class = GPT2Config
    transformer_class = LearnedPositions
    block_class = GPT2Block

    def make_head(self, config: KoGPTConfig) -> nn.Module:
        return TiedHead(self.transformer.wte)


PRESETS = {
    "kogpt2": GPT2Config(),
    # Shapes for work from scratch. Layers, width and heads are the paper's as it is quoted, which
    # is unverified; its vocabulary is told to be of about 100,000 pieces. So counted, "1.3B" has
    # 1.42e9 parameters, and the others have what they are called by.
    **{
        f"hyperclova-{name}": GPT2Config(
            vocab_size=100_000, n_positions=2048, n_layer=layers, n_embd=width, n_head=heads
        )
        for name, layers, width, heads in (
            ("1.3b", 24, 2048, 16),
            ("6.9b", 32, 4096, 32),
            ("13b", 40, 5120, 40),
            ("39b", 48, 8192, 64),
            ("82b", 64, 10240, 80),
        )
    },
}
