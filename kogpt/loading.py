"""A model and its tokenizer in one call."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from kogpt.checkpoint import load_model
from kogpt.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    import torch

    from kogpt.model import KoGPT


def load(
    path: str | PathLike[str] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    *,
    fast: bool = False,
) -> tuple[KoGPT, Tokenizer]:
    """Loads the model and the tokenizer of one folder.

    Args:
        path: a folder with a checkpoint and its tokenizer; None for the model in the box.
        dtype: dtype to compute in; None for the one stored, or float32 where that is float16
            and the device a CPU.
        device: where the model goes; None for the CPU.
        fast: the model prepared for decoding (`kogpt.fast`): the same function, some times as fast,
            and weights stay as they are stored, in 16, 8 or 4 bits. Not to train or take apart.

    Returns:
        The model, in evaluation mode, and the tokenizer.

    Raises:
        InputRefusedError: a file is missing, damaged, or of a kind that cannot be used.
        NotEnoughResourcesError: the memory does not hold the model.
    """
    if fast:
        from kogpt.fast import load_fast

        return load_fast(path, dtype=dtype, device=device), load_tokenizer(path)
    return load_model(path, dtype=dtype, device=device), load_tokenizer(path)
