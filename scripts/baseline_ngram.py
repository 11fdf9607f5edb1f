"""An n-gram model with interpolated modified Kneser-Ney smoothing, to compare a network with.

Works on documents of whole numbers, be they bytes, characters or pieces of a vocabulary. Source:
Chen & Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (1998), section
3 and 4.1; n-grams at the start of a document keep their plain counts, as in Heafield et al.,
"Scalable Modified Kneser-Ney Language Model Estimation" (2013), section 3.2.

Every n-gram that occurs gets a number at each order: that of (its first n-1 symbols, its last).
A model is then a few sorted arrays, and both counting and lookup are array operations.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

BEGIN, END, UNKNOWN = 0, 1, 2  # symbols of a text start at 3


@dataclass
class Order:
    """The n-grams of one order.

    Attributes:
        codes: sorted `context * symbols + last symbol`, where `context` numbers the n-gram of
            the order below that comes before the last symbol. The place in here is the number.
        weight: discounted share of each n-gram among those with its context.
        rest: for each context, what the discounts leave to the order below.
    """

    codes: np.ndarray
    weight: np.ndarray
    rest: np.ndarray


class NGramModel:
    """Probability of each symbol after the n-1 before it."""

    def __init__(self, documents: Iterable[np.ndarray], symbols: int, order: int = 5) -> None:
        """Counts.

        Args:
            documents: symbols from 3 to `symbols` - 1.
            symbols: size of the alphabet, the three special symbols among them.
            order: n.
        """
        self.symbols = symbols
        self._pad = np.full(order - 1, BEGIN)
        text = self._lay_out(documents)
        predicted = text != BEGIN
        levels = _number(text, symbols, order)
        self.orders = []
        for n, (codes, ids, first) in enumerate(levels, start=1):
            counts = np.bincount(ids[predicted], minlength=len(codes))
            if n < order:
                # How many different symbols come before it; a plain count where a document
                # begins, since there only the beginning can come before.
                above, above_ids = levels[n][2], levels[n][1][predicted]
                seen = np.unique(above_ids)
                different = np.bincount(ids[above[seen]], minlength=len(codes))
                begins = text[np.maximum(first - n + 1, 0)] == BEGIN
                counts = np.where(begins, counts, different)
            contexts = codes // symbols
            size = len(levels[n - 2][0]) if n > 1 else 1
            self.orders.append(Order(codes, *_discounted(counts, contexts, size)))

    def bits(self, documents: Iterable[np.ndarray]) -> float:
        """Bits needed for the documents, their ends among them."""
        text = self._lay_out(documents)
        probability = np.full(len(text), 1 / (self.symbols - 1))  # never a begin
        context = np.zeros(len(text), dtype=np.int64)
        for level in self.orders:
            known = context >= 0
            code = context * self.symbols + text
            place = np.minimum(np.searchsorted(level.codes, code), len(level.codes) - 1)
            found = known & (level.codes[place] == code)
            rest = np.where(known, level.rest[context], 1.0)
            probability = probability * rest + np.where(found, level.weight[place], 0.0)
            context = np.concatenate(([-1], np.where(found, place, -1)[:-1]))
        return float(-np.log2(probability[text != BEGIN]).sum())

    def _lay_out(self, documents: Iterable[np.ndarray]) -> np.ndarray:
        return np.concatenate([part for doc in documents for part in (self._pad, doc, [END])])


def _number(
    text: np.ndarray, symbols: int, order: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each order: the codes, the number of the n-gram that ends at each position, and a
    position at which each number occurs."""
    levels = []
    ids = np.zeros(len(text), dtype=np.int64)
    for _ in range(order):
        codes, first, ids = np.unique(ids * symbols + text, return_index=True, return_inverse=True)
        levels.append((codes, ids, first))
        ids = np.concatenate(([0], ids[:-1]))
    return levels


def _discounted(
    counts: np.ndarray, contexts: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the n-grams after discounting, and what each of `size` contexts has left."""
    n1, n2, n3, n4 = (max(1, np.count_nonzero(counts == k)) for k in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    discounts = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    discount = np.clip(discounts, 0, [0, 1, 2, 3])[np.minimum(counts, 3)]
    total = np.maximum(np.bincount(contexts, counts, size), 1)
    given_up = np.bincount(contexts, discount, size)
    unseen = np.bincount(contexts, counts, size) == 0
    return (counts - discount) / total[contexts], np.where(unseen, 1.0, given_up / total)
