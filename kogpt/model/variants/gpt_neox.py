"""GPT-NeoX: GPT-J's parallel block with a norm for each branch, biases and halves that rotate.

EleutherAI's Polyglot-Ko models are such. Source: Black et al. (arXiv 2204.06745), section 2.1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor, nn
from torch.nn import functional as F

from kogpt.errors import InputRefusedError
from kogpt.model.config import KoGPTConfig, check_float
from kogpt.model.transformer import MLP, KoGPT
from kogpt.model.variants.parts import BiasedAttention, HalfRotaryEmbedding, TwoNormBlock

LEAST_BASE = 1e-6  # of the rotary frequencies


@dataclass(frozen=True)
class GPTNeoXConfig(KoGPTConfig):
    """Sizes and probabilities of a GPT-NeoX, by default Polyglot-Ko's (1,331,810,304 parameters).

    Attributes:
        rotary_base: base (theta) of the rotary frequencies. The others are those of `KoGPTConfig`.
    """

    model_type: ClassVar[str] = "kogpt-gpt-neox"
    released_type: ClassVar[str] = "gpt_neox"
    architecture: ClassVar[str] = "GPTNeoX"
    fixed: ClassVar[Mapping[str, Any]] = {
        "activation_function": "gelu",
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "attention_bias": True,
    }

    vocab_size: int = 30080
    n_embd: int = 2048
    n_layer: int = 24
    rotary_base: float = 10000.0
    attn_pdrop: float = 0.0
    embd_pdrop: float = 0.0
    eos_token_id: int | tuple[int, ...] | None = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_float("rotary_base", self.rotary_base, LEAST_BASE, 1e12)

    @property
    def num_parameters(self) -> int:
        C, F, V = self.n_embd, self.inner_dim, self.vocab_size
        attention, mlp, norm = 4 * (C * C + C), 2 * C * F + F + C, 2 * C
        return self.n_layer * (attention + mlp + 2 * norm) + 2 * V * C + norm

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads the keys of a `config.json`, of those released too."""
        if values.get("model_type") != cls.released_type:
            return super().from_dict(values)
        try:
            return super().from_dict(_our_keys(values))
        except InputRefusedError as error:
            name, _, rest = str(error).partition(" ")
            raise InputRefusedError(f"{THEIRS.get(name, name)} {rest}") from None

    def to_released_dict(self) -> dict[str, Any]:
        values = {THEIRS.get(key, key): value for key, value in self.to_dict().items()}
        values["intermediate_size"] = self.inner_dim
        share = self.rotary_width / self.head_dim
        exact = int(self.head_dim * share) == self.rotary_width  # not a dim less, by rounding
        values["rotary_pct"] = share if exact else math.nextafter(share, 1)
        values["rotary_emb_base"] = self.rotary_base
        kind = {"architectures": ["GPTNeoXForCausalLM"], "model_type": self.released_type}
        return {k: v for k, v in values.items() if k not in ("rotary_dim", "rotary_base")} | kind


# Of the released config.json, theirs -> ours.
KEYS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "layer_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function",
    "attention_dropout": "attn_pdrop",
    "hidden_dropout": "embd_pdrop",
}
THEIRS = {ours: theirs for theirs, ours in KEYS.items()}


def _our_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """A released config by our keys: the rotated share of a head as a number of dims."""
    ours = {KEYS.get(key, key): value for key, value in values.items()}
    rope = {"partial_rotary_factor": values.get("rotary_pct", 0.25)}
    rope |= {"rope_theta": values.get("rotary_emb_base", 10000)}
    for key in ("rope_scaling", "rope_parameters"):  # the older name first
        given = values.get(key) or {}
        if not isinstance(given, Mapping):
            raise InputRefusedError(f"{key} is {given!r}, it must be an object")
        if (kind := given.get("rope_type", given.get("type", "default"))) != "default":
            raise InputRefusedError(f"rope_type is {kind!r}, only 'default' is known")
        rope |= given
    if (older := values.get("rope_scaling")) and values.get("rope_parameters", older) != older:
        raise InputRefusedError("rope_scaling and rope_parameters differ")
    try:
        head_dim = ours["n_embd"] // ours["n_head"]
        ours["rotary_dim"] = int(head_dim * rope["partial_rotary_factor"])
        ours["rotary_base"] = rope["rope_theta"]
    except KeyError as error:
        raise InputRefusedError(f"{error.args[0]} is missing from the config") from None
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        raise InputRefusedError("the sizes or the rotation in the config are no numbers") from None
    if values.get("head_dim", head_dim) != head_dim:
        raise InputRefusedError(f"head_dim is {values['head_dim']!r}, only {head_dim} is known")
    return {"resid_pdrop": ours.get("embd_pdrop", 0.0), **ours}  # theirs has one for both


class GELUMLP(MLP):
    """The same two layers around the exact GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc_out(F.gelu(self.fc_in(x))))  # (B, T, C)


class GPTNeoXBlock(TwoNormBlock):
    """Attention with biases and the MLP, side by side."""

    attention_class = BiasedAttention
    mlp_class = GELUMLP


class GPTNeoX(KoGPT):
    """The language model of GPT-NeoX."""

    config_class = GPTNeoXConfig
    block_class = GPTNeoXBlock

    @staticmethod
    def make_rotary(config: KoGPTConfig) -> nn.Module:
        assert isinstance(config, GPTNeoXConfig)
        return HalfRotaryEmbedding(config.rotary_width, config.n_positions, config.rotary_base)

    def make_head(self, config: KoGPTConfig) -> nn.Module:
        return nn.Linear(config.n_embd, config.vocab_size, bias=False)


_POLYGLOT = GPTNeoXConfig()  # 1.3B, to whose sizes the others hold

PRESETS = {
    "polyglot-ko-1.3b": _POLYGLOT,
    "polyglot-ko-3.8b": replace(_POLYGLOT, n_layer=32, n_embd=3072, n_head=24),
    "polyglot-ko-5.8b": replace(_POLYGLOT, n_layer=28, n_embd=4096, n_head=16),
    "polyglot-ko-12.8b": replace(_POLYGLOT, n_layer=40, n_embd=5120, n_head=40),
}
