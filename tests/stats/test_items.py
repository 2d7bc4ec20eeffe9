"""The error of a test set, against the jackknife and in simulations of crossed random effects."""

import numpy as np
import pytest

from research import stats

M = 400
"""Items of a simulated test set."""


def results(correct, ids=None, count=None):
    """Results of items from (seeds, items) totals."""
    count = np.ones(correct.shape[1]) if count is None else count
    moved = np.mean([stats.deviations(row, count) for row in correct], axis=0)
    return stats.Results(np.arange(len(moved)) if ids is None else ids, moved, count > 0)


def test_without_counts_it_is_the_error_of_a_mean():
    values = np.random.default_rng(0).normal(3, 2, 50)
    found = stats.item_errors({"a": results(values[None])}).of_mean("a")
    assert found == [(pytest.approx(values.var(ddof=1) / 50, rel=1e-5), 49)]
    # Items that do not count change nothing.
    padded, count = np.append(values, np.zeros(9)), np.append(np.ones(50), np.zeros(9))
    assert stats.item_errors({"a": results(padded[None], count=count)}).of_mean("a") == found


def test_the_error_of_a_ratio_is_the_jackknifes():
    random = np.random.default_rng(1)
    count = random.integers(1, 30, M).astype(float)
    total = random.normal(2, 1, M) * count
    ((variance, df),) = stats.item_errors({"a": results(total[None], count=count)}).of_mean("a")
    without = (total.sum() - total) / (count.sum() - count)
    jackknife = (M - 1) / M * np.square(without - without.mean()).sum()
    assert variance == pytest.approx(jackknife, rel=0.02) and df == M - 1


def test_a_difference_is_paired_where_the_items_are_the_same():
    random = np.random.default_rng(2)
    hard, ids = random.normal(size=M), np.arange(M)
    a, b = (hard + random.normal(0, 0.1, (3, M)) for _ in range(2))
    errors = stats.item_errors(
        {"a": results(a), "b": results(b), "other": results(b, ids + 1), "few": results(b[:, :9])}
    )
    ((variance, df),) = errors.of_difference("a", "b")
    assert variance == pytest.approx((a.mean(0) - b.mean(0)).var(ddof=1) / M, rel=1e-5)
    assert df == M - 1 and errors.of_difference("b", "a") == errors.of_difference("a", "b")
    for other in ("other", "few"):
        assert errors.of_difference("a", other) == [*errors.of_mean("a"), *errors.of_mean(other)]
    assert errors.of_difference("a", "unknown") == errors.of_mean("unknown") == []
    # One item is no sample.
    assert stats.item_errors({"a": results(a[:, :1])}).of_mean("a") == []


def test_three_components_have_the_degrees_of_freedom_of_satterthwaite():
    a, b, item = [0.9, 0.8, 0.95, 0.7], [0.6, 0.7, 0.65], stats.Component(0.002, 40.0)
    parts = [(np.var(a, ddof=1) / 4, 3), (np.var(b, ddof=1) / 3, 2), item]
    total = sum(v for v, _ in parts)
    found = stats.welch(a, b, [item])
    assert found.error == pytest.approx(np.sqrt(total))
    assert found.df == pytest.approx(total**2 / sum(v**2 / df for v, df in parts))
    assert stats.welch(a, b).error < found.error
    one = stats.mean_of(a, items=[item])
    assert one.error == pytest.approx(np.sqrt(parts[0][0] + 0.002)) and 3 < one.df < 43


def test_items_say_nothing_of_seeds_that_do_not_differ():
    item = stats.Component(0.01, 99.0)
    for found in (
        stats.welch([1.0] * 3, [0.5] * 3, [item]),
        stats.mean_of([1.0] * 3, items=[item]),
    ):
        assert found.error == 0 and found.p_above(0.0) == 1
    assert np.isnan(stats.welch([1.0], [0.5], [item]).error)


def crossed(random, n, arms=2):
    """Accuracies on one test set of arms that are equally good: (arms, n seeds, M items).

    An item is hard for all arms, for an arm, and for a seed of it, on a logistic scale of which
    all but a seed's own general shift are symmetric, so that arms differ by nothing else.
    """
    hard = random.normal(0, 1.5, M)
    of_arm = random.normal(0, 1, (arms, 1, M))
    of_seed = random.normal(0, 0.4, (arms, n, M))
    shift = random.normal(0, 0.03, (arms, n, 1))
    return (1.0 + hard + of_arm + of_seed + shift > 0).astype(float)


TRUTH = 0.70590
"""Probability that a normal variable of variance 1.5² + 1 + .4² + .03² is above -1."""


@pytest.mark.parametrize("n", [3, 5, 10])
def test_intervals_cover_what_other_items_would_have_shown(n):
    """At 95 %; without the items, the same seeds cover it far too seldom."""
    random = np.random.default_rng(n)
    covered = dict.fromkeys(("difference", "mean", "of seeds", "mean of seeds"), 0)
    repeats = 1500
    for _ in range(repeats):
        right = crossed(random, n)
        a, b = right.mean(2)
        errors = stats.item_errors({"a": results(right[0]), "b": results(right[1])})
        found = {
            "difference": (stats.welch(a, b, errors.of_difference("a", "b")), 0.0),
            "of seeds": (stats.welch(a, b), 0.0),
            "mean": (stats.mean_of(a, items=errors.of_mean("a")), TRUTH),
            "mean of seeds": (stats.mean_of(a), TRUTH),
        }
        for name, (estimate, truth) in found.items():
            low, high = estimate.interval()
            covered[name] += low <= truth <= high
    shares = {name: number / repeats for name, number in covered.items()}
    assert 0.93 <= shares["difference"] and 0.93 <= shares["mean"] <= 0.975, shares
    assert shares["of seeds"] < 0.85 and shares["mean of seeds"] < 0.8, shares
