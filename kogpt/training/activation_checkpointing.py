"""Trades time for memory: blocks forget their activations and compute them again for gradients."""

import ctypes
from functools import partial

from torch.utils.checkpoint import checkpoint

from kogpt.model import KoGPT

M_MMAP_THRESHOLD, THRESHOLD = -3, 1 << 20  # of malloc.h; bytes


def checkpoint_activations(model: KoGPT) -> None:
    """Makes every block of `model` keep only its input between forward and backward pass.

    Gradients stay equal. The network's code and its parameter names are untouched.
    """
    for block in model.transformer.h:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if model.device.type == "cpu":
        _give_memory_back()


def _give_memory_back() -> None:
    """Has large blocks of memory go back to the system as they are freed, in this whole process.

    Of itself glibc soon keeps blocks of up to 32 MiB in a heap, where those that come and go leave
    holes between those that stay: what was forgotten would be taken all the same.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, THRESHOLD)
