"""Which examples a step learns from, and how they lie in the rows that the network reads.

Dimension key: `B` rows, `T` tokens in a row.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

Ids = Sequence[int]
T = TypeVar("T")

# Batches whose examples are sorted by length together: enough to waste little on padding, few
# enough to leave the order to chance.
SORTED_TOGETHER = 50


class RowPlan:
    """The rows of every step, a function of (seed, step), several epochs on.

    Every epoch has an order of its own, in which each example comes once. A row is one example, and
    examples of like length share a batch; or, where rows are packed, as many as fit.

    Attributes:
        batch_size: rows in a step; the last step of an epoch may have fewer.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, room: int | None = None
    ) -> None:
        """Plans.

        Args:
            lengths: of the examples.
            batch_size: rows in a step.
            seed: of the order.
            room: tokens in a row of several examples; one that is longer has a row of its own.
                None for one example in a row.
        """
        self.batch_size = batch_size
        self._lengths, self._seed, self._room = np.asarray(lengths), seed, room
        self._epochs: list[int] = []  # steps of each epoch that was looked at
        self._now: tuple[int, list[Sequence[list[int]]]] = -1, []

    def num_steps(self, epochs: float) -> int:
        """Steps in so many epochs, at least one."""
        whole, part = divmod(epochs, 1)
        steps = sum(self._steps_of(epoch) for epoch in range(int(whole)))
        return max(1, steps + (round(part * self._steps_of(int(whole))) if part else 0))

    def step(self, step: int) -> Sequence[list[int]]:
        """The examples of each row of a step, counted from 0."""
        epoch = 0
        while step >= self._steps_of(epoch):
            step -= self._steps_of(epoch)
            epoch += 1
        return self._epoch(epoch)[step]

    def _steps_of(self, epoch: int) -> int:
        if self._room is None:  # in each as many
            return -(-len(self._lengths) // self.batch_size)
        while len(self._epochs) <= epoch:
            self._epochs.append(len(self._epoch(len(self._epochs))))
        return self._epochs[epoch]

    def _epoch(self, epoch: int) -> list[Sequence[list[int]]]:
        """All steps of an epoch."""
        if self._now[0] != epoch:
            random = np.random.default_rng((self._seed, epoch))
            order = random.permutation(len(self._lengths)).tolist()
            steps = self._sorted(order, random) if self._room is None else self._packed(order)
            self._now = epoch, steps
        return self._now[1]

    def _sorted(self, order: list[int], random: np.random.Generator) -> list[Sequence[list[int]]]:
        """Batches of rows of one example, those of like length together."""
        steps: list[Sequence[list[int]]] = [
            [[example] for example in batch]
            for window in cut(order, self.batch_size * SORTED_TOGETHER)
            for batch in cut(sorted(window, key=self._lengths.__getitem__), self.batch_size)
        ]
        return [steps[i] for i in random.permutation(len(steps))]

    def _packed(self, order: list[int]) -> list[Sequence[list[int]]]:
        rows = list(_fill(order, self._lengths, self._room or 0))
        return list(cut(rows, self.batch_size))


def cut(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in order, `size` at a time, the last ones fewer."""
    return (items[first : first + size] for first in range(0, len(items), size))


def _fill(order: Sequence[int], lengths: np.ndarray, room: int) -> Iterator[list[int]]:
    """Rows of as many examples as fit, in order."""
    row: list[int] = []
    used = 0
    for example in order:
        if row and used + lengths[example] > room:
            yield row
            row, used = [], 0
        row.append(example)
        used += int(lengths[example])
    yield row


class Layout(NamedTuple):
    """Texts in rows.

    Attributes:
        input_ids: (B, T); what fills a row up is 0, and nothing sees it.
        starts: index of the first token of each token's text, (B, T); None where every row is one
            text.
        rows: the row of each text.
        firsts: the index of its first token.
    """

    input_ids: Tensor
    starts: Tensor | None
    rows: list[int]
    firsts: list[int]


def lay_out(rows: Sequence[Sequence[Ids]]) -> Layout:
    """Lays texts into rows, one after the other, filled up on the right."""
    width = max(sum(map(len, row)) for row in rows)
    input_ids = np.zeros((len(rows), width), dtype=np.int64)
    # What fills a row up sees itself alone, as a text of one token does.
    starts = np.tile(np.arange(width), (len(rows), 1))
    places, firsts = [], []
    for at, row in enumerate(rows):
        first = 0
        for text in row:
            input_ids[at, first : first + len(text)] = text
            starts[at, first : first + len(text)] = first
            places.append(at)
            firsts.append(first)
            first += len(text)
    several = any(len(row) > 1 for row in rows)
    kept = torch.from_numpy(starts) if several else None
    return Layout(torch.from_numpy(input_ids), kept, places, firsts)
