"""Adapters that are not zero, as training would leave them."""

import torch

from kogpt.adapters import LoRAConfig, attach_lora
from kogpt.model import KoGPT


def trained_lora(model: KoGPT, config: LoRAConfig, seed: int = 3) -> None:
    """Puts updates in that differ from zero."""
    generator = torch.Generator().manual_seed(seed)
    attach_lora(model, config, generator)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            parameter.data.normal_(0.0, 0.2, generator=generator)
