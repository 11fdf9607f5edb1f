"""Logits processors: what changes a model's logits before a token is drawn from them.

Each function takes logits (B, V) and returns new ones; a banned token has -inf. `constrain`
and `warp` in `LogitsProcessor` are the one place that says which come when.

Dimension key: `B` rows, `L` columns of ids, `V` vocabulary.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from kogpt.generation.params import SamplingParams
from kogpt.generation.vocabulary import BannedWords, Vocabulary

BANNED = -math.inf
SMALL = 1024  # tokens that are found sooner than all tokens are sorted


class History(NamedTuple):
    """What the rows of a batch have read so far.

    Attributes:
        ids: (B, L), padded on the left with the first id of each row, so that padding adds
            nothing to the set of ids a row has seen.
        starts: index of each row's first real id, (B,); None where there is no padding.
        generated: how many of the last columns were generated.
    """

    ids: Tensor
    starts: Tensor | None
    generated: int

    def select(self, rows: Tensor) -> "History":
        """The history of `rows` (B',) alone."""
        starts = None if self.starts is None else self.starts[rows]
        return History(self.ids[rows], starts, self.generated)

    def append(self, ids: Tensor) -> "History":
        """The history once a column of ids (B,) has been generated."""
        columns = torch.cat((self.ids, ids[:, None]), dim=1)
        return History(columns, self.starts, self.generated + 1)


def repetition_penalty(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Makes ids (B, L) that occurred less likely (penalty > 1) or more.

    Source: Keskar et al., "CTRL" (arXiv 1909.05858), section 4.1, with negative logits multiplied.
    """
    seen = logits.gather(1, ids)
    return logits.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def presence_penalty(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Subtracts the penalty once from every id in `ids` (B, L)."""
    return logits.scatter(1, ids, logits.gather(1, ids) - penalty)


def frequency_penalty(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Subtracts the penalty from every id in `ids` (B, L) as often as it is there."""
    return logits.scatter_add(1, ids, logits.new_full((), -penalty).expand_as(ids))


def no_repeat_ngram(logits: Tensor, ids: Tensor, starts: Tensor | None, size: int) -> Tensor:
    """Bans each id that would repeat a sequence of `size` ids that is in its row already.

    Source: Paulus et al. (arXiv 1705.04304), for trigrams.
    """
    if ids.size(1) < size:
        return logits
    ngrams = ids.unfold(1, size, 1)  # (B, W, size)
    tail = ids[:, ids.size(1) - size + 1 :]  # (B, size - 1)
    repeats = (ngrams[..., :-1] == tail[:, None]).all(-1)  # (B, W)
    if starts is not None:
        repeats &= torch.arange(repeats.size(1), device=ids.device) >= starts[:, None]
    ceiling = torch.where(repeats, BANNED, math.inf).to(logits.dtype)
    return logits.scatter_reduce(1, ngrams[..., -1], ceiling, reduce="amin")


def temperature(logits: Tensor, value: float) -> Tensor:
    """Divides the logits, moved so that the largest is 0: no temperature above 0 gives NaN."""
    shifted = logits - logits.amax(-1, keepdim=True)
    return shifted / max(value, torch.finfo(logits.dtype).tiny)


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keeps the k most probable tokens, and those exactly as probable as the k-th.

    Source: Fan et al. (arXiv 1805.04833).
    """
    smallest = logits.topk(min(k, logits.size(-1))).values[..., -1:]
    return logits.masked_fill(logits < smallest, BANNED)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the fewest tokens, most probable first, whose mass reaches p: the nucleus.

    Of tokens exactly as probable, those with lower ids go first.

    Source: Holtzman et al. (arXiv 1904.09751), section 3.1.
    """
    return _keep_mass(logits, logits, p)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keeps tokens at least p times as probable as the most probable one.

    Source: Nguyen et al. (arXiv 2407.01082).
    """
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), BANNED)


def typical_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the fewest tokens, those of most typical information first, whose mass reaches p.

    The information of a typical token is near its expectation, the entropy.

    Source: Meister et al. (arXiv 2202.00666).
    """
    logprobs = logits.log_softmax(-1)
    entropy = torch.special.entr(logprobs.exp()).sum(-1, keepdim=True)
    surprise = (-logprobs - entropy).abs()
    return _keep_mass(logits, -surprise, p)


def _keep_mass(logits: Tensor, rank: Tensor, p: float) -> Tensor:
    """Keeps the fewest tokens, those of highest rank (B, V) first, whose mass reaches p.

    Of tokens of the same rank, those with lower ids go first.
    """
    if logits.device.type == "cpu" and (kept := _keep_few(logits, rank, p)) is not None:
        return kept
    order = rank.argsort(dim=-1, descending=True, stable=True)
    late = _mass_before(logits, order) >= p
    dropped = torch.empty_like(order, dtype=torch.bool).scatter_(-1, order, late)
    return logits.masked_fill(dropped, BANNED)


def _keep_few(logits: Tensor, rank: Tensor, p: float) -> Tensor | None:
    """What `_keep_mass` gives where no row keeps more than SMALL tokens; None where one does.

    For a CPU: it branches on values, for which one would have to wait for a GPU.
    """
    ids = rank.topk(min(SMALL, rank.size(-1))).indices.sort(dim=-1).values  # (B, n)
    ranks, order = rank.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    kept = _mass_before(logits, ids.gather(-1, order)) < p
    count = kept.sum(-1, keepdim=True).clamp(min=1)  # 0 where a row is NaN
    lowest = ranks.gather(-1, count - 1)
    # Of tokens ranked as the last of these, `topk` takes any.
    if ids.size(-1) < rank.size(-1) and (lowest == ranks[:, -1:]).any():
        return None
    equal = rank == lowest
    room = count - (ranks > lowest).sum(-1, keepdim=True)
    dropped = (rank < lowest) | (equal & (equal.cumsum(-1) > room))
    return logits.masked_fill(dropped, BANNED)


def _mass_before(logits: Tensor, ids: Tensor) -> Tensor:
    """For each of some ids (B, n), the probability of those that come before it in the row."""
    probs = logits.softmax(-1).gather(-1, ids).double()
    return probs.cumsum(-1) - probs


class LogitsProcessor:
    """The processors that some parameters ask for, in their order.

    Attributes:
        params: the parameters.
        end_ids: ids that end a generation: the tokenizer's, if it has any, and `stop_ids`.
    """

    def __init__(
        self,
        params: SamplingParams,
        vocabulary: Vocabulary,
        vocab_size: int,
        ends: Iterable[int],
        device: torch.device,
    ) -> None:
        self.params = params
        self.end_ids = {*params.stop_ids, *ends}
        self._ends = torch.tensor(sorted(self.end_ids), dtype=torch.long, device=device)
        self._words = BannedWords(params.banned_words, vocabulary) if params.banned_words else None
        self._bias = self._fixed_bias(vocabulary, vocab_size, device)

    def constrain(self, logits: Tensor, history: History) -> Tensor:
        """Logits (B, V) after bias, penalties and bans: what beam search and greedy go by."""
        p = self.params
        ids, starts, generated = history
        new_ids = ids[:, ids.size(1) - generated :]
        if self._bias is not None:
            logits = logits + self._bias
        if p.repetition_penalty != 1:
            logits = repetition_penalty(logits, ids, p.repetition_penalty)
        if p.presence_penalty:
            logits = presence_penalty(logits, new_ids, p.presence_penalty)
        if p.frequency_penalty:
            logits = frequency_penalty(logits, new_ids, p.frequency_penalty)
        if generated < p.min_new_tokens:
            logits = logits.index_fill(1, self._ends, BANNED)
        if p.no_repeat_ngram_size:
            logits = no_repeat_ngram(logits, ids, starts, p.no_repeat_ngram_size)
        if self._words is not None:
            logits = self._ban_words(self._words, logits, ids, starts)
        return logits

    def warp(self, logits: Tensor) -> Tensor:
        """Logits (B, V) of the distribution to draw from, of what `constrain` left."""
        p = self.params
        if p.temperature != 1:
            logits = temperature(logits, p.temperature)
        if p.top_k:
            logits = top_k(logits, p.top_k)
        if p.top_p < 1:
            logits = top_p(logits, p.top_p)
        if p.min_p:
            logits = min_p(logits, p.min_p)
        if p.typical_p < 1:
            logits = typical_p(logits, p.typical_p)
        return logits

    def _fixed_bias(
        self, vocabulary: Vocabulary, vocab_size: int, device: torch.device
    ) -> Tensor | None:
        """All that is added at every step: the bias asked for, and -inf for what is never emitted.

        Returns:
            (V,), or None where nothing is added.
        """
        banned = vocabulary.without_piece(vocab_size)
        if self._words is not None:
            banned = banned + self._words.always
        biases = {**self.params.logit_bias, **dict.fromkeys(banned, BANNED)}
        if not biases:
            return None
        bias = torch.zeros(vocab_size, dtype=torch.float32, device="cpu")
        bias[list(biases)] = bias.new_tensor(list(biases.values()))
        return bias.to(device)

    @staticmethod
    def _ban_words(
        words: BannedWords, logits: Tensor, ids: Tensor, starts: Tensor | None
    ) -> Tensor:
        first = [0] * len(ids) if starts is None else starts.tolist()
        banned = torch.zeros_like(logits, dtype=torch.bool)
        for row, row_ids in enumerate(ids.tolist()):
            if completing := words.completing(row_ids[first[row] :]):
                banned[row, list(completing)] = True
        return logits.masked_fill(banned, BANNED)
