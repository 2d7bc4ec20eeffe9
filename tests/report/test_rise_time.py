"""The rise time of a learning curve, against curves whose rise is known."""

import math

import numpy as np
import pytest

from research.ablation.claims import Claim, Direction, Threshold
from research.ablation.experiment import Experiment, Outcome
from research.report.judging.evidence import load_study
from research.report.judging.measuring import measure, rise_time
from research.report.judging.study import Run
from research.report.write import write_report
from tests.report.synthetic_sweep import build, plausible

OUTCOME = Outcome("accuracy", solved=0.9, higher_is_better=True)


def run(steps, values, status="completed", metric="accuracy"):
    rows = [{"step": s, f"validation/{metric}": v} for s, v in zip(steps, values, strict=True)]
    return Run("id", "arm", {}, "report", {}, 0, status, {}, rows, {}, {})


def test_a_steady_rise_takes_three_fifths():
    steps = np.arange(100, 1001, 100)
    # The first evaluation is where the way begins: 0.6 of the 900 steps after it.
    assert rise_time(run(steps, 0.1 + 0.0008 * steps), OUTCOME) == pytest.approx(0.54)
    assert rise_time(run([0, 1000], [0.0, 0.9]), OUTCOME) == pytest.approx(0.6)


@pytest.mark.parametrize("width", [5.0, 20.0, 60.0])
def test_a_logistic_rise(width):
    """From 20 to 80 % of the way to .9: a logistic passes 17/90 and 67/90 of its own way of .9."""
    steps = np.arange(0, 1001, 2)
    values = 0.05 + 0.9 / (1 + np.exp(-(steps - 400) / width))
    logit = lambda part: math.log(part / (1 - part))  # noqa: E731
    expected = (logit(0.68 / 0.9) - logit(0.17 / 0.9)) * width / 1000
    assert rise_time(run(steps, values), OUTCOME) == pytest.approx(expected, rel=0.01)


def test_between_evaluations_it_is_linear_and_a_falling_metric_rises_too():
    # From 4 to 0: 20 % of the way, 3.2, after 10 + 0.8 / 2 * 10 steps, 80 %, 0.8, at 20 + 6.
    falling = run([10, 20, 30, 40], [4.0, 2.0, 0.0, 0.0], metric="loss")
    outcome = Outcome("loss", higher_is_better=False, solved=0.0)
    assert rise_time(falling, outcome) == pytest.approx((26 - 14) / 40)


def test_runs_without_a_rise_have_none():
    assert rise_time(run([10, 20], [0.1, 0.1]), OUTCOME) is None
    assert rise_time(run([10], [0.1]), OUTCOME) is None
    assert rise_time(run([10, 20], [0.1, 0.9], status="waiting"), OUTCOME) is None
    # A curve that wanders without solving the task had a rise time of its own noise.
    assert rise_time(run([0, 10, 20, 30], [0.05, 0.07, 0.06, 0.08]), OUTCOME) is None
    assert rise_time(run([0, 10], [0.95, 0.99]), OUTCOME) is None
    # Without a threshold there is no level to rise to.
    free = Outcome("accuracy", higher_is_better=True)
    assert rise_time(run([0, 10], [0.0, 1.0]), free) is None
    # What is not a number is passed over.
    assert rise_time(run([0, 5, 10], [0.0, None, 0.9]), OUTCOME) == pytest.approx(0.6)


def test_claims_and_reports_have_it(tmp_path):
    experiment = Experiment(
        question="Abrupt?",
        base="configs/recall.py",
        arms={"sudden": {}, "late": {"model.width": 8}},
        seeds=(0, 1, 2),
        outcome=OUTCOME,
        claims=(
            Claim("It is sudden.", test=Threshold("sudden", at_most=0.3, metric="rise_time")),
            Claim(
                "It is not.", test=Direction("late", "sudden", metric="rise_time", better="lower")
            ),
        ),
    )

    def simulate(arm, point, tuned, seed, generator):
        return plausible(1.0, generator)

    build(tmp_path, experiment, simulate)
    study = load_study(tmp_path)
    data = measure(study, "rise_time")
    assert data.higher_is_better is None
    values = data.values["sudden", ()]
    # The made-up curves are logistic with a width of 0.06 and end at 1.
    assert sorted(values) == [0, 1, 2]
    np.testing.assert_allclose(list(values.values()), 2.4 * 0.06, rtol=0.15)
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "rise time" in text and "rise_time" in (tmp_path / "results.csv").read_text()
