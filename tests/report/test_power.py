"""What a number of seeds can show, against simulation."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from research.ablation.claims import Claim, Direction, Threshold
from research.ablation.experiment import Experiment, Outcome
from research.report.judging.evidence import load_study
from research.report.judging.power import power_lines
from research.stats import ProportionDifference
from tests.report.synthetic_sweep import build, plausible

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


def test_one_seed_and_no_claims():
    assert power_lines(replace(EXPERIMENT, claims=())) == []
    lines = power_lines(replace(EXPERIMENT, seeds=(1,)))
    assert "takes at least 2 seeds" in lines[-1]
