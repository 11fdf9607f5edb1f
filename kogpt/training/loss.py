"""The next-token loss, and held-out bits per byte."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kogpt.generation.requests import evaluation_mode
from kogpt.model import KoGPT
from kogpt.training.cross_entropy import NO_TARGET, chunk_rows, chunked_cross_entropy
from kogpt.training.data import EncodedDocuments
from kogpt.training.shared_prefix import HOMES, hidden_states, is_unchanged

TOKENS_AT_ONCE = 4096


def next_token_loss(
    model: KoGPT, inputs: Tensor, targets: Tensor, starts: Tensor | None = None
) -> Tensor:
    """Summed cross entropy of `targets` (B, T) after `inputs` (B, T), in nats, float32.

    Targets of -100 do not count, and their rows do not reach the head. `inputs` and `starts` are as
    for `hidden_states`.
    """
    hidden = hidden_states(model, inputs, starts)  # (B, T, C)
    rows, tokens = chunk_rows(model.config.vocab_size), hidden.flatten(0, 1)
    parameters = _parameters_of_logits(model) if torch.is_grad_enabled() else ()
    return chunked_cross_entropy(tokens, model.logits, targets.flatten(), rows, parameters)


def _parameters_of_logits(model: KoGPT) -> Iterable[Tensor]:
    """Those of the head, or all that a `logits` or a head of one's own may use."""
    parts = type(model).logits, type(model.lm_head)
    known = is_unchanged() and all(part.__module__.startswith(HOMES) for part in parts)
    return (model.lm_head if known else model).parameters()


@dataclass(frozen=True)
class HeldOutScore:
    """How well a model predicts documents.

    Attributes:
        loss: nats per token, the end of the document among them, its begin not.
        bits_per_byte: the same bits, over the UTF-8 bytes of the text alone.
        documents: number of documents.
        tokens: number of tokens predicted.
        text_bytes: number of bytes.
    """

    loss: float
    bits_per_byte: float
    documents: int
    tokens: int
    text_bytes: int


@torch.no_grad()
def score_documents(
    model: KoGPT, documents: EncodedDocuments, *, precision: str = "float32"
) -> HeldOutScore:
    """Scores every document on its own, from its begin to its end.

    A document longer than the context is cut, and each cut costs context but no token: every
    token but the first is predicted exactly once.
    """
    device, total, tokens = model.device, 0.0, 0
    with evaluation_mode(model):
        for inputs, targets in _batches(documents, model.config.n_positions):
            with autocast(model, precision):
                total += next_token_loss(model, inputs.to(device), targets.to(device)).item()
            tokens += int((targets != NO_TARGET).sum())
    text_bytes = int(documents.text_bytes.sum())
    bits = total / math.log(2) / text_bytes
    return HeldOutScore(total / tokens, bits, len(documents), tokens, text_bytes)


def autocast(model: KoGPT, precision: str) -> torch.autocast:
    """Autocast to bfloat16 of float32 weights, if so asked; bfloat16 weights need none."""
    asked = precision == "bfloat16" and model.dtype == torch.float32
    return torch.autocast(model.device.type, torch.bfloat16, enabled=asked)


def _batches(documents: EncodedDocuments, n_positions: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets (B, T), documents of like length together, padded on the right."""
    pieces = [
        document[start : start + n_positions + 1].astype(np.int64)
        for document in (documents[index] for index in range(len(documents)))
        for start in range(0, len(document) - 1, n_positions)
    ]
    pieces.sort(key=len)
    while pieces:
        # The longest come first: if memory does not suffice, it shows at once.
        T = len(pieces[-1]) - 1
        rows = pieces[-max(1, TOKENS_AT_ONCE // T) :]
        del pieces[-len(rows) :]
        batch = torch.full((len(rows), T + 1), NO_TARGET)
        for row, piece in zip(batch, rows, strict=True):
            row[: len(piece)] = torch.from_numpy(piece)
        yield batch[:, :-1].clamp(min=0), batch[:, 1:]
