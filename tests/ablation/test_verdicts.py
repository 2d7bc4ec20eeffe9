"""Claims: their way through JSON, and their verdicts on made-up samples."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.ablation.claims import (
    Claim,
    Crossover,
    Direction,
    Equivalence,
    Threshold,
    Trend,
    claim_from_json,
    higher_is_better,
    restore_test,
)
from research.ablation.experiment import Outcome
from research.ablation.measure import Measure, point_key
from research.ablation.quantities import Quantity, axis_positions, slope
from research.ablation.verdicts import check, judge
from research.errors import UserError

TESTS = [
    Direction("a", "b", 0.1, {"x": 3}, metric="loss", better="lower"),
    Threshold("a", at_least=0.5),
    Threshold("a", at_most=0.5, at={"x": 1}),
    Equivalence("a", "b", 0.02),
    Crossover("a", "b", "x", value=4),
    Trend("a", "x", "flat", 0.1, scale="log"),
]


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.kind)
def test_claims_survive_json(test):
    claim = Claim("text", "source", {"a": 1.5}, test)
    assert claim_from_json(json.loads(json.dumps(asdict(claim)))) == claim


def test_claims_name_their_arms_and_axes():
    assert Claim("t", test=Crossover("a", "b", "x", at={"y": 1, "slice": "1-2"})).arms() == (
        "a",
        "b",
    )
    assert Claim("t", test=Crossover("a", "b", "x", at={"y": 1, "slice": "1-2"})).axes() == (
        "y",
        "x",
    )
    assert Claim("t").arms() == () and Claim("t").axes() == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Threshold("a"), "exactly one"),
        (lambda: Threshold("a", 0.1, 0.2), "exactly one"),
        (lambda: Equivalence("a", "b", 0), "margin > 0"),
        (lambda: Trend("a", "x", "flat"), "margin > 0"),
        (lambda: Trend("a", "x", "upward"), "increasing"),
        (lambda: restore_test({"kind": "directon"}), "Did you mean 'direction'"),
        (lambda: restore_test({"kind": "threshold", "arms": "a"}), "Did you mean 'arm'"),
    ],
)
def test_impossible_tests_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("metric", "better", "direction"),
    [
        ("", "", False),
        ("loss", "", False),
        ("loss_by_gap", "", False),
        ("accuracy", "", None),
        ("accuracy", "higher", True),
        ("budget/parameters", "", False),
        ("timing/steps_per_second", "", True),
    ],
)
def test_direction_of_a_metric(metric, better, direction):
    assert higher_is_better(metric, Outcome("loss", higher_is_better=False), better) is direction


def measured(values, higher=True):
    """{arm: {x: samples}} as a measure along the axis "x"; no axis when x is None."""
    points = list(dict.fromkeys(x for by_x in values.values() for x in by_x))
    return Measure(
        "accuracy",
        {
            (arm, point_key({} if x is None else {"x": x})): dict(enumerate(sample))
            for arm, by_x in values.items()
            for x, sample in by_x.items()
        },
        [{} if x is None else {"x": x} for x in points],
        higher,
    )


def verdict(test, values, higher=True):
    return judge(Claim("claim", test=test), lambda metric, better: measured(values, higher))


NOISE = [0.010, -0.008, 0.004, -0.011, 0.006]


def around(centre, turn=0, spread=1.0):
    """Five seeds around a value; `turn` gives another order, so that arms are not in step."""
    return [centre + spread * n for n in NOISE[turn:] + NOISE[:turn]]


def one_place(**samples):
    return {arm: {None: sample} for arm, sample in samples.items()}


CASES = [
    ("supported", Direction("a", "b", 0.3), one_place(a=around(0.9), b=around(0.5, 1))),
    ("refuted", Direction("a", "b", 0.3), one_place(a=around(0.9), b=around(0.8, 1))),
    ("inconclusive", Direction("a", "b", 0.3), one_place(a=around(0.9), b=around(0.6, 1))),
    ("refuted", Direction("a", "b"), one_place(a=around(0.5), b=around(0.9, 1))),
    ("inconclusive", Direction("a", "b"), one_place(a=[1.0] * 5, b=[1.0] * 5)),
    ("supported", Direction("a", "b", 0.3), one_place(a=[0.9] * 3, b=[0.6] * 3)),
    ("supported", Threshold("a", at_least=0.9), one_place(a=around(0.95))),
    ("refuted", Threshold("a", at_least=0.9), one_place(a=around(0.8))),
    ("inconclusive", Threshold("a", at_least=0.9), one_place(a=around(0.9))),
    ("supported", Threshold("a", at_least=1.0), one_place(a=[1.0] * 5)),
    ("supported", Threshold("a", at_most=0.3), one_place(a=around(0.2))),
    ("refuted", Threshold("a", at_most=0.3), one_place(a=around(0.4))),
    ("supported", Equivalence("a", "b", 0.05), one_place(a=around(0.9), b=around(0.9, 1))),
    ("refuted", Equivalence("a", "b", 0.05), one_place(a=around(0.9), b=around(0.7, 1))),
    ("inconclusive", Equivalence("a", "b", 0.005), one_place(a=around(0.9), b=around(0.9, 1))),
    ("supported", Equivalence("a", "b", 0.005), one_place(a=[1.0] * 3, b=[1.0] * 3)),
    ("supported", Trend("a", "x", "decreasing", 0.2), {"a": {1: around(0.9), 2: around(0.6)}}),
    ("refuted", Trend("a", "x", "increasing"), {"a": {1: around(0.9), 2: around(0.6)}}),
    ("inconclusive", Trend("a", "x", "increasing"), {"a": {1: around(0.9), 2: around(0.9, 2)}}),
    ("supported", Trend("a", "x", "flat", 0.1), {"a": {1: around(0.9), 2: around(0.9, 2)}}),
    ("refuted", Trend("a", "x", "flat", 0.1), {"a": {1: around(0.9), 2: around(0.5, 2)}}),
]


@pytest.mark.parametrize(("expected", "test", "values"), CASES)
def test_verdicts(expected, test, values):
    judgement = verdict(test, values)
    assert judgement.verdict == expected, judgement.reason
    assert judgement.reason.endswith(".")


def test_reason_holds_the_numbers():
    reason = verdict(Direction("a", "b", 0.3), one_place(a=around(0.9), b=around(0.5, 1))).reason
    # Differences .418 .388 .415 .383 .396: sd .0158, half width 2.776 * .0158 / sqrt(5) = .0196.
    assert reason == (
        "The advantage of a over b is 0.400 [0.380, 0.420] over 5 seeds, wholly above 0.3."
    )


def test_lower_is_better_turns_the_difference():
    values = one_place(a=around(0.5), b=around(0.9, 1))
    assert verdict(Direction("a", "b", 0.3), values, higher=False).verdict == "supported"
    assert verdict(Direction("a", "b", 0.3), values, higher=True).verdict == "refuted"
    # Thresholds and trends speak of the number itself.
    assert verdict(Threshold("a", at_most=0.6), values, higher=False).verdict == "supported"


def crossing(at_last):
    return {
        "a": {x: around(0.8, turn) for turn, x in enumerate((1, 2, 4))},
        "b": {1: around(0.5), 2: around(0.8, 2), 4: around(at_last, 1)},
    }


@pytest.mark.parametrize(
    ("value", "at_last", "expected"),
    [
        (None, 0.95, "supported"),
        (2, 0.95, "supported"),
        (None, 0.5, "refuted"),
        (None, 0.8, "inconclusive"),
        (1.5, 0.95, "inconclusive"),
        (9, 0.95, "inconclusive"),
    ],
)
def test_crossover(value, at_last, expected):
    judgement = verdict(Crossover("a", "b", "x", value=value), crossing(at_last))
    assert judgement.verdict == expected, judgement.reason
    if value == 9:
        assert "both sides" in judgement.reason


def test_a_claim_at_every_point_needs_every_point():
    values = {"a": {1: around(0.9), 2: around(0.9)}, "b": {1: around(0.5, 1), 2: around(0.9, 1)}}
    assert verdict(Direction("a", "b", at={"x": 1}), values).verdict == "supported"
    assert verdict(Direction("a", "b"), values).verdict == "inconclusive"
    values["b"][2] = around(0.99, 1)
    judgement = verdict(Direction("a", "b"), values)
    assert judgement.verdict == "refuted"
    assert "at x = 2" in judgement.reason and "Holm" in judgement.reason


def test_many_comparisons_widen_the_interval():
    places = {x: around(0.9, x % 5) for x in range(5)}
    several = verdict(Threshold("a", at_least=0.88), {"a": places})
    widths = [c.interval.high - c.interval.low for c in several.checks]
    alone = verdict(Threshold("a", at_least=0.88), {"a": {0: places[0]}}).checks[0].interval
    assert max(widths) > alone.high - alone.low


def test_one_seed_is_not_evidence():
    for test in (Direction("a", "b"), Equivalence("a", "b", 0.9), Threshold("a", at_least=0.1)):
        judgement = verdict(test, one_place(a=[0.9], b=[0.1]))
        assert judgement.verdict == "inconclusive"
        assert "one seed is not evidence" in judgement.reason


def test_missing_runs_leave_a_claim_open():
    judgement = verdict(Direction("a", "b"), {"a": {1: around(0.9)}, "b": {2: around(0.1)}})
    assert judgement.verdict == "inconclusive" and "no finished runs yet" in judgement.reason
    judgement = verdict(Direction("a", "b", at={"x": 7}), {"a": {1: around(0.9)}})
    assert judgement.verdict == "inconclusive" and "no point with x = 7" in judgement.reason


def test_a_claim_without_a_test_shows_figures():
    claim = Claim("text", published={"a": 26.75, "Moses": 33.3})
    judgement = judge(claim, lambda *_: measured(one_place(a=around(0.9))))
    assert judgement.verdict == "not tested"
    assert list(judgement.ours) == ["a"]
    assert judgement.ours["a"].mean == pytest.approx(0.9, abs=0.01)


@given(st.integers(0, 2**32 - 1))
def test_a_true_null_is_rarely_excluded(seed):
    """With five comparisons of equal arms, a wrong exclusion is as rare as Holm promises."""
    generator = np.random.default_rng(seed)
    wrong = 0
    for _ in range(40):
        quantities = [_null(generator.normal(0, 1, 4)) for _ in range(5)]
        wrong += any(c.verdict != "inconclusive" for c in check(quantities))
    # Binomial(40, 0.05) exceeds 12 with probability 2e-7.
    assert wrong <= 12


def _null(sample):
    error = float(np.std(sample, ddof=1)) / 2
    return Quantity("", "", float(np.mean(sample)), error, 3.0, 4, 0.0, math.inf, True)


@pytest.mark.parametrize(
    ("values", "positions"),
    [
        ([1, 2, 8], [1, 2, 8]),
        (["1-2", "3-4", "5-8", "> 8", "32+"], [1.5, 3.5, 6.5, 8, 32]),
        (["rope", "alibi"], [0, 1]),
        (["1-3", "2"], [0, 1]),
        ([True, False], [0, 1]),
    ],
)
def test_axis_positions(values, positions):
    assert axis_positions(values) == positions


@given(
    st.lists(
        st.tuples(st.integers(-99, 99), st.floats(-9, 9)), min_size=2, unique_by=lambda p: p[0]
    )
)
def test_slope_is_numpys(pairs):
    x, y = zip(*pairs, strict=True)
    assert slope(pairs) == pytest.approx(np.polyfit(x, y, 1)[0], abs=1e-6)
