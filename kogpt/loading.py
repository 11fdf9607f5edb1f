"""A model and its tokenizer in one call."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, TypeVar, overload

from kogpt.box import BOX
from kogpt.checkpoint import load_model, open_checkpoint
from kogpt.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    import torch

    from kogpt.model import KoGPT


M = TypeVar("M", bound="KoGPT")


@overload
def load(
    path: str | PathLike[str] | None = ...,
    dtype: str | torch.dtype | None = ...,
    device: str | int | torch.device | None = ...,
    *,
    fast: bool = ...,
    adapter: str | PathLike[str] | Sequence[str | PathLike[str]] | None = ...,
    model_class: None = None,
) -> tuple[KoGPT, Tokenizer]: ...
@overload
def load(
    path: str | PathLike[str] | None = ...,
    dtype: str | torch.dtype | None = ...,
    device: str | int | torch.device | None = ...,
    *,
    fast: bool = ...,
    adapter: str | PathLike[str] | Sequence[str | PathLike[str]] | None = ...,
    model_class: type[M],
) -> tuple[M, Tokenizer]: ...
def load(
    path: str | PathLike[str] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | int | torch.device | None = None,
    *,
    fast: bool = False,
    adapter: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    model_class: type[KoGPT] | None = None,
) -> tuple[KoGPT, Tokenizer]:
    """Loads the model and the tokenizer of one folder.

    Args:
        path: a folder with a checkpoint and its tokenizer; None for the model in the box.
        dtype: to compute in; None for the one stored, or float32 where that is float16 and the
            device a CPU.
        device: where the model goes, a number for that GPU; None for the CPU.
        fast: the model prepared for decoding (`kogpt.fast`): the same function, several times as
            fast; weights stay as they are stored, in 16, 8 or 4 bits, or are packed without loss.
            Not to train or take apart. Classes of one's own have no such form: a `model_class`
            comes as without.
        adapter: folder of an adapter of the model, or of several: updates add up, soft prompts
            follow one another, the head of a classifier becomes `model.score`. None for none.
        model_class: a subclass of `KoGPT` to load into; None for the class that belongs to the
            folder's `model_type`.

    Returns:
        The model, in evaluation mode, and the tokenizer.

    Raises:
        ValueError: `dtype` is none that weights come in.
        InputRefusedError: a file is missing, damaged, or of a kind that cannot be used.
        NotEnoughResourcesError: the memory does not hold the model.
    """
    adapters = () if adapter is None else adapter
    with open_checkpoint(BOX if path is None else path, model_class):
        tokenizer = load_tokenizer(path)  # what is wrong with it is soon known, before all weights
    if fast and model_class is None:
        from kogpt.fast import load_fast

        model = load_fast(path, dtype=dtype, device=device, adapters=adapters)
    else:
        from kogpt.adapters import load_adapters

        model = load_model(path, dtype=dtype, device=device, model_class=model_class)
        load_adapters(model, adapters)
    return model, tokenizer
