"""Metrics against scikit-learn and scipy, intervals and significance against what must hold."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score

from kogpt.evaluation.metrics import (
    ACCURACY,
    F1,
    MACRO_F1,
    SPEARMAN,
    Kinds,
    Outcome,
    _mean_spearman,
    _ranked,
    compare,
    interval,
    measure,
    of_confusion,
)


def made_up(seed: int, rows: int = 300, labels: int = 2, sets: int = 1, skill: float = 1.0):
    """Scores that know the right label as well as `skill` says."""
    random = np.random.default_rng(seed)
    gold = np.random.default_rng(99).integers(labels, size=rows)
    scores = random.normal(size=(sets, rows, labels)) + skill * np.eye(labels)[gold]
    degrees = gold + np.random.default_rng(98).uniform(0, 1, rows)
    return Outcome(labels, gold, scores, degrees)


def test_values_are_those_of_sklearn_in_percent():
    outcome = made_up(0, labels=7, sets=2)
    for at, predicted in enumerate(outcome.predicted):
        macro = 100 * f1_score(outcome.gold, predicted, average="macro")
        assert measure(ACCURACY, outcome)[at] == 100 * accuracy_score(outcome.gold, predicted)
        assert measure(MACRO_F1, outcome)[at] == pytest.approx(macro)


def test_f1_is_of_the_positive_label():
    outcome = made_up(1)
    expected = 100 * f1_score(outcome.gold, outcome.predicted[0], pos_label=1)
    assert measure(F1, outcome) == [expected]


def test_spearman_is_of_the_probability_of_the_last_label():
    outcome = made_up(2)
    margin = outcome.scores[0, :, 1] - outcome.scores[0, :, 0]
    expected = 100 * stats.spearmanr(outcome.degrees, margin).statistic
    assert measure(SPEARMAN, outcome) == pytest.approx([expected])


def test_a_label_nobody_predicts_counts_as_zero_and_an_absent_one_too():
    gold = np.array([0, 0, 1, 1])
    scores = np.array([[[1.0, 0, 0]] * 4])
    value = measure(MACRO_F1, Outcome(3, gold, scores))[0]
    assert value == pytest.approx(100 * (2 / 3) / 3)


def test_equal_scores_count_as_the_first_label():
    outcome = Outcome(2, np.array([0, 1]), np.zeros((1, 2, 2)))
    assert outcome.predicted.tolist() == [[0, 0]]


def test_what_is_undefined_is_zero_and_not_a_number():
    outcome = Outcome(2, np.zeros(3, int), np.zeros((1, 3, 2)), np.array([1.0, 2, 3]))
    assert measure(SPEARMAN, outcome) == measure(F1, outcome) == [0.0]


def test_another_seed_draws_other_rows():
    first, second = made_up(8), made_up(9)
    intervals = [compare(ACCURACY, first, second, seed).interval for seed in (0, 1, 0)]
    assert intervals[0] == intervals[2] != intervals[1]


def test_probabilities_add_up_and_rank_as_scores_do():
    outcome = made_up(3, labels=4)
    assert outcome.probabilities.sum(-1) == pytest.approx(1.0)
    assert (outcome.probabilities.argmax(-1) == outcome.predicted).all()
    assert brier_score_loss(outcome.gold == 0, outcome.probabilities[0, :, 0]) < 0.25


@pytest.mark.parametrize("labels", [2, 5])
@pytest.mark.parametrize("metric", [ACCURACY, MACRO_F1, F1])
def test_counted_kinds_give_what_sklearn_gives_of_the_drawn_rows(metric, labels):
    """The same resample, once by counts of kinds, once row by row through scikit-learn."""
    outcome = made_up(4, rows=60, labels=labels, sets=3)
    kinds = Kinds([outcome])
    drawn = np.random.default_rng(5).integers(60, size=60)
    table = np.vstack([outcome.gold, outcome.predicted])
    unique = np.unique(table, axis=1)
    counts = [(table[:, drawn] == kind[:, None]).all(0).sum() for kind in unique.T]
    found = kinds.mean_metric(metric, np.array([counts]), 0)[0]
    resample = Outcome(labels, outcome.gold[drawn], outcome.scores[:, drawn])
    if metric == F1 and labels > 2:
        expected = [
            100 * f1_score(resample.gold, one, labels=[1], average="macro")
            for one in resample.predicted
        ]
    else:
        expected = measure(metric, resample)
    assert found == pytest.approx(np.mean(expected))


def test_confusions_of_no_rows_of_a_label_divide_by_nothing():
    matrix = np.array([[3.0, 0], [0, 0]])
    assert of_confusion(MACRO_F1, matrix) == pytest.approx(50.0)


def test_an_interval_is_about_that_of_the_binomial():
    outcome = made_up(6, rows=1000)
    (value,) = measure(ACCURACY, outcome)
    share = value / 100
    width = 2 * 1.96 * np.sqrt(share * (1 - share) / 1000) * 100
    low, high = interval(ACCURACY, outcome)
    assert low < value < high
    assert high - low == pytest.approx(width, rel=0.1)


@pytest.mark.parametrize("metric", [MACRO_F1, F1, SPEARMAN])
def test_an_interval_holds_the_value_and_is_the_same_every_time(metric):
    outcome = made_up(7, sets=3)
    low, high = interval(metric, outcome)
    assert low < np.mean(measure(metric, outcome)) < high
    assert interval(metric, outcome) == (low, high)


def test_intervals_cover_the_truth_95_of_100_times():
    """Accuracy of a coin of known bias: the interval of 200 rows, 300 times over."""
    covered = 0
    for seed in range(300):
        right = np.random.default_rng(seed).random(200) < 0.7
        scores = np.stack([~right, right], axis=-1).astype(float)[None]
        low, high = interval(ACCURACY, Outcome(2, np.ones(200, int), scores), seed)
        covered += low <= 70 <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_a_model_does_not_differ_from_itself():
    outcome = made_up(8)
    result = compare(ACCURACY, outcome, outcome)
    assert (result.difference, result.p_value) == (0.0, 1.0)
    assert result.interval == (0.0, 0.0)


def test_a_clear_difference_is_significant_and_has_the_right_sign():
    weak, strong = made_up(9, skill=0.5), made_up(10, skill=3.0)
    result = compare(MACRO_F1, weak, strong)
    assert result.difference > 10
    assert result.interval.low > 0
    assert 0 < result.p_value < 0.001  # of so many drawn, none is as far: that is no proof of 0


def test_the_p_value_of_accuracy_is_that_of_mcnemar():
    """Swapping rows at random is McNemar's exact test, where only accuracy is looked at."""
    first, second = made_up(11, skill=1.0), made_up(12, skill=1.3)
    right = [outcome.predicted[0] == outcome.gold for outcome in (first, second)]
    only_first, only_second = (right[0] & ~right[1]).sum(), (~right[0] & right[1]).sum()
    exact = stats.binomtest(only_first, only_first + only_second, 0.5).pvalue
    assert compare(ACCURACY, first, second).p_value == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize(("rows", "right"), [(3, 2), (7, 4), (11, 6), (12, 9)])
def test_a_difference_of_one_row_is_as_large_however_it_is_swapped(rows, right):
    """Shares of these numbers of rows are rounded differently on their ways to percent."""
    known = np.arange(rows)

    def outcome(right: int) -> Outcome:
        scores = np.stack([known >= right, known < right], axis=-1).astype(float)[None]
        return Outcome(2, np.ones(rows, int), scores)

    assert compare(ACCURACY, outcome(right), outcome(right + 1)).p_value == 1.0


def test_no_p_value_is_zero():
    gold = np.ones(200, int)
    always = np.eye(2)[gold][None]
    assert (
        compare(ACCURACY, Outcome(2, gold, -always), Outcome(2, gold, always)).p_value == 1 / 10_001
    )


def test_p_values_are_evenly_spread_where_there_is_no_difference():
    values = [
        compare(ACCURACY, made_up(2 * i, rows=200), made_up(2 * i + 1, rows=200)).p_value
        for i in range(60)
    ]
    assert stats.kstest(values, "uniform").pvalue > 0.001
    assert sum(value < 0.05 for value in values) <= 10


def test_spearman_tells_probabilities_apart_that_are_all_one():
    """Log-odds of 38 and more are probabilities of 1.0."""
    scores = np.array([[[-50.0, 0], [-60, 0], [-45, 0], [-40, 0], [0, -1]]])
    outcome = Outcome(2, np.ones(5, int), scores, np.array([3.0, 4, 2, 1, 0]))
    assert measure("spearman", outcome) == [pytest.approx(100)]
    assert compare("spearman", outcome, outcome).first == pytest.approx(100)


def test_spearman_compares_too():
    weak, strong = made_up(13, skill=0.1, rows=100), made_up(14, skill=4.0, rows=100)
    assert compare(SPEARMAN, weak, strong).p_value < 0.01


@pytest.mark.parametrize(
    "change", [lambda x: x + 20, lambda x: 20 * x, np.exp], ids=["moved", "stretched", "bent"]
)
def test_the_p_value_of_spearman_is_of_ranks_as_spearman_is(change):
    weak, strong = made_up(13, skill=0.3, rows=100), made_up(14, skill=1.2, rows=100)
    leans = np.stack([np.zeros_like(strong.leans), change(strong.leans)], axis=-1)
    other = Outcome(2, strong.gold, leans, strong.degrees)
    wanted = compare(SPEARMAN, weak, strong)
    assert compare(SPEARMAN, weak, other) == wanted and wanted.p_value < 0.01


def test_other_rows_are_not_compared():
    with pytest.raises(ValueError, match="same rows"):
        compare(ACCURACY, made_up(1, rows=10), made_up(1, rows=11))


def test_only_outcomes_of_the_same_rows_and_as_many_sets_are_compared():
    gold, scores = np.array([0, 1, 1]), np.zeros((2, 3, 2))
    one = Outcome(2, gold, scores)
    with pytest.raises(ValueError, match="not scored on the same rows"):
        compare("accuracy", one, Outcome(2, 1 - gold, scores))
    with pytest.raises(ValueError, match="equally many sets"):
        compare("accuracy", one, Outcome(2, gold, scores[:1]))


def test_resampled_rows_are_ranked_anew_and_what_is_constant_among_them_is_zero():
    outcome = made_up(15, rows=20, sets=2)
    rows = np.random.default_rng(6).integers(20, size=(5, 20))
    rows[4] = 7  # one row, twenty times
    wanted = [
        np.mean([100 * stats.spearmanr(outcome.degrees[at], x[at])[0] for x in outcome.leans])
        for at in rows[:4]
    ]
    assert _mean_spearman(outcome, rows) == pytest.approx([*wanted, 0.0])


def test_an_interval_of_spearman_is_about_that_of_fisher():
    outcome = made_up(16, rows=1000)
    rho = measure(SPEARMAN, outcome)[0] / 100
    width = 2 * 1.96 * np.sqrt((1 + rho**2 / 2) / 997) * (1 - rho**2) * 100
    low, high = interval(SPEARMAN, outcome)
    assert high - low == pytest.approx(width, rel=0.15)


def test_the_last_of_several_labels_is_weighed_against_all_others():
    outcome = made_up(17, labels=4)
    p = outcome.probabilities[..., -1]
    assert outcome.leans == pytest.approx(np.log(p / (1 - p)))


def test_probabilities_of_long_texts_are_numbers_too():
    """The likelihood of a text of many tokens is no float any more, and neither is its sum."""
    scores = np.array([[[-2000.0, -2001.0], [3000.0, 2999.0]]])
    expected = 1 / (1 + np.exp(-1))
    outcome = Outcome(2, np.zeros(2, int), scores)
    assert outcome.probabilities[..., 0] == pytest.approx(expected)


def test_scores_of_each_set_of_shots_are_ranked_apart():
    outcome = made_up(18, rows=60, sets=2)
    ranks = [stats.rankdata(lean).tolist() for lean in outcome.leans]
    assert _ranked(outcome).leans.tolist() == ranks
