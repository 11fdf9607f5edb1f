"""Attention whose four projections have biases, as in GPT-2 and GPT-NeoX."""

from torch import nn

from kogpt.model.config import KoGPTConfig
from kogpt.model.transformer import Attention


class BiasedAttention(Attention):
    """Multi-head causal self-attention with biases."""

    def __init__(self, config: KoGPTConfig, layer: int) -> None:
        super().__init__(config, layer)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.set_submodule(name, nn.Linear(config.n_embd, config.n_embd))
