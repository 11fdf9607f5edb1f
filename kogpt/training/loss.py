"""The next-token loss, and held-out bits per byte."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kogpt.model import KoGPT
from kogpt.training.cross_entropy import NO_TARGET, chunk_rows, chunked_cross_entropy
from kogpt.training.data import EncodedDocuments
from kogpt.training.shared_prefix import hidden_states

TOKENS_AT_ONCE = 4096


def next_token_loss(
    model: KoGPT, inputs: Tensor, targets: Tensor, starts: Tensor | None = None
) -> Tensor:
    """Summed cross entropy of `targets` (B, T) after `inputs` (B, T), in nats, float32.

    Targets of -100 do not count, and their rows do not reach the head. `inputs` and `starts` are as
    for `hidden_states`.
    """
    hidden = hidden_states(model, inputs, starts)  # (B, T, C)
    rows = chunk_rows(model.config.vocab_size)
    return chunked_cross_entropy(hidden.flatten(0, 1), model.lm_head, targets.flatten(), rows)


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
    device = model.device
    was_training, total, tokens = model.training, 0.0, 0
    model.eval()
    for inputs, targets in _batches(documents, model.config.n_positions):
        with autocast(model, precision):
            total += next_token_loss(model, inputs.to(device), targets.to(device)).item()
        tokens += int((targets != NO_TARGET).sum())
    model.train(was_training)
    text_bytes = int(documents.text_bytes.sum())
    bits = total / math.log(2) / text_bytes
    return HeldOutScore(total / tokens, bits, len(documents), tokens, text_bytes)


def autocast(model: KoGPT, precision: str) -> torch.autocast:
    """Matrix products in bfloat16, if so asked; where weights are, they are without further ado."""
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
