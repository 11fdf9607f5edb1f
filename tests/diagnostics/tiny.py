"""Small random models of nano's vocabulary."""

import torch

from kogpt.model import KoGPT, KoGPTConfig


def tiny(kind: type[KoGPT] = KoGPT, **changes: int) -> KoGPT:
    """A random model of nano's vocabulary, with probabilities far from uniform."""
    sizes = dict(n_positions=32, n_embd=32, n_layer=3, n_head=4, rotary_dim=4, n_inner=40)
    config = KoGPTConfig(vocab_size=8000, attn_pdrop=0.0, embd_pdrop=0.0, **{**sizes, **changes})
    torch.manual_seed(0)
    model = kind(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False)
