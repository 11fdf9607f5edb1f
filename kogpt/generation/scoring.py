"""How probable a text is to the model: log-probabilities of given ids.

Dimension key: `B` rows, `T` columns of a chunk, `V` vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kogpt.errors import InputRefusedError
from kogpt.generation.requests import evaluation_mode, refuse_unreadable
from kogpt.generation.sample import TokenLogprob
from kogpt.model import KoGPT, KVCache
from kogpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Score:
    """How probable a text is.

    Over a corpus, add up `log_likelihood`, `num_tokens` and `num_bytes` and divide as here.

    Attributes:
        token_ids: what the model read, with the bos in front if it was asked for.
        logprobs: natural log-probability of each id, None for the first, before which nothing is.
        log_likelihood: the sum of these.
        num_tokens: how many ids that sum is over.
        num_bytes: how many UTF-8 bytes of the text those ids stand for.
        perplexity: exp(-log_likelihood / num_tokens).
        bits_per_byte: -log2 of the likelihood, per byte: comparable across tokenizers.
    """

    token_ids: list[int]
    logprobs: list[float | None]
    log_likelihood: float
    num_tokens: int
    num_bytes: int
    perplexity: float
    bits_per_byte: float


def score(
    model: KoGPT,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    bos: bool = True,
    batch_size: int = 8,
) -> list[Score]:
    """Scores texts under the model.

    Args:
        model: any model; dropout is off while this runs.
        tokenizer: its tokenizer.
        texts: the texts.
        bos: put the tokenizer's bos in front, if it has one, so that the first token of the text
            is scored as the others are. Without, it is only read.
        batch_size: texts the model reads at once. Scores do not depend on it.

    Returns:
        One score for each text, in order.

    Raises:
        InputRefusedError: a text is longer than the context (with both counts; nothing is cut),
            or leaves nothing to score.
    """
    bos = bos and tokenizer.bos_id is not None
    rows = [tokenizer.encode(text, bos=bos) for text in texts]
    for index, row in enumerate(rows):
        refuse_unreadable(row, f"text {index}", model, tokenizer)
        if len(row) < 2:
            raise InputRefusedError(f"text {index} is too short: it leaves no token to score")
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    logprobs: dict[int, list[TokenLogprob]] = {}
    with evaluation_mode(model):
        for first in range(0, len(rows), batch_size):
            chosen = by_length[first : first + batch_size]
            scored = sequence_logprobs(model, [rows[index] for index in chosen])
            logprobs.update(zip(chosen, scored, strict=True))
    return [
        _score(row, [item.logprob for item in logprobs[index]], tokenizer)
        for index, row in enumerate(rows)
    ]


def _score(row: list[int], logprobs: list[float], tokenizer: Tokenizer) -> Score:
    log_likelihood = math.fsum(logprobs)
    if row[0] == tokenizer.bos_id:
        num_bytes = len(tokenizer.decode(row).encode())
    else:  # what the first token stands for is not scored
        num_bytes = sum(len(tokenizer.token_bytes(id)) for id in row[1:])
    return Score(
        token_ids=row,
        logprobs=[None, *logprobs],
        log_likelihood=log_likelihood,
        num_tokens=len(logprobs),
        num_bytes=num_bytes,
        perplexity=math.exp(-log_likelihood / len(logprobs)),
        bits_per_byte=-log_likelihood / math.log(2) / num_bytes,
    )


@torch.inference_mode()
def sequence_logprobs(
    model: KoGPT, rows: Sequence[Sequence[int]], *, top: int = 0, chunk: int = 128
) -> list[list[TokenLogprob]]:
    """Log-probabilities of the ids of each row, from its second on, given those before them.

    Rows are padded on the right, where a causal model does not look.

    Args:
        model: the model, in evaluation mode.
        rows: at least one id each, none longer than the context.
        top: alternatives to report at each id.
        chunk: columns whose logits are held at once: B x chunk x V floats.
    """
    width = max(map(len, rows))
    padded = [[*row, *[row[0]] * (width - len(row))] for row in rows]
    ids = torch.tensor(padded, device=model.device)
    results: list[list[TokenLogprob]] = [[] for _ in rows]
    cache = KVCache(width)
    for columns, targets in zip(
        ids[:, :-1].split(chunk, dim=1), ids[:, 1:].split(chunk, dim=1), strict=True
    ):
        logits = model(columns, cache)  # (B, T, V)
        found = token_logprobs(logits.flatten(0, 1), targets.flatten(), top)
        T = targets.size(1)
        for index, row in enumerate(rows):
            room = len(row) - 1 - len(results[index])
            results[index] += found[index * T : index * T + min(T, room)]
    return results


def token_logprobs(logits: Tensor, ids: Tensor, top: int) -> list[TokenLogprob]:
    """Log-probabilities of `ids` (N,) under `logits` (N, V), with the `top` best alternatives."""
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(-1, ids[:, None]).squeeze(-1).tolist()
    best, best_ids = logprobs.topk(min(top, logprobs.size(-1)))
    tops = [
        dict(zip(row_ids, row, strict=True))
        for row_ids, row in zip(best_ids.tolist(), best.tolist(), strict=True)
    ]
    return list(map(TokenLogprob, chosen, tops))
