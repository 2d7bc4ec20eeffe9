"""Verdicts on claims, from made-up samples."""

import math

import numpy as np
import pytest
import scipy.stats

from benchmarks import verdicts
from research.ablation.claims import (
    Claim,
    Crossover,
    Direction,
    Equivalence,
    Threshold,
    Trend,
)
from research.ablation.measure import COSTS, STOPWATCH, TIMES, TURNS, Measure, point_key
from research.report.judging.axis_points import axis_positions
from research.report.judging.verdicts import judge, judge_all

UNDECLARED = ("undeclared 0.9", "equivalence")


def measured(values, higher=True, **how):
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
        **how,
    )


def verdict(test, values, higher=True, **how):
    # Made-up samples have no curves: tests/report/test_convergence.py is about these.
    claim = Claim("claim", test=test, within_steps=True)
    return judge(claim, lambda *_: measured(values, higher, **how))


NOISE = [0.010, -0.008, 0.004, -0.011, 0.006]


def around(centre, turn=0, spread=1.0):
    """Five seeds around a value; `turn` gives another order, so that arms are not in step."""
    return [centre + spread * n for n in NOISE[turn:] + NOISE[:turn]]


def one_place(**samples):
    return {arm: {None: sample} for arm, sample in samples.items()}


def along(**samples):
    """{arm: [samples at x = 1, 2, ...]}."""
    return {arm: dict(enumerate(values, 1)) for arm, values in samples.items()}


CASES = [
    ("supported", Direction("a", "b", 0.3), one_place(a=around(0.9), b=around(0.5, 1))),
    ("refuted", Direction("a", "b", 0.3), one_place(a=around(0.9), b=around(0.8, 1))),
    ("open", Direction("a", "b", 0.3), one_place(a=around(0.9), b=around(0.6, 1))),
    ("refuted", Direction("a", "b"), one_place(a=around(0.5), b=around(0.9, 1))),
    # Seeds that are all alike say nothing of others.
    ("cannot tell", Direction("a", "b"), one_place(a=[1.0] * 5, b=[1.0] * 5)),
    ("cannot tell", Direction("a", "b", 0.3), one_place(a=[0.99] * 3, b=[0.6] * 3)),
    ("supported", Direction("a", "b", 0.3), one_place(a=around(0.9), b=[0.5] * 5)),
    ("supported", Threshold("a", at_least=0.9), one_place(a=around(0.95))),
    ("refuted", Threshold("a", at_least=0.9), one_place(a=around(0.8))),
    ("open", Threshold("a", at_least=0.9), one_place(a=around(0.9))),
    ("cannot tell", Threshold("a", at_least=0.9), one_place(a=[1.0] * 5)),
    # A single mean is tested with caution: 2.4 standard errors are not enough, nor are 8.
    ("open", Threshold("a", at_least=0.9), one_place(a=around(0.93))),
    # A share of seeds, which five that agree can tell from a half, and four cannot.
    ("supported", Threshold("a", at_least=1.0, share=0.5), one_place(a=[1.0] * 5)),
    ("cannot tell", Threshold("a", at_least=1.0, share=0.5), one_place(a=[1.0] * 4)),
    ("cannot tell", Threshold("a", at_least=1.0, share=0.8), one_place(a=[1.0] * 13)),
    ("supported", Threshold("a", at_least=1.0, share=0.8), one_place(a=[1.0] * 14)),
    ("supported", Threshold("a", at_most=0.3), one_place(a=around(0.2))),
    ("refuted", Threshold("a", at_most=0.3), one_place(a=around(0.4))),
    ("supported", Equivalence("a", "b", 0.05), one_place(a=around(0.9), b=around(0.9, 1))),
    ("refuted", Equivalence("a", "b", 0.05), one_place(a=around(0.9), b=around(0.7, 1))),
    ("open", Equivalence("a", "b", 0.005), one_place(a=around(0.9), b=around(0.9, 1))),
    ("cannot tell", Equivalence("a", "b", 0.005), one_place(a=[1.0] * 3, b=[1.0] * 3)),
    ("supported", Trend("a", "x", "decreasing", 0.2), along(a=[around(0.9), around(0.6)])),
    ("refuted", Trend("a", "x", "increasing"), along(a=[around(0.9), around(0.6)])),
    ("open", Trend("a", "x", "increasing"), along(a=[around(0.9), around(0.9, 2)])),
    ("supported", Trend("a", "x", "flat", 0.1), along(a=[around(0.9), around(0.9, 2)])),
    ("refuted", Trend("a", "x", "flat", 0.1), along(a=[around(0.9), around(0.5, 2)])),
    # A line through the values would call the first flat and the second increasing.
    ("refuted", Trend("a", "x", "flat", 0.1), along(a=[around(1.0), around(0.3), around(1.0)])),
    (
        "refuted",
        Trend("a", "x", "increasing"),
        along(a=[around(0.2), around(0.6), around(0.9), around(0.5)]),
    ),
]


@pytest.mark.parametrize(("expected", "test", "values"), CASES)
def test_verdicts(expected, test, values):
    judgement = verdict(test, values)
    assert judgement.verdict == expected, judgement.reason
    assert judgement.reason.endswith(".")


def solving(a, b, n=5):
    """Two arms of n seeds, of which a and b solve the task."""
    return one_place(**{k: [0.99] * s + [0.3] * (n - s) for k, s in (("a", a), ("b", b))})


@pytest.mark.parametrize(
    ("expected", "test", "values", "why"),
    [
        ("supported", Direction("a", "b", 0.3), solving(5, 0), ""),
        ("open", Direction("a", "b"), solving(5, 3), "do not decide"),
        ("open", Direction("a", "b", 0.3), solving(4, 1), "do not decide"),
        ("refuted", Direction("a", "b"), solving(0, 5), ""),
        ("cannot tell", Direction("a", "b"), solving(0, 0), "no seed of a or b solves"),
        ("cannot tell", Direction("a", "b"), solving(5, 5), "neither can be better"),
        ("cannot tell", Direction("a", "b"), solving(2, 0, n=2), "it takes at least 3"),
        ("cannot tell", Equivalence("a", "b", 0.05), solving(5, 5), "more than 64"),
        ("cannot tell", Equivalence("a", "b", 0.9), solving(1, 1), "fails in most seeds"),
        ("supported", Equivalence("a", "b", 0.8), solving(5, 5), ""),
    ],
)
def test_of_a_task_that_is_solved_or_not_the_probability_is_judged(expected, test, values, why):
    judgement = verdict(test, values, solved=0.95)
    assert judgement.verdict == expected, judgement.reason
    assert why.lower() in judgement.why.lower()
    assert "probability to solve" in judgement.tested and "(accuracy ≥ 0.95)" in judgement.tested


def test_neither_arm_is_judged_by_guessing():
    both = one_place(a=around(0.265), b=around(0.27, 1))
    for test in (Direction("a", "b", 0.1), Equivalence("a", "b", 0.1)):
        judgement = verdict(test, both, chance=0.27)
        assert judgement.verdict == "cannot tell" and "guessing (0.270)" in judgement.why
        assert verdict(test, both).verdict in ("supported", "refuted")
    # One arm above it is a positive control.
    control = one_place(a=around(0.5), b=around(0.27, 1))
    assert verdict(Direction("a", "b", 0.1), control, chance=0.27).verdict == "supported"


def test_steps_are_judged_by_their_order():
    never = [math.inf] * 5
    values = one_place(a=[100, 200, 150, 300, 250], b=[400, 900, 700, 500, math.inf], c=never)
    how = {"higher": False, "kind": TIMES}
    assert verdict(Direction("a", "b"), values, **how).verdict == "supported"
    assert verdict(Direction("b", "a"), values, **how).verdict == "refuted"
    assert verdict(Direction("a", "c"), values, **how).verdict == "supported"
    judgement = verdict(Equivalence("c", "c", 1), values, **how)
    assert judgement.verdict == "cannot tell" and "ever got there" in judgement.why
    judgement = verdict(Direction("a", "b", 50), values, **how)
    assert judgement.verdict == "cannot tell" and "only the order" in judgement.why


def test_costs_are_the_same_for_every_seed():
    values = one_place(a=[10.0] * 3, b=[30.0] * 3)
    how = {"higher": False, "kind": COSTS}
    assert verdict(Direction("a", "b", 15), values, **how).verdict == "supported"
    assert verdict(Direction("a", "b", 25), values, **how).verdict == "refuted"
    assert verdict(Threshold("a", at_most=10), values, **how).verdict == "supported"
    assert verdict(Threshold("a", at_most=9), values, **how).verdict == "refuted"


def test_times_are_compared_in_rounds_in_which_arms_took_turns():
    """A load that slows a round slows both arms, so that the ratio of a round does not see it."""
    load = [1.0, 1.3, 2.0, 1.1, 1.6]
    near = [x * (1 + n) for x, n in zip(load, NOISE, strict=True)]
    values = one_place(a=near, b=[1.2 * x for x in load], c=[5.0], d=[])
    how = {"higher": False, "kind": TURNS}
    judgement = verdict(Direction("a", "b", 0.1), values, **how)
    ratios = [1.2 / (1 + n) - 1 for n in NOISE]
    interval = scipy.stats.t.interval(0.95, 4, np.mean(ratios), scipy.stats.sem(ratios))
    assert judgement.verdict == "supported"
    assert (judgement.checks[0].low, judgement.checks[0].high) == pytest.approx(interval)
    assert judgement.effect.startswith("Time of a step of b over that of a, minus one: 0.200 [")
    assert "over 5 rounds in which the arms took turns" in judgement.effect
    assert judgement.tested.endswith("of a is lower than that of b by more than 10 %.")
    assert verdict(Direction("a", "b", 0.3), values, **how).verdict == "refuted"
    assert verdict(Direction("b", "a"), values, **how).verdict == "refuted"
    assert verdict(Equivalence("a", "b", 0.25), values, **how).verdict == "supported"
    judgement = verdict(Direction("a", "c"), values, **how)
    assert judgement.verdict == "cannot tell" and "One round" in judgement.why
    assert verdict(Direction("a", "d"), values, **how).verdict == "cannot tell"


def test_one_clock_is_no_sample():
    values = one_place(a=[10.0] * 3, b=[30.0] * 3)
    judgement = verdict(Direction("a", "b"), values, kind=STOPWATCH)
    assert judgement.verdict == "cannot tell" and "One clock" in judgement.why


def test_sentences_hold_the_numbers_and_what_was_tested():
    judgement = verdict(Direction("a", "b", 0.3), one_place(a=around(0.9), b=around(0.5, 1)))
    # Both standard deviations are .00923: error .00584 on 8 degrees of freedom, times 2.306.
    assert judgement.effect == (
        "Mean accuracy of a minus that of b: 0.400 [0.387, 0.413] "
        "(95 % interval, Welch, over 5 seeds of each)."
    )
    assert judgement.tested == (
        "Tested: the mean accuracy of a is higher than that of b by more than 0.3."
    )
    judgement = verdict(Threshold("a", at_least=0.9, share=0.5), one_place(a=around(0.95)))
    assert judgement.effect == (
        "Share of seeds of a with accuracy ≥ 0.9: 5 of 5 "
        "(a probability of at least 0.55, one-sided 95 % bounds, exact)."
    )
    assert judgement.tested == "Tested: most seeds of a have accuracy ≥ 0.9."
    # The seeds of an outcome with a threshold are counted without being asked.
    solved = verdict(Threshold("a", at_least=0.9), one_place(a=around(0.95)), solved=0.9)
    assert (solved.effect, solved.tested) == (judgement.effect, judgement.tested)
    judgement = verdict(Threshold("a", at_least=0.9), one_place(a=around(0.95)))
    # .95 + .0002, error .00413, of which the t quantile of 1 - .05 / 60 on 4 degrees is 7.53.
    assert judgement.effect == (
        "Mean accuracy of a: 0.950 [0.919, 0.981] "
        "(95 % interval, t, widened for skewed outcomes, over 5 seeds)."
    )
    assert judgement.tested == "Tested: the mean accuracy of a is ≥ 0.9."


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
        (None, 0.8, "open"),
        (1.5, 0.95, "open"),
        (9, 0.95, "cannot tell"),
    ],
)
def test_crossover(value, at_last, expected):
    judgement = verdict(Crossover("a", "b", "x", value=value), crossing(at_last))
    assert judgement.verdict == expected, judgement.reason
    if value == 9:
        assert "both sides" in judgement.reason


def test_a_claim_at_every_point_needs_every_point_and_no_correction():
    values = along(a=[around(0.9), around(0.9)], b=[around(0.5, 1), around(0.9, 1)])
    assert verdict(Direction("a", "b", at={"x": 1}), values).verdict == "supported"
    assert verdict(Direction("a", "b"), values).verdict == "open"
    # Just significant at each of six points is significant at all of them.
    alone = verdict(Direction("a", "b"), one_place(a=around(0.9), b=around(0.886, 2)))
    everywhere = along(a=[around(0.9)] * 6, b=[around(0.886, 2)] * 6)
    assert alone.verdict == verdict(Direction("a", "b"), everywhere).verdict == "supported"
    # But for a refutation one point in six is to be expected by chance.
    values = along(a=[around(0.9)] * 6, b=[around(0.914, 2), *[around(0.8)] * 5])
    assert verdict(Direction("a", "b"), values).verdict == "open"
    values["b"][1] = around(0.99, 1)
    judgement = verdict(Direction("a", "b"), values)
    assert judgement.verdict == "refuted" and "at x = 1" in judgement.effect
    assert "at every point" in judgement.tested and "1 of 6 comparisons" in judgement.why


def test_the_primary_claims_of_an_experiment_are_corrected_together():
    weak = Claim("weak", test=Direction("a", "b"), within_steps=True)
    data = measured(one_place(a=around(0.9), b=around(0.886, 2)))
    assert judge(weak, lambda *_: data).verdict == "supported"
    judged = judge_all([weak] * 4, lambda *_: data)
    assert {j.verdict for j in judged} == {"open"}
    assert all("Corrected for 4 claims (Holm)" in j.why and j.level == 0.0125 for j in judged)
    wide, narrow = judged[0].checks[0], judge(weak, lambda *_: data).checks[0]
    assert wide.high - wide.low > narrow.high - narrow.low and "98.8 % interval" in judged[0].effect
    # An exploratory claim costs the others nothing, and says what it is.
    aside = Claim("aside", test=Direction("a", "b"), primary=False, within_steps=True)
    first, second = judge_all([weak, aside], lambda *_: data)
    assert first.verdict == second.verdict == "supported"
    assert "Exploratory" in second.why and "Exploratory" not in first.why


def test_verdicts_leave_room_for_the_choice_of_tuned_values():
    """Two standard deviations of it; the intervals say so, and two arms add up in squares."""
    values = one_place(a=around(0.9), b=around(0.85, 1))
    choice = {("a", ()): 0.003, ("b", ()): 0.004}
    plain, tuned = (verdict(Direction("a", "b"), values, choice=c) for c in ({}, choice))
    assert (plain.verdict, tuned.verdict) == ("supported", "supported")
    one, other = plain.checks[0], tuned.checks[0]
    assert (other.low, other.high) == pytest.approx((one.low - 0.01, one.high + 0.01))
    assert "± 0.010 for the choice of tuned values" in tuned.effect
    wide = {("a", ()): 0.03, ("b", ()): 0.04}
    for test in (Direction("a", "b"), Direction("b", "a"), Equivalence("a", "b", 0.09)):
        assert verdict(test, values).verdict != "open"
        assert verdict(test, values, choice=wide).verdict == "open"
    # Of shares, too: five of five against none is beyond .3, but not by as much again.
    for room, expected in ((0.0, "supported"), (0.2, "open")):
        judged = verdict(
            Direction("a", "b", 0.3), solving(5, 0), solved=0.95, choice={("a", ()): room}
        )
        assert judged.verdict == expected and -1 <= judged.checks[0].low
    share = Threshold("a", at_least=0.9)
    judged = verdict(share, one_place(a=[0.95] * 8), solved=0.9, choice={("a", ()): 0.1})
    assert judged.verdict == "open" and "at least 0.49" in judged.effect


def test_one_seed_is_not_evidence():
    for test in (Direction("a", "b"), Equivalence("a", "b", 0.9), Threshold("a", at_least=0.1)):
        judgement = verdict(test, one_place(a=[0.9], b=[0.1]))
        assert judgement.verdict == "cannot tell"
        assert "one seed is not evidence" in judgement.reason.lower()


def test_missing_runs_leave_a_claim_undecided():
    judgement = verdict(Direction("a", "b"), {"a": {1: around(0.9)}, "b": {2: around(0.1)}})
    assert judgement.verdict == "cannot tell" and "no finished runs of b" in judgement.reason
    judgement = verdict(Direction("a", "b", at={"x": 7}), {"a": {1: around(0.9)}})
    assert judgement.verdict == "cannot tell" and "no point with x = 7" in judgement.reason


def test_a_claim_without_a_test_shows_figures():
    claim = Claim("text", published={"a": 26.75, "Moses": 33.3})
    judgement = judge(claim, lambda *_: measured(one_place(a=around(0.9))))
    assert judgement.verdict == "not tested"
    assert list(judgement.ours) == ["a"]
    assert judgement.ours["a"].mean == pytest.approx(0.9, abs=0.01)


def test_simulated_verdicts_are_rarely_wrong():
    """The short form of benchmarks/verdicts.py: 20 repeats of every cell at 5 seeds."""
    for cell in verdicts.cells():
        found = verdicts.judged(cell, 5, 20, seed=1)
        wrong = {v: found[v] for v in cell.wrong}
        # Binomial(20, 0.05) exceeds 6 with probability 3e-5; these are about 130 numbers.
        if not cell.shape.startswith(verdicts.BLIND):
            assert all(share <= 6 / 20 for share in wrong.values()), (cell.shape, cell.verdict)
    # What the threshold is for: without one, a failure that was not seen does not count.
    blind = next(c for c in verdicts.cells() if (c.shape, c.verdict) == UNDECLARED)
    assert verdicts.judged(blind, 3, 40, seed=1)["supported"] > 0.5
    # What the results of test items are for: without them, the sample of items counts as the truth.
    known, unknown = (
        next(c for c in verdicts.cells() if (c.shape, c.verdict) == (shape, "direction"))
        for shape in ("one test set", "one test set, seeds only")
    )
    assert verdicts.judged(known, 5, 100, seed=1)["coverage"] >= 0.9
    assert verdicts.judged(unknown, 5, 100, seed=1)["coverage"] < 0.8


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


@pytest.mark.parametrize(
    ("test", "ends"),
    [
        (Threshold("a", at_least=0.5), (0.0, 1.0)),
        (Direction("a", "b"), (-1.0, 1.0)),
    ],
)
def test_intervals_end_at_the_possible_values(test, ends):
    """A t interval of fractions near 1 reaches beyond it; what is cut off is not possible."""
    values = one_place(a=[1.0, 1.0, 0.7], b=[0.0, 0.0, 0.4])
    free, cut = (verdict(test, values, **how).checks[0] for how in ({}, {"ends": (0.0, 1.0)}))
    assert free.high > ends[1] == cut.high
    assert cut.low == max(free.low, ends[0])
    assert (cut.quantity.support, cut.verdict) == (free.quantity.support, free.verdict)
