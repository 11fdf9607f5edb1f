"""Tiny models, and the many forms a checkpoint of one can take."""

import json
from pathlib import Path

import torch
from torch import Tensor

from kogpt.model import KoGPTConfig
from kogpt.model.variants import class_of

CONFIG = KoGPTConfig(
    vocab_size=97, n_positions=32, n_embd=16, n_layer=2, n_head=2, rotary_dim=4, n_inner=40
)


def tiny_state(config: KoGPTConfig = CONFIG, dtype: torch.dtype = torch.float32) -> dict:
    """The weights of a random model."""
    model = class_of(config)(config)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.2, generator=generator)
    return {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}


def released_state(config: KoGPTConfig = CONFIG, dtype: torch.dtype = torch.float16) -> dict:
    """A state dict as released: half precision, with masks that share one storage."""
    size = config.n_positions
    mask = torch.ones(size, size, dtype=torch.bool).tril().view(1, 1, size, size)
    state: dict[str, Tensor] = dict(tiny_state(config, dtype))
    for layer in range(config.n_layer):
        state[f"transformer.h.{layer}.attn.bias"] = mask
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e9)
    return state


def write_config(folder: Path, config: KoGPTConfig = CONFIG) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))


def write_released(folder: Path, state: dict | None = None) -> Path:
    """A folder in the layout of the release: config.json and one pytorch_model.bin."""
    write_config(folder)
    torch.save(released_state() if state is None else state, folder / "pytorch_model.bin")
    return folder
