"""The formulas against published examples, scipy.stats and simulation."""

import math
import warnings

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from research import stats

values = st.lists(st.floats(-1e3, 1e3, allow_nan=False).map(lambda v: round(v, 3)), min_size=2)
probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def both(found):
    """The two-sided p-value of "no difference"."""
    return 2 * min(found.p_above(0.0), found.p_below(0.0))


@settings(deadline=None)
@given(values)
def test_mean_is_scipys(sample):
    ours = stats.mean_of(sample)
    if ours.error == 0:
        assert all(map(math.isnan, ours.interval())) and both(ours) == 2
        return
    theirs = scipy.stats.ttest_1samp(sample, 0.0)
    assert both(ours) == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-12)
    assert ours.interval() == pytest.approx(tuple(theirs.confidence_interval()), rel=1e-6, abs=1e-9)
    above = scipy.stats.ttest_1samp(sample, 1.5, alternative="greater")
    assert ours.p_above(1.5) == pytest.approx(above.pvalue, rel=1e-6, abs=1e-12)


def test_summary():
    found = stats.summary([1, 2, 3])
    assert (found.mean, found.low, found.high, found.sd, found.n) == (2, 1, 3, 1, 3)
    one = stats.summary([0.5])
    assert one.mean == 0.5 and math.isnan(one.sd)
    assert math.isnan(stats.summary([]).mean)
    # A seed that diverged on a metric without a worst value.
    lost = stats.summary([1.0, math.inf])
    assert lost.mean == math.inf and math.isnan(lost.sd)


def test_noise_of_float32_is_no_variance():
    solved = [np.float32(0.1) + np.float32(k) * np.spacing(np.float32(0.1)) for k in range(4)]
    assert stats.deviation(map(float, solved)) == 0
    # Differences are as exact as what they are differences of.
    assert stats.deviation([1e-8, 3e-8], scale=1.0) == 0
    assert stats.deviation([1e-8, 3e-8]) > 0
    assert stats.welch([0.9, 0.9, 0.9], [0.5, 0.5, 0.5]).error == 0


def test_welch_is_scipys():
    a, b = [0.9, 0.8, 0.95, 0.7], [0.6, 0.7, 0.65]
    ours, theirs = stats.welch(a, b), scipy.stats.ttest_ind(a, b, equal_var=False)
    assert both(ours) == pytest.approx(theirs.pvalue)
    assert ours.df == pytest.approx(theirs.df)
    assert ours.interval() == pytest.approx(tuple(theirs.confidence_interval()))


def test_one_seed_gives_a_difference_but_no_test():
    ours = stats.welch([1.0], [0.25])
    assert ours.estimate == 0.75 and ours.p_above(0.0) == 1
    assert all(map(math.isnan, ours.interval()))


@given(values, values)
def test_comparison_is_antisymmetric(a, b):
    ab, ba = stats.welch(a, b), stats.welch(b, a)
    assert ab.estimate == pytest.approx(-ba.estimate, abs=1e-9)
    assert ab.p_above(0.3) == pytest.approx(ba.p_below(-0.3))


def test_costs_are_exact():
    assert stats.Exact(3.0).p_above(2.0) == 0 and stats.Exact(3.0).p_above(3.0) == 1
    assert stats.Exact(3.0).p_below(3.5) == 0 and stats.Exact(3.0).interval() == (3, 3)


def test_steps_are_compared_by_their_order():
    a, b = (100.0, 300.0, 200.0, 150.0), (400.0, 250.0, 500.0, 600.0)
    ours = stats.RankDifference(a, b)
    theirs = scipy.stats.mannwhitneyu(a, b, alternative="less", method="exact")
    assert ours.p_below(0.0) == pytest.approx(theirs.pvalue)
    # Seeds that never got there are later than all others, and alike among themselves.
    never = (math.inf,) * 4
    assert stats.RankDifference((math.inf, 2.0, 3.0, 4.0), never).estimate == -0.375
    assert stats.RankDifference(never, never).p_below(0.0) == 1
    assert stats.RankDifference((1.0, 2.0, 3.0, 4.0), never).p_below(0.0) == pytest.approx(1 / 70)


def test_pooled_deviation():
    samples = [[1.0, 3.0], [0.0, 0.0, 3.0], [5.0]]
    # Sums of squares 2 and 6 on 1 and 2 degrees of freedom.
    assert stats.pooled_deviation(samples) == (pytest.approx(math.sqrt(8 / 3)), 3)
    assert stats.pooled_deviation([[1.0]])[1] == 0


@pytest.mark.parametrize(("n", "bound"), [(3, 0.368), (4, 0.473), (5, 0.549), (14, 0.807)])
def test_what_seeds_that_all_solve_prove(n, bound):
    # 0.05 ** (1 / n), the one-sided bound of level 95 %.
    assert stats.Proportion(n, n).interval(0.1)[0] == pytest.approx(bound, abs=1e-3)
    assert stats.Proportion(n, n).p_above(0.05 ** (1 / n)) == pytest.approx(0.05)
    assert stats.Proportion(0, n).p_below(1 - 0.05 ** (1 / n)) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("k1", "k2", "n"), [(5, 0, 5), (3, 0, 3), (4, 1, 5), (7, 3, 10), (2, 2, 4)]
)
def test_difference_of_proportions_is_barnards(k1, k2, n):
    ours = stats.ProportionDifference(k1, n, k2, n)
    theirs = scipy.stats.barnard_exact([[k1, k2], [n - k1, n - k2]], alternative="greater")
    assert ours.p_above(0.0) == pytest.approx(theirs.pvalue, abs=2e-3)


@pytest.mark.parametrize("margin", [0.0, 0.3, -0.2])
def test_difference_of_proportions_keeps_its_level(margin):
    """All outcomes of 5 and 6 seeds, at probabilities that differ by exactly the margin."""
    rejected = np.array(
        [
            [stats.ProportionDifference(i, 5, j, 6).p_above(margin) <= 0.05 for j in range(7)]
            for i in range(6)
        ]
    )
    assert rejected[5, 0] and not rejected[2, 3]
    for second in np.linspace(max(0, -margin), min(1, 1 - margin), 37):
        first = min(1.0, max(0.0, second + margin))
        one = scipy.stats.binom.pmf(range(6), 5, first)
        other = scipy.stats.binom.pmf(range(7), 6, second)
        assert one @ rejected @ other <= 0.0501


def test_interval_of_a_difference_is_what_is_not_rejected():
    found = stats.ProportionDifference(5, 5, 1, 5)
    low, high = found.interval(0.05)
    assert -1 <= low < found.estimate < high <= 1
    assert found.p_above(low - 0.01) < 0.025 < found.p_above(low + 0.01)
    mirrored = stats.ProportionDifference(1, 5, 5, 5).interval(0.05)
    assert mirrored == pytest.approx((-high, -low))


def test_holm_on_a_published_example():
    # Wikipedia, "Holm-Bonferroni method": of 0.01, 0.04, 0.03, 0.005 the 1st and 4th are rejected.
    adjusted = stats.holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [p < 0.05 for p in adjusted] == [True, False, False, True]


def test_holm_leaves_out_what_could_not_be_tested():
    adjusted = stats.holm([0.02, math.nan, 0.04])
    assert adjusted[0] == pytest.approx(0.04) and math.isnan(adjusted[1])


@given(probabilities)
def test_holm_properties(p):
    adjusted = stats.holm(p)
    assert all(raw <= a <= min(1, raw * len(p)) for raw, a in zip(p, adjusted, strict=True))
    order = sorted(range(len(p)), key=lambda i: p[i])
    assert all(adjusted[i] <= adjusted[j] for i, j in zip(order, order[1:], strict=False))


@given(probabilities)
def test_holm_levels_reject_what_holm_rejects(p):
    levels, adjusted = stats.holm_levels(p), stats.holm(p)
    for raw, level, a in zip(p, levels, adjusted, strict=True):
        if abs(a - 0.05) > 1e-9:
            assert (raw <= level) == (a <= 0.05)


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_detectable_effect_by_simulation(n):
    generator, sd = np.random.default_rng(0), 0.2
    effect = stats.minimum_detectable_effect(sd / math.sqrt(n), n - 1)
    samples = generator.normal(effect, sd, (20_000, n))
    p = scipy.stats.ttest_1samp(samples, 0, axis=1).pvalue
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.012)


def test_detectable_effect_without_variance_or_seeds():
    assert math.isnan(stats.minimum_detectable_effect(0.0, 4))
    assert math.isnan(stats.minimum_detectable_effect(math.nan, math.nan))


@given(st.lists(st.one_of(st.floats(-9, 9), st.just(math.inf)), min_size=1))
def test_median_is_numpys(sample):
    with np.errstate(all="ignore"):
        assert stats.median(sample) == pytest.approx(float(np.median(sample)))


def test_the_best_of_two_is_the_first_as_often_as_its_difference_is_positive():
    found = stats.choice_probabilities([0.3, 0.0], 0.5)
    assert found[0] == pytest.approx(scipy.stats.norm.cdf(0.3 / (0.5 * math.sqrt(2))), abs=1e-6)
    assert stats.choice_probabilities([0.1, 0.1, 0.1], 1.0) == pytest.approx([1 / 3] * 3, abs=1e-9)
    # Without any noise the first of the best is taken.
    assert stats.choice_probabilities([0.1, 0.3, 0.3], 0.0) == [0.0, 1.0, 0.0]


def test_what_a_choice_adds_is_that_of_drawing_again():
    generator = np.random.default_rng(0)
    scores = [[0.1, 0.3, 0.2], [0.35, 0.2, 0.35], [0.0, 0.1, -0.2]]
    values = [0.5, 0.9, 0.1]
    spread = math.sqrt(np.mean([np.var(s, ddof=1) for s in scores]) / 3)
    drawn = generator.normal([np.mean(s) for s in scores], spread, (400_000, 3)).argmax(1)
    expected = np.std(np.array(values)[drawn])
    assert stats.choice_deviation(scores, values) == pytest.approx(expected, rel=5e-3)
    assert stats.choice_deviation(scores, [0.7] * 3) == 0
    assert stats.choice_deviation([[1.0, 2.0]], [0.5]) == 0
    assert math.isnan(stats.choice_deviation([[1.0], [2.0]], [0.5, 0.6]))


def test_a_border_outside_of_what_a_proportion_can_be():
    every, none = stats.Proportion(5, 5), stats.Proportion(0, 5)
    assert every.p_above(1.2) == 1 and every.p_above(-0.2) == 0
    assert none.p_below(-0.2) == 1 and none.p_below(1.2) == 0
