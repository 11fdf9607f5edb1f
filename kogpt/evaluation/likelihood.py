"""How probable each of several continuations of a context is, with shared tokens read once.

Few-shot prompts share nearly everything: all rows the shots, the candidates of a row its text. What
is shared is found in the ids themselves, so no border between texts has to be a border between
tokens:

    shots, instruction | text of the row | what the candidates share | what they do not
    prefix: once       | stem: once a row                            | branch: once a candidate

Rows whose stems are equally long are read together, so nothing is padded and a branch can follow
any stem in the cache.

Dimension key: `B` rows, `T` columns, `C` width, `V` vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from kogpt.checkpoint.resources import require_memory
from kogpt.errors import ParameterError
from kogpt.generation.requests import read
from kogpt.generation.scoring import refuse_unusable
from kogpt.model import KoGPT, KVCache
from kogpt.ranges import AT_LEAST_ONE, Range

Ids = tuple[int, ...]

PREFILL = 512  # tokens of a prefix read at once
LOGITS = 256  # positions whose logits are held at once, each V doubles


@dataclass(frozen=True)
class Query:
    """A context and continuations of it, in ids; the context holds one at least."""

    context: Ids
    continuations: tuple[Ids, ...]

    @cached_property
    def stem(self) -> Ids:
        """The context and what all continuations begin with, short of any one's last id."""
        shortest = min(map(len, self.continuations))
        return self.context + common_start(self.continuations)[: max(0, shortest - 1)]

    @cached_property
    def branches(self) -> tuple[Ids, ...]:
        """What is left of each continuation."""
        shared = len(self.stem) - len(self.context)
        return tuple(continuation[shared:] for continuation in self.continuations)

    @property
    def num_read(self) -> int:
        """Ids that the cache must hold: a last one is predicted, but not read."""
        return len(self.stem) + max(1, *map(len, self.branches)) - 1


class Likelihood(NamedTuple):
    """How probable a continuation is.

    Attributes:
        value: the sum of its ids' natural log-probabilities.
        greedy: whether each of them is the likeliest there.
    """

    value: float
    greedy: bool


def common_start(rows: Sequence[Ids]) -> Ids:
    """The longest start that all rows share."""
    low, high = min(rows), max(rows)  # all others lie between them
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[:length]


def plan_batches(queries: Sequence[Query], batch_size: int) -> list[list[int]]:
    """Which queries are read together: those of equal lengths, the longest first.

    The plan depends on nothing but the queries and `batch_size`, so that numbers are the same to
    the bit whichever process computes a batch, and whatever was computed before.
    """

    def lengths(index: int) -> tuple[int, int]:
        return len(queries[index].stem), len(queries[index].context)

    order = sorted(range(len(queries)), key=lengths, reverse=True)
    batches = []
    for _, group in groupby(order, lengths):
        alike = list(group)
        batches += [alike[i : i + batch_size] for i in range(0, len(alike), batch_size)]
    return batches


def log_likelihoods(
    model: KoGPT, queries: Sequence[Query], batch_size: int = 32
) -> list[list[Likelihood]]:
    """Likelihoods of all continuations of all queries, in their order.

    Args:
        model: any model, in evaluation mode.
        queries: none longer than the context of the model.
        batch_size: queries read at once. The cache holds that many copies of the shared prefix.

    Raises:
        ValueError: a query has no context or no continuation, or ids that the model has not.
    """
    AT_LEAST_ONE.check("batch_size", batch_size)
    ids, virtual = Range(Integral, 0, model.config.vocab_size - 1), set(model.prefix_ids)
    for index, query in enumerate(queries):
        if not query.context or not query.continuations:
            what = "continuation" if query.context else "context"
            raise ParameterError(f"query {index} has no {what}")
        asked = (set(query.context) - virtual).union(*query.continuations)
        for id in (min(asked, default=0), max(asked, default=0)):
            ids.check(f"an id of query {index}", id)
    results: list[list[Likelihood]] = [[] for _ in queries]
    if not queries:
        return results
    reader = SharedReader(model, queries, batch_size)
    for batch in plan_batches(queries, batch_size):
        for index, found in zip(batch, reader.read([queries[i] for i in batch]), strict=True):
            results[index] = found
    return results


class SharedReader:
    """Reads queries whose contexts begin alike; that beginning is read once, here.

    Attributes:
        prefix: the ids that all contexts begin with, short of the last id of the shortest one,
            which has to be read again for what it predicts.
    """

    def __init__(self, model: KoGPT, queries: Sequence[Query], batch_size: int) -> None:
        self.model = model
        shortest = min(len(query.context) for query in queries)
        self.prefix = common_start([query.context for query in queries])[: shortest - 1]
        self._rows = batch_size
        self._capacity = max(query.num_read for query in queries)
        self._caches: dict[int, KVCache] = {}

    @torch.inference_mode()
    def read(self, batch: Sequence[Query]) -> list[list[Likelihood]]:
        """Likelihoods of queries whose contexts and stems are each equally long."""
        cache = self._cache(len(batch))
        prefix_end = cache.mark()
        start, known = len(batch[0].context), len(self.prefix)
        hidden = self._hidden([query.stem[known:] for query in batch], cache)
        hidden = hidden[:, start - 1 - known :]  # what predicts the ids after the contexts
        shared = self._judge(hidden[:, :-1], [query.stem[start:] for query in batch])
        stem_end = cache.mark()
        results: list[list[Likelihood]] = [[] for _ in batch]
        for place in range(max(len(query.continuations) for query in batch)):
            branches = [query.branches[place : place + 1] for query in batch]
            ids = [branch[0] if branch else () for branch in branches]
            judged = self._branch(hidden[:, -1:], ids, cache)
            cache.go_back(stem_end)
            for row, branch in enumerate(branches):
                if branch:
                    results[row].append(_sum(shared[row] + judged[row]))
        cache.go_back(prefix_end)
        return results

    def _branch(
        self, last: Tensor, branches: Sequence[Ids], cache: KVCache
    ) -> list[list[Likelihood]]:
        """Each id of a branch for each row; `last` (B, 1, C) predicts the first of each."""
        length = max(map(len, branches)) - 1  # the last id of a branch predicts nothing
        if length < 1:
            return self._judge(last, branches)
        # Padding is read after all that counts, and forgotten with it.
        padded = [(*branch[:length], *[0] * (length - len(branch))) for branch in branches]
        return self._judge(torch.cat((last, self._hidden(padded, cache)), dim=1), branches)

    def _hidden(self, rows: Sequence[Ids], cache: KVCache) -> Tensor:
        """Hidden states (B, T, C) of rows of equal lengths."""
        return read(self.model, torch.tensor(rows, device=self.model.device), cache)

    def _judge(self, hidden: Tensor, rows: Sequence[Ids]) -> list[list[Likelihood]]:
        """How likely each id of each row is; `hidden` (B, T, C) predicts T of them at most."""
        predicting = [(b, t) for b, row in enumerate(rows) for t in range(len(row))]
        judged: list[Likelihood] = []
        for first in range(0, len(predicting), LOGITS):
            places = predicting[first : first + LOGITS]
            at = torch.tensor(places, device=hidden.device).unbind(1)
            ids = torch.tensor([rows[b][t] for b, t in places], device=hidden.device)
            logits = self.model.logits(hidden[at]).double()  # (places, V)
            chosen = logits.gather(1, ids[:, None]).squeeze(1)
            values = chosen - logits.logsumexp(1)
            refuse_unusable(values)
            judged += map(Likelihood, values.tolist(), (chosen == logits.amax(1)).tolist())
        found = iter(judged)
        return [list(islice(found, len(row))) for row in rows]

    def _cache(self, rows: int) -> KVCache:
        """A cache of so many rows that holds the prefix.

        One for each size of batch, all in the same memory, so that what was recorded for a cache on
        a GPU serves again.
        """
        if not self.prefix:  # there is nothing to share, and buffers are made as they are needed
            return KVCache(self._capacity)
        if rows not in self._caches:
            self._caches[rows] = self._prefilled.first(rows)
        return self._caches[rows]

    @cached_property
    def _prefilled(self) -> KVCache:
        """The prefix, read once and copied for each row of a batch."""
        cache = KVCache(self._capacity)
        for ids in torch.tensor([self.prefix], device=self.model.device).split(PREFILL, dim=1):
            read(self.model, ids, cache)
        needed = self._rows * cache.nbytes
        require_memory(self.model.device, needed, f"the cache of a batch of {self._rows} rows")
        return cache.select(torch.zeros(self._rows, dtype=torch.long, device=self.model.device))


def _sum(parts: Sequence[Likelihood]) -> Likelihood:
    return Likelihood(math.fsum(part.value for part in parts), all(part.greedy for part in parts))
