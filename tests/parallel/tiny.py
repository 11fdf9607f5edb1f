"""A tiny model for several processes."""

from pathlib import Path

import torch

from kogpt.checkpoint import write_checkpoint
from kogpt.model import KoGPT, KoGPTConfig
from kogpt.model.variants import GPT2Config, GPTNeoXConfig, class_of

CONFIG = KoGPTConfig(
    vocab_size=88,
    n_positions=32,
    n_embd=32,
    n_layer=2,
    n_head=4,
    rotary_dim=4,
    n_inner=72,
    attn_pdrop=0.0,
    embd_pdrop=0.0,
    resid_pdrop=0.0,
)

SIZES = {"vocab_size": 88, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}
QUIET = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
GPT2_CONFIG = GPT2Config(**SIZES, **QUIET)
NEOX_CONFIG = GPTNeoXConfig(**SIZES, **QUIET, rotary_dim=4)


def tiny_model(config: KoGPTConfig = CONFIG) -> KoGPT:
    """Random weights, biases and norms among them, the same in every process."""
    model = class_of(config)(config)
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.2, generator=generator)
    return model


def write_tiny(folder: Path, config: KoGPTConfig = CONFIG) -> Path:
    write_checkpoint(folder, config, tiny_model(config).state_dict())
    return folder


def some_ids(rows: int = 4, length: int = 12) -> torch.Tensor:
    return torch.randint(
        CONFIG.vocab_size, (rows, length), generator=torch.Generator().manual_seed(3)
    )
