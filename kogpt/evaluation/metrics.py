"""Metrics of predictions, over all rows of a split at once, and how sure they are.

Values are percent. Metrics come from scikit-learn and scipy. Resampled metrics, of which intervals
take thousands, come from counts: rows of equal label and equal predictions are alike, so drawing
rows anew is drawing how many there are of each kind.

Dimension key: `n` rows, `N` sets of shots, `L` labels, `K` kinds of rows, `R` resamples.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

from kogpt.errors import KoGPTError, ParameterError

RESAMPLES = 1000
SWAPS, AT_ONCE = 10_000, 100  # rows of many sets are of many kinds: all swaps take gigabytes
ACCURACY, MACRO_F1, F1, SPEARMAN = "accuracy", "macro_f1", "f1", "spearman"

# What tables call them.
METRICS = {ACCURACY: "accuracy", MACRO_F1: "macro-F1", F1: "F1", SPEARMAN: "Spearman"}


@dataclass(frozen=True)
class Outcome:
    """What some rows are, and what they were taken for.

    Attributes:
        num_labels: labels that there are.
        gold: the right labels (n,).
        scores: of each label, the highest of which is predicted, (N, n, L): one for each set.
        degrees: how right the last label is, (n,); None where there is no scale.
    """

    num_labels: int
    gold: np.ndarray
    scores: np.ndarray
    degrees: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        labels: Sequence[str],
        gold: Sequence[int],
        degrees: Iterable[float | None] | None,
        scores: Sequence[np.ndarray],
    ) -> "Outcome":
        """Of plain numbers, and each set's scores; a degree that is None counts as none."""
        known = [degree for degree in degrees or () if degree is not None]
        scale = np.array(known) if known else None
        return cls(len(labels), np.array(gold), np.stack(scores), scale)

    @property
    def predicted(self) -> np.ndarray:
        """The likeliest labels (N, n); of equals the first."""
        return self.scores.argmax(-1)

    @property
    def probabilities(self) -> np.ndarray:
        """Of each label, among the labels, (N, n, L)."""
        odds = np.exp(self.scores - self.scores.max(-1, keepdims=True))
        return odds / odds.sum(-1, keepdims=True)

    @property
    def leans(self) -> np.ndarray:
        """Log-odds of the last label (N, n): ordered as its probability, of which many are 1.0."""
        return self.scores[..., -1] - np.logaddexp.reduce(self.scores[..., :-1], axis=-1)


class Interval(NamedTuple):
    """Where a value lies, 95 of 100 times."""

    low: float
    high: float


def require_sklearn() -> None:
    """Finds out before anything is computed whether metrics can be.

    Raises:
        KoGPTError: scikit-learn is not installed.
    """
    if find_spec("sklearn") is None:
        raise KoGPTError("evaluation needs scikit-learn: pip install 'kogpt[evaluate]'")


def measure(metric: str, outcome: Outcome) -> list[float]:
    """The metric, of each set of shots."""
    sets = zip(outcome.predicted, outcome.leans, strict=True)
    return [100 * float(_measure_set(metric, outcome, *one)) for one in sets]


def _measure_set(metric: str, outcome: Outcome, predicted: np.ndarray, leans: np.ndarray) -> float:
    from scipy.stats import spearmanr  # extras, and slow to import
    from sklearn.metrics import accuracy_score, f1_score

    if metric == SPEARMAN:
        assert outcome.degrees is not None, "a scale was asked for"
        both = outcome.degrees, leans
        # Of a constant it is undefined: 0 here, as in resamples.
        return 0.0 if min(map(np.ptp, both)) == 0 else spearmanr(*both).statistic
    if metric == ACCURACY:
        return accuracy_score(outcome.gold, predicted)
    if metric == F1:
        return f1_score(outcome.gold, predicted, pos_label=1, zero_division=0)
    labels = range(outcome.num_labels)
    return f1_score(outcome.gold, predicted, labels=labels, average="macro", zero_division=0)


def interval(metric: str, outcome: Outcome, seed: int = 0) -> Interval:
    """A bootstrap interval of the mean over sets: other rows might have been scored."""
    values = resampled(metric, [outcome], np.random.default_rng(seed))[0]
    return _middle(values)


def _middle(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, (0.025, 0.975))
    return Interval(float(low), float(high))


def resampled(
    metric: str, outcomes: Sequence[Outcome], random: np.random.Generator
) -> list[np.ndarray]:
    """The mean over sets (R,) of each outcome, for rows drawn anew: the same rows for all."""
    n = len(outcomes[0].gold)
    if metric == SPEARMAN:
        rows = random.integers(n, size=(RESAMPLES, n))
        return [_mean_spearman(outcome, rows) for outcome in outcomes]
    kinds = Kinds(outcomes)
    counts = random.multinomial(n, kinds.counts / n, size=RESAMPLES)  # (R, K)
    return [kinds.mean_metric(metric, counts, which) for which in range(len(outcomes))]


class Kinds:
    """Rows counted by label and all predictions of some outcomes.

    Attributes:
        counts: rows of each kind (K,).
    """

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self.num_labels = outcomes[0].num_labels
        table = np.vstack([outcomes[0].gold, *(outcome.predicted for outcome in outcomes)])
        kinds, self.counts = np.unique(table, axis=1, return_counts=True)
        self._gold = kinds[0]
        sizes = [len(outcome.scores) for outcome in outcomes]
        self._predicted = np.split(kinds[1:], np.cumsum(sizes)[:-1])  # each (N, K)

    def mean_metric(self, metric: str, counts: np.ndarray, which: int) -> np.ndarray:
        """The mean over sets (R,) of one outcome, of so many rows of each kind (R, K)."""
        return self.mean_of(metric, [(counts, which)])

    def mean_of(self, metric: str, parts: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
        """The same, where parts of the rows come from different outcomes."""
        sets = range(len(self._predicted[parts[0][1]]))
        values = []
        for at in sets:
            matrices = [self._confusion(counts, self._predicted[i][at]) for counts, i in parts]
            values.append(of_confusion(metric, np.sum(matrices, axis=0)))
        return np.mean(values, axis=0)

    def _confusion(self, counts: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Confusion matrices (R, L, L), rows the right labels."""
        L = self.num_labels
        cells = np.eye(L * L)[self._gold * L + predicted]  # (K, L L)
        return (counts @ cells).reshape(-1, L, L)


def of_confusion(metric: str, matrix: np.ndarray) -> np.ndarray:
    """A metric of confusion matrices (..., L, L), in percent; as scikit-learn defines it."""
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)  # (..., L)
    if metric == ACCURACY:
        return 100 * hits.sum(-1) / matrix.sum((-2, -1))
    found = matrix.sum(-1) + matrix.sum(-2)
    f1 = 2 * hits / np.where(found == 0, 1, found)
    return 100 * (f1[..., 1] if metric == F1 else f1.mean(-1))


def _mean_spearman(outcome: Outcome, rows: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata  # an extra, and slow to import

    assert outcome.degrees is not None, "a scale was asked for"
    degrees = rankdata(outcome.degrees[rows], axis=-1)
    leans = [rankdata(lean[rows], axis=-1) for lean in outcome.leans]
    return np.mean([100 * _correlation(degrees, lean) for lean in leans], axis=0)


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's, of the last axis."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    spread = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return (x * y).sum(-1) / np.where(spread == 0, 1, spread)


@dataclass(frozen=True)
class Comparison:
    """One model against another on the same rows.

    Attributes:
        metric: compared by it.
        first: its mean over sets.
        second: the same of the other.
        difference: second less first.
        interval: of the difference, rows drawn anew.
        p_value: how often a difference as large comes about if each row's answers are swapped
            between the two by the toss of a coin.
    """

    metric: str
    first: float
    second: float
    difference: float
    interval: Interval
    p_value: float


def compare(metric: str, first: Outcome, second: Outcome, seed: int = 0) -> Comparison:
    """Paired significance: approximate randomisation (Noreen 1989) and a bootstrap interval.

    Raises:
        ValueError: the two are not of the same rows, or of unequally many sets.
    """
    if not np.array_equal(first.gold, second.gold):
        raise ParameterError("the two were not scored on the same rows")
    if len(first.scores) != len(second.scores):
        raise ParameterError("the two were not scored with equally many sets of shots")
    random = np.random.default_rng(seed)
    means = [float(np.mean(measure(metric, outcome))) for outcome in (first, second)]
    drawn = resampled(metric, (first, second), random)
    difference = means[1] - means[0]
    swapped = _swapped(metric, first, second, random)
    # A float's rounding may not make an equal difference a smaller one.
    extreme = np.count_nonzero(np.abs(swapped) >= abs(difference) - 1e-9)
    return Comparison(
        metric=metric,
        first=means[0],
        second=means[1],
        difference=difference,
        interval=_middle(drawn[1] - drawn[0]),
        p_value=(extreme + 1) / (len(swapped) + 1),
    )


def _swapped(
    metric: str, first: Outcome, second: Outcome, random: np.random.Generator
) -> np.ndarray:
    """Differences (R,) of the two after some of the rows have changed sides."""
    if metric == SPEARMAN:
        return _swapped_spearman(first, second, random)
    kinds = Kinds((first, second))

    def some() -> np.ndarray:
        moved = random.binomial(kinds.counts, 0.5, size=(AT_ONCE, len(kinds.counts)))
        stay = kinds.counts - moved
        return kinds.mean_of(metric, [(stay, 1), (moved, 0)]) - kinds.mean_of(
            metric, [(stay, 0), (moved, 1)]
        )

    return np.concatenate([some() for _ in range(SWAPS // AT_ONCE)])


def _swapped_spearman(first: Outcome, second: Outcome, random: np.random.Generator) -> np.ndarray:
    rows = np.arange(len(first.gold))[None]
    # Ranks, which all that counts depends on: scores of two models may be of different scales.
    first, second = _ranked(first), _ranked(second)

    def once() -> float:
        move = random.random(len(first.gold)) < 0.5
        sides = [_mixed(a, b, move) for a, b in ((first, second), (second, first))]
        one, other = (_mean_spearman(side, rows)[0] for side in sides)
        return other - one

    return np.array([once() for _ in range(RESAMPLES)])


def _ranked(outcome: Outcome) -> Outcome:
    """The same with ranks of the rows in the place of scores."""
    from scipy.stats import rankdata  # an extra, and slow to import

    ranks = rankdata(outcome.leans, axis=-1)
    scores = np.stack([np.zeros_like(ranks), ranks], axis=-1)
    return Outcome(2, outcome.gold, scores, outcome.degrees)


def _mixed(stay: Outcome, move: Outcome, where: np.ndarray) -> Outcome:
    scores = np.where(where[:, None], move.scores, stay.scores)
    return Outcome(stay.num_labels, stay.gold, scores, stay.degrees)
