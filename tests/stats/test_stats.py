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


def seeded(sample):
    return dict(enumerate(sample))


@given(values)
def test_interval_is_scipys(sample):
    ours = stats.t_interval(sample)
    if ours.sd == 0:
        assert ours.low == ours.mean == ours.high
        return
    n = len(sample)
    low, high = scipy.stats.t.interval(0.95, n - 1, np.mean(sample), scipy.stats.sem(sample))
    assert (ours.low, ours.high) == pytest.approx((low, high), rel=1e-6, abs=1e-9)
    assert ours.sd == pytest.approx(np.std(sample, ddof=1))


def test_interval_by_hand():
    # mean 2, sd 1, t(0.975, 2) = 4.3027: half width 4.3027 / sqrt(3).
    i = stats.t_interval([1, 2, 3])
    assert (i.mean, i.sd, i.n) == (2, 1, 3)
    assert i.high - i.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_degenerate_samples():
    one = stats.t_interval([0.5])
    assert one.mean == 0.5 and math.isnan(one.low) and math.isnan(one.sd)
    assert math.isnan(stats.t_interval([]).mean)
    solved = stats.t_interval([1.0, 1.0, 1.0])
    assert (solved.low, solved.mean, solved.high, solved.sd) == (1, 1, 1, 0)
    # 0.3 - 0.2 and 0.4 - 0.3 differ by 1e-17: no variance, not a t statistic of 1e15.
    assert stats.deviation([0.3 - 0.2, 0.4 - 0.3]) == 0


def test_paired_test_is_scipys():
    a, b = [0.9, 0.8, 0.95, 0.7], [0.6, 0.7, 0.65, 0.66]
    ours = stats.compare(seeded(a), seeded(b))
    theirs = scipy.stats.ttest_rel(a, b)
    assert ours.method == "paired"
    assert ours.p == pytest.approx(theirs.pvalue)
    low, high = theirs.confidence_interval()
    assert (ours.difference.low, ours.difference.high) == pytest.approx((low, high))


def test_welch_test_without_shared_seeds_is_scipys():
    a, b = [0.9, 0.8, 0.95, 0.7], [0.6, 0.7, 0.65]
    ours = stats.compare(seeded(a), {seed + 100: v for seed, v in enumerate(b)})
    theirs = scipy.stats.ttest_ind(a, b, equal_var=False)
    assert ours.method == "welch"
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.df == pytest.approx(theirs.df)
    low, high = theirs.confidence_interval()
    assert (ours.difference.low, ours.difference.high) == pytest.approx((low, high))


def test_comparison_uses_shared_seeds_only():
    ours = stats.compare({0: 1.0, 1: 0.9, 2: 0.2}, {0: 0.5, 1: 0.5, 7: 0.0})
    assert (ours.difference.mean, ours.difference.n) == (pytest.approx(0.45), 2)


@pytest.mark.parametrize(
    ("a", "b", "p"),
    [([1, 1], [1, 1], 1.0), ([1, 1], [0.5, 0.5], 0.0), ([0.3, 0.4], [0.2, 0.3], 0.0)],
)
def test_comparison_without_variance(a, b, p):
    assert stats.compare(seeded(a), seeded(b)).p == p
    apart = {seed + 9: v for seed, v in enumerate(b)}
    if a[0] == a[1]:
        assert stats.compare(seeded(a), apart).p == p


def test_one_seed_gives_a_difference_but_no_test():
    ours = stats.compare({0: 1.0}, {0: 0.25})
    assert ours.difference.mean == 0.75
    assert ours.method == "none" and math.isnan(ours.p) and math.isnan(ours.difference.low)


@given(values, values)
def test_comparison_is_antisymmetric(a, b):
    ab, ba = stats.compare(seeded(a), seeded(b)), stats.compare(seeded(b), seeded(a))
    assert ab.difference.mean == pytest.approx(-ba.difference.mean, abs=1e-9)
    assert ab.p == pytest.approx(ba.p)
    assert 0 <= ab.p <= 1


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


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3 (without continuity correction).
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_on_published_values(k, n, low, high):
    assert stats.wilson(k, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_fraction_and_mirrors(pair):
    k, n = pair
    low, high = stats.wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert stats.wilson(n - k, n) == pytest.approx((1 - high, 1 - low))


@given(st.floats(-1, 1), st.floats(0.001, 1), st.floats(0.01, 0.5), st.integers(1, 30))
def test_tost_is_two_one_sided_tests(estimate, error, margin, df):
    above = scipy.stats.t.sf((estimate + margin) / error, df)
    below = scipy.stats.t.cdf((estimate - margin) / error, df)
    assert stats.tost(estimate, margin, error, df) == pytest.approx(max(above, below), abs=1e-9)


def test_tost_without_variance():
    assert stats.tost(0.01, 0.02, 0.0, 4) == 0.0
    assert stats.tost(0.03, 0.02, 0.0, 4) == 1.0


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_detectable_effect_by_simulation(n):
    generator, sd = np.random.default_rng(0), 0.2
    effect = stats.minimum_detectable_effect(sd / math.sqrt(n), n - 1)
    samples = generator.normal(effect, sd, (20_000, n))
    p = scipy.stats.ttest_1samp(samples, 0, axis=1).pvalue
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.012)


def test_detectable_effect_without_variance_or_seeds():
    assert stats.minimum_detectable_effect(0.0, 4) == 0
    assert math.isnan(stats.minimum_detectable_effect(math.nan, math.nan))


@given(st.lists(st.one_of(st.floats(-9, 9), st.just(math.inf)), min_size=1))
def test_median_is_numpys(sample):
    with np.errstate(all="ignore"):
        assert stats.median(sample) == pytest.approx(float(np.median(sample)))


def test_median_interval():
    # Binomial(6, 1/2): the extremes miss the median with probability 2 / 64 = 0.031.
    assert stats.median_interval([6, 1, 5, 2, 4, 3]) == (1, 6)
    assert all(math.isnan(end) for end in stats.median_interval([1, 2, 3, 4, 5]))
    # n = 20: the classical interval is the 6th to the 15th value.
    assert stats.median_interval(range(1, 21)) == (6, 15)


@settings(max_examples=30)
@given(st.integers(6, 25))
def test_median_interval_covers(n):
    low, high = stats.median_interval(range(n))
    below = scipy.stats.binom.cdf(low, n, 0.5)
    assert 2 * below <= 0.05 < 2 * scipy.stats.binom.cdf(low + 1, n, 0.5)
    assert high == n - 1 - low
