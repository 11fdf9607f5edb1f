"""Trades time for memory: blocks forget their activations and compute them again for gradients."""

from functools import partial

from torch.utils.checkpoint import checkpoint

from kogpt.model import KoGPT
from kogpt.training.pages import give_memory_back


def checkpoint_activations(model: KoGPT) -> None:
    """Makes every block of `model` keep only its input between forward and backward pass.

    Gradients stay equal. The network's code and its parameter names are untouched.
    """
    for block in model.transformer.h:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if model.device.type == "cpu":
        give_memory_back()
