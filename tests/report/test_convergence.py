"""Verdicts that rest on an arm's being no better ask whether it had stopped getting better."""

from dataclasses import replace

import numpy as np
import pytest

from research.ablation.claims import (
    Claim,
    Crossover,
    Direction,
    Equivalence,
    Threshold,
    claim_from_json,
)
from research.ablation.experiment import Experiment, Outcome
from research.ablation.measure import Measure, Progress, point_key
from research.ablation.registration import claim_hash
from research.report.judging.convergence import FLAT
from research.report.judging.curves import gain
from research.report.judging.evidence import load_study
from research.report.judging.measuring import measure
from research.report.judging.verdicts import judge
from tests.report.synthetic_sweep import build, plausible

LEARNED = 0.8
FLAT_GAINS = dict(enumerate([0.001, -0.002, 0.003, 0.0, -0.001]))
RISING = dict(enumerate([0.05, 0.06, 0.04, 0.05, 0.055]))
NOISE = [0.010, -0.008, 0.004, -0.011, 0.006]


def progress(gains, own=True, learned=LEARNED, **how):
    return Progress("accuracy" if own else "loss", own, gains, learned, **how)


def judged(test, means, rising=(), higher=True, within_steps=False, **how):
    """The verdict on arms of five seeds about their means, those in `rising` not converged."""
    values = {
        (arm, point_key({})): {s: mean + (-1) ** i * NOISE[s] for s in range(5)}
        for i, (arm, mean) in enumerate(means.items())
    }
    curves = {(a, ()): progress(RISING if a in rising else FLAT_GAINS) for a in means}
    how = {"progress": curves} | how
    data = Measure("accuracy", values, [{}], higher, **how)
    return judge(Claim("", test=test, within_steps=within_steps), lambda *_: data)


APART = {"a": 0.9, "b": 0.4}


@pytest.mark.parametrize(
    ("test", "means", "higher", "verdict", "asked"),
    [
        # The last column: whose curve the verdict rests on.
        (Direction("a", "b"), APART, True, "supported", "b"),
        (Direction("b", "a"), APART, True, "refuted", "b"),
        (Direction("a", "b"), APART, False, "refuted", "a"),
        (Direction("b", "a"), APART, False, "supported", "a"),
        (Direction("a", "b", 0.7), APART, True, "refuted", "a"),
        (Equivalence("a", "b", 0.1), APART, True, "refuted", "b"),
        (Equivalence("a", "b", 0.1), {"a": 0.9, "b": 0.9}, True, "supported", ""),
        (Threshold("b", at_least=0.6), APART, True, "refuted", "b"),
        (Threshold("b", at_least=0.2), APART, True, "supported", ""),
        (Threshold("b", at_most=0.6), APART, True, "supported", "b"),
        (Threshold("b", at_most=0.2), APART, True, "refuted", ""),
        (Threshold("b", at_most=0.2), APART, False, "refuted", "b"),
        (Threshold("b", at_least=0.2), APART, False, "supported", "b"),
        (Threshold("b", at_least=0.6, share=0.5), APART, True, "refuted", "b"),
        (Threshold("b", at_most=0.6, share=0.5), APART, True, "supported", "b"),
        (Threshold("b", at_least=0.2, share=0.5), APART, True, "supported", ""),
        # Nothing is better of what only describes a model.
        (Threshold("b", at_most=0.6), APART, None, "supported", ""),
    ],
)
def test_the_arm_that_is_no_better_has_to_be_flat(test, means, higher, verdict, asked):
    for rising in ("a", "b"):
        found = judged(test, means, rising, higher)
        expected = "cannot tell" if rising == asked else verdict
        assert found.verdict == expected, (rising, found.reason)
        assert (f"{asked} is not shown to have converged" in found.why.lower()) == (rising == asked)
        # A claim of these steps does not ask.
        assert judged(test, means, rising, higher, within_steps=True).verdict == verdict
    without = judged(test, means, higher=higher, progress={})
    assert without.verdict == ("cannot tell" if asked else verdict)
    assert ("not testable: no curve of accuracy" in without.why) == bool(asked)


def test_of_an_outcome_that_is_solved_the_other_seeds_decide():
    def solving(n, gains):
        solved = {s: 0.99 if s < n else 0.3 for s in range(6)}
        values = {("a", ()): dict.fromkeys(range(6), 0.99), ("b", ()): solved}
        data = Measure(
            *("accuracy", values, [{}], True),
            solved=0.95,
            progress={("b", ()): progress(gains)},
        )
        return judge(Claim("", test=Direction("a", "b")), lambda *_: data).verdict

    # One of six seeds solved the task, and rose at the end; the others are flat, or are not.
    first = {0: 0.3}
    rest = {s: 0.001 * (-1) ** s for s in range(1, 6)}
    assert solving(1, first | rest) == "supported"
    assert solving(1, first | {s: 0.05 + 0.001 * s for s in rest}) == "cannot tell"


def test_a_small_lack_asks_for_a_flatter_curve():
    """As much training again at the slope of the end must not make it up."""
    slow = dict(enumerate([0.010, 0.0098, 0.0102, 0.0101, 0.0099]))  # 2 % of .8 is .016
    for lack, expected in ((0.2, "supported"), (0.03, "cannot tell")):
        means = {"a": 0.6 + lack, "b": 0.6}
        curves = {("b", ()): progress(slow)}
        assert judged(Direction("a", "b"), means, progress=curves).verdict == expected
        # The loss has other units, so that there is nothing to hold the lack against.
        curves = {("b", ()): progress(slow, own=False)}
        assert judged(Direction("a", "b"), means, progress=curves).verdict == "supported"


def test_one_flat_place_is_enough_to_refute_and_all_are_needed_to_support():
    points = [{"x": 1}, {"x": 2}]
    values = {
        (arm, point_key(p)): {s: mean + (-1) ** i * NOISE[s] for s in range(5)}
        for i, (arm, mean) in enumerate(APART.items())
        for p in points
    }
    curves = {
        ("b", point_key(points[0])): progress(FLAT_GAINS),
        ("b", point_key(points[1])): progress(RISING),
        ("a", point_key(points[0])): progress(RISING),
        ("a", point_key(points[1])): progress(RISING),
    }
    data = Measure("accuracy", values, points, True, progress=curves)

    def verdict(test):
        return judge(Claim("", test=test), lambda *_: data)

    assert verdict(Direction("a", "b")).verdict == "cannot tell"
    found = verdict(Direction("b", "a"))
    assert found.verdict == "refuted" and "1 of 2 comparisons" in found.why
    assert verdict(Direction("a", "b", at={"x": 1})).verdict == "supported"
    assert verdict(Crossover("a", "b", "x")).verdict == "cannot tell"


def test_an_arm_at_the_border_is_called_flat_in_one_case_of_twenty():
    generator = np.random.default_rng(0)
    border, found = FLAT * LEARNED, []
    for n in (3, 5, 10):
        flat = 0
        for _ in range(2000):
            gains = dict(enumerate(generator.normal(border, 0.01, n).tolist()))
            data = {"progress": {("b", ()): progress(gains)}}
            flat += judged(Direction("a", "b"), APART, **data).verdict == "supported"
        found.append(flat / 2000)
    # Three standard errors of .05 over 2,000 draws.
    assert found == pytest.approx([0.05] * 3, abs=0.015)


def test_gain_is_the_slope_of_the_last_quarter():
    generator = np.random.default_rng(0)
    steps = np.arange(0, 1001, 50)
    values = generator.normal(0, 1, len(steps)) + 0.01 * steps
    late = steps >= 750
    slope = np.polyfit(steps[late], values[late], 1)[0]
    curve = list(zip(steps.tolist(), values.tolist(), strict=True))
    assert gain(curve) == pytest.approx(slope * 250)
    assert gain([]) is None
    assert gain([(0, 0.1), (500, 0.2), (900, 0.3), (1000, 0.4)]) is None


EXPERIMENT = Experiment(
    question="Is b worse?",
    base="configs/recall.py",
    arms={"a": {}, "b": {"model.width": 16}},
    seeds=tuple(range(5)),
    outcome=Outcome("accuracy", higher_is_better=True),
    directions={"loss": False},
)


@pytest.mark.parametrize("rising", [False, True])
def test_curves_are_read_off_the_runs(tmp_path, rising):
    def simulate(arm, point, tuned, seed, generator):
        run = plausible((0.9 if arm == "a" else 0.5) + NOISE[seed], generator)
        for row in run["rows"]:
            late = max(0.0, row["step"] - 500) / 500
            row["validation/accuracy"] += 0.2 * late * (rising and arm == "b")
            row["validation/loss"] = 3.0 - row["validation/accuracy"]
        return run

    study = load_study(build(tmp_path, EXPERIMENT, simulate))
    found = measure(study).progress
    assert set(found) == {("a", ()), ("b", ())}
    mine, other = found["b", ()], found["a", ()]
    assert mine.own and set(mine.gains) == set(range(5))
    assert mine.learned == other.learned == pytest.approx(0.85, abs=0.02)
    assert np.mean(list(mine.gains.values())) == pytest.approx(0.1 * rising, abs=0.01)
    verdict = judge(Claim("", test=Direction("a", "b")), lambda m, b: measure(study, m, b))
    assert verdict.verdict == ("cannot tell" if rising else "supported")
    # A slice goes the way of its metric, and what has no curve that of the loss.
    sliced = measure(study, "accuracy_by_gap").progress["b", ()]
    assert (sliced.curve, sliced.own) == ("accuracy", False)
    loss = measure(study, "loss").progress["b", ()]
    assert loss.own and loss.gains == pytest.approx(mine.gains)
    assert measure(study, "bleu", "higher").progress["b", ()].curve == "loss"
    assert measure(study, "bleu", "higher").progress["b", ()].gains == pytest.approx(mine.gains)
    assert not measure(study, "budget/parameters").progress


def test_few_evaluations_and_lost_curves_are_said(tmp_path):
    def seldom(arm, point, tuned, seed, generator):
        run = plausible((0.9 if arm == "a" else 0.5) + NOISE[seed], generator)
        run["rows"] = run["rows"][::10] if arm == "b" else []
        return run

    study = load_study(build(tmp_path, EXPERIMENT, seldom))

    def why(margin):
        claim = Claim("", test=Direction("a", "b", margin))
        return judge(claim, lambda m, b: measure(study, m, b)).why

    assert "b has converged is not testable: its curve has fewer than 3 evaluations" in why(0.1)
    assert "a has converged is not testable: no curve of accuracy or of the loss" in why(0.6)


def test_claims_of_these_steps_are_kept_apart():
    claim = Claim("t", test=Direction("a", "b"))
    within = replace(claim, within_steps=True)
    assert claim_from_json({"text": "t", "within_steps": True}).within_steps
    assert not claim_from_json({"text": "t"}).within_steps
    # Saying so after the runs is another claim.
    assert claim_hash(within) != claim_hash(claim)
