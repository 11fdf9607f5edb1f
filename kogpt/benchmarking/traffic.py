"""The bytes that memory must deliver for a token, whatever computes it."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kogpt.fast import FastKoGPT
from kogpt.model import KoGPT, KVCache


def streamed_bytes(model: KoGPT) -> int:
    """Bytes of weights read for one token: all but tables, of which a token is one row."""
    return sum(weight.nbytes for weight in streamed(model))


def streamed(model: KoGPT) -> Iterator[Tensor]:
    """The weights that are read whole for one token."""
    if isinstance(model, FastKoGPT):
        return model.streamed()
    tables = (module.weight for module in model.modules() if isinstance(module, nn.Embedding))
    looked_up = set(tables) - set(model.lm_head.parameters())
    return (weight for weight in model.parameters() if weight not in looked_up)


def cache_bytes(model: KoGPT) -> int:
    """Bytes of the keys and values of one token, as the model keeps them."""
    if isinstance(model, FastKoGPT):
        return 2 * model.config.n_layer * model.config.n_embd * model.dtype.itemsize
    cache = KVCache(1)
    with torch.inference_mode():
        model(torch.zeros(1, 1, dtype=torch.long, device=model.device), cache)
    return cache.nbytes


def step_bytes(model: KoGPT, batch: int, prompt_tokens: int, new_tokens: int) -> float:
    """Bytes that a decoding step reads, the mean over the steps after the first new token.

    Step k of these, 1 to new_tokens - 1, reads `prompt_tokens` + k keys and values of each row: the
    sum over k divided by their number is prompt_tokens + new_tokens / 2.
    """
    length = prompt_tokens + new_tokens / 2
    row = model.config.n_embd * model.dtype.itemsize  # of the embedding
    return streamed_bytes(model) + batch * (row + cache_bytes(model) * length)
