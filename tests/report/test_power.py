"""What a number of seeds can show, against simulation."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from research.ablation.claims import Claim, Direction, Threshold
from research.ablation.experiment import Experiment, Outcome
from research.report.judging.evidence import load_study
from research.report.judging.power import power_lines
from research.stats import Component, ProportionDifference, welch
from tests.report.synthetic_sweep import build, on_items, plausible

EXPERIMENT = Experiment(
    question="Which?",
    base="configs/recall.py",
    arms={"a": {}, "b": {"model.width": 16}},
    seeds=tuple(range(8)),
    outcome=Outcome("accuracy", solved=0.95, higher_is_better=True),
    claims=(
        Claim("a", test=Threshold("a", at_least=0.95)),
        Claim("b", test=Direction("a", "b", 0.2)),
        Claim("c", test=Direction("a", "b", metric="loss", better="lower")),
    ),
)


def test_what_eight_seeds_can_show():
    head, share, solving, mean = power_lines(EXPERIMENT)
    assert head == "8 seeds, 3 claims corrected together:"
    # .5 ** 6 is below .05 / 3; of 8 seeds 8 have to, which has the probability .9 ** 8.
    assert "takes at least 6 seeds" in share and f"{0.9**8:.2f}" in share
    generator = np.random.default_rng(0)
    drawn = zip(generator.binomial(8, 0.9, 4000), generator.binomial(8, 0.1, 4000), strict=True)
    shown = [2 * ProportionDifference(i, 8, j, 8).p_above(0.2) <= 0.05 / 3 for i, j in drawn]
    assert float(solving.split()[-1]) == pytest.approx(np.mean(shown), abs=0.03)
    smallest = float(mean.split(" from ")[1].split()[0])
    samples = generator.normal(size=(2, 4000, 8))
    p = scipy.stats.ttest_ind(samples[0] + smallest, samples[1], axis=1).pvalue
    assert np.mean(p < 0.05 / 3) == pytest.approx(0.8, abs=0.03)


def test_a_pilot_gives_units(tmp_path):
    def simulate(arm, point, tuned, seed, generator):
        return plausible(0.5 + 0.02 * (seed % 2), generator)

    workdir = build(tmp_path, replace(EXPERIMENT, claims=EXPERIMENT.claims[2:]), simulate)
    study = load_study(workdir)
    _, line = power_lines(study.experiment, study)
    # Losses of 1.77 and 1.70 in turn: sd .07 / 2 * sqrt(8 / 7), pooled over two arms.
    assert "loss: " in line and "sd of 0.037" in line and "14 degrees of freedom" in line


def test_shared_test_items_add_their_error(tmp_path):
    items, n, draws = 200, 8, 1500

    def simulate(arm, point, tuned, seed, generator):
        run = on_items(
            plausible(0.5, generator),
            generator.random(items) < 0.8,
            np.arange(items, dtype="int64"),
        )
        run["result"]["best"]["validation"] = {"accuracy": 0.8 + 0.01 * (seed % 2)}
        return run

    claim = Claim("c", test=Direction("a", "b", metric="accuracy"))
    outcome = Outcome("accuracy", split="test", higher_is_better=True)
    workdir = build(tmp_path, replace(EXPERIMENT, claims=(claim,), outcome=outcome), simulate)
    study = load_study(workdir)
    _, line = power_lines(study.experiment, study)
    assert "and the error of 200 test items" in line
    smallest = float(line.split("(accuracy: ")[1].split(",")[0])
    least = float(line.split("items; ")[1].split()[0])
    # A true difference of that size is found in four of five draws of seeds and items.
    (item,) = study.items["accuracy"].differences.values()
    sd = 0.005 * (8 / 7) ** 0.5
    assert least == pytest.approx(2.8 * item.variance**0.5, rel=0.03)
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(draws):
        shift = smallest + generator.normal(0, item.variance**0.5)
        a, b = generator.normal(0, sd, (2, n))
        estimated = item.variance * generator.chisquare(item.df) / item.df
        t = welch(a + shift, b, [Component(estimated, item.df)])
        found += 2 * t.p_above(0) <= 0.05
    assert found / draws == pytest.approx(0.8, abs=0.035)


def test_one_seed_and_no_claims():
    assert power_lines(replace(EXPERIMENT, claims=())) == []
    lines = power_lines(replace(EXPERIMENT, seeds=(1,)))
    assert "takes at least 2 seeds" in lines[-1]
