"""KoGPT: the GPT-J transformer, whole.

Read it from the bottom: `KoGPT` is a `Transformer` and a head, a `Transformer` is a stack of
`Block`s, and `Block.forward` is the architecture. Names of modules are those of the released
checkpoint, so a state dict is a checkpoint.

Dimension key, used throughout: `B` batch, `T` new tokens, `S` cached + new tokens, `H` heads,
`D` head dim, `C` n_embd, `F` inner dim, `R` rotary dim, `V` vocabulary.
"""

from collections.abc import Sequence
from functools import partial
from os import PathLike
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from kogpt.kernels import attention
from kogpt.model.cache import KVCache
from kogpt.model.config import KoGPTConfig
from kogpt.model.rotary import RotaryEmbedding, Rotation


class Attention(nn.Module):
    """Multi-head causal self-attention with rotary positions and no biases."""

    def __init__(self, config: KoGPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.attn_pdrop = config.attn_pdrop
        self.q_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.k_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.v_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.out_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self, x: Tensor, rotate: Rotation, cache: KVCache | None, starts: Tensor | None
    ) -> Tensor:
        q, k, v = map(self.split_heads, (self.q_proj(x), self.k_proj(x), self.v_proj(x)))
        q, k = rotate(q), rotate(k)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, S, H, D)
        out = self.attend(q, k, v, starts)  # (B, T, H, D)
        return self.resid_dropout(self.out_proj(out.flatten(2)))  # (B, T, C)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))  # (B, T, H, D)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> Tensor:
        """Mixes values by attention; the place to put another kind of attention."""
        dropout_p = self.attn_pdrop if self.training else 0.0
        return attention(q, k, v, starts=starts, dropout_p=dropout_p)


class MLP(nn.Module):
    """Two linear layers with biases around a tanh-approximated GELU."""

    def __init__(self, config: KoGPTConfig) -> None:
        super().__init__()
        self.fc_in = nn.Linear(config.n_embd, config.inner_dim)
        self.fc_out = nn.Linear(config.inner_dim, config.n_embd)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.fc_in(x), approximate="tanh")  # (B, T, F)
        return self.dropout(self.fc_out(hidden))  # (B, T, C)


class Block(nn.Module):
    """Attention and MLP side by side, both reading one LayerNorm: the parallel residual."""

    attention_class: type[nn.Module] = Attention
    mlp_class: type[nn.Module] = MLP
    norm_class: type[nn.Module] = nn.LayerNorm

    def __init__(self, config: KoGPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = self.norm_class(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = self.attention_class(config, layer)
        self.mlp = self.mlp_class(config)

    def forward(
        self, x: Tensor, rotate: Rotation, cache: KVCache | None, starts: Tensor | None
    ) -> Tensor:
        normed = self.ln_1(x)
        return x + self.attn(normed, rotate, cache, starts) + self.mlp(normed)  # (B, T, C)


class Transformer(nn.Module):
    """Token embedding, blocks and the final norm: ids in, hidden states out."""

    def __init__(self, config: KoGPTConfig, blocks: list[Block], rotary: nn.Module) -> None:
        super().__init__()
        self.n_positions = config.n_positions
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(blocks)
        self.ln_f = blocks[0].norm_class(config.n_embd, eps=config.layer_norm_epsilon)
        self.rotary = rotary

    def forward(
        self, input_ids: Tensor, cache: KVCache | None = None, starts: Tensor | None = None
    ) -> Tensor:
        """Hidden states (B, T, C) of `input_ids`; the arguments are those of `KoGPT.forward`."""
        positions = self.positions(input_ids, cache, starts)
        rotate = self.rotary(positions)
        x = self.drop(self.embed(input_ids, positions))  # (B, T, C)
        for block in self.h:
            x = block(x, rotate, cache, starts)
        if cache is not None:
            cache.advance(input_ids.size(1))
        return self.ln_f(x)

    def embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """What the first block reads, (B, T, C); the place to add what depends on positions."""
        return self.wte(input_ids)

    def positions(self, input_ids: Tensor, cache: KVCache | None, starts: Tensor | None) -> Tensor:
        """Position of each new token in its own text, (B or 1, T); padding counts as position 0.

        Raises:
            ValueError: the last position is beyond the context of the model.
        """
        first = 0 if cache is None else cache.length
        last = first + input_ids.size(1)
        if last > self.n_positions:
            raise ValueError(f"{last} tokens exceed the model's context of {self.n_positions}")
        positions = torch.arange(first, last, device=input_ids.device)[None]  # (1, T)
        if starts is None:
            return positions
        return (positions - starts.view(starts.size(0), -1)).clamp(min=0)  # (B, T)


class KoGPT(nn.Module):
    """The language model: a transformer and an untied output head with a bias.

    A new model holds random weights in float32 on the CPU. Wrap the constructor in
    `torch.device("meta")` for the shapes alone.

    To change the architecture, subclass: `Block` names its attention, MLP and norm classes,
    this class its block, its transformer, its positions and its head.
    """

    config_class: type[KoGPTConfig] = KoGPTConfig
    transformer_class: type[Transformer] = Transformer
    block_class: type[Block] = Block
    # What every text begins with, before its own ids: the virtual tokens of a soft prompt.
    prefix_ids: Sequence[int] = ()

    def __init__(self, config: KoGPTConfig) -> None:
        super().__init__()
        self.config = config
        blocks = [self.block_class(config, layer) for layer in range(config.n_layer)]
        self.transformer = self.transformer_class(config, blocks, self.make_rotary(config))
        self.lm_head = self.make_head(config)
        with torch.no_grad():
            self.init_weights()

    @staticmethod
    def make_rotary(config: KoGPTConfig) -> nn.Module:
        """The module that turns positions into what blocks apply to queries and keys."""
        return RotaryEmbedding(config.rotary_width, config.n_positions)

    def make_head(self, config: KoGPTConfig) -> nn.Module:
        """The module that turns hidden states into scores of all tokens."""
        return nn.Linear(config.n_embd, config.vocab_size)

    def forward(
        self, input_ids: Tensor, cache: KVCache | None = None, starts: Tensor | None = None
    ) -> Tensor:
        """Logits for the token after each of `input_ids`.

        Args:
            input_ids: token ids (B, T), int64.
            cache: keys and values of the tokens before these, extended by these in place.
                None where nothing came before and nothing follows.
            starts: for rows padded on the left, the index of each row's first real token,
                counted with what the cache holds, (B,). For several texts in a row, one after the
                other, the index of the first token of each token's text, (B, T): no text sees
                another. None where every row is one text.

        Returns:
            Logits (B, T, V), float32 (float64 in a float64 model).

        Raises:
            ValueError: more tokens than the model's `n_positions`, or than the cache holds.
        """
        return self.logits(self.transformer(input_ids, cache, starts))

    def logits(self, hidden: Tensor) -> Tensor:
        """The head on its own, (..., C) -> (..., V): generation needs only the last position."""
        logits = self.lm_head(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @property
    def device(self) -> torch.device:
        """Where the weights are, and where ids must be."""
        return self.transformer.wte.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in, and kept in the cache."""
        return self.transformer.wte.weight.dtype

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draws new weights: normal(0, initializer_range), biases 0, norms as they reset.

        Whatever parts drew when they were made; a class of one's own draws others after this.
        """
        std, norm = self.config.initializer_range, self.block_class.norm_class
        norm_type = norm.func if isinstance(norm, partial) else norm
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                weight = module.weight.normal_(0.0, std, generator=generator)
                if is_parametrized(module, "weight"):  # computed from what this sets
                    module.weight = weight
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            if isinstance(module, norm_type):
                getattr(module, "reset_parameters", lambda: None)()  # torch's to the identity

    @classmethod
    def from_pretrained(
        cls,
        path: str | PathLike[str] | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | int | None = None,
    ) -> Self:
        """Loads a checkpoint folder into this class; see `kogpt.load_model`, which this calls."""
        from kogpt.checkpoint import load_model  # the network itself depends on no file format

        return load_model(path, dtype=dtype, device=device, model_class=cls)
