"""The sentence under the title, and how numbers are written in sentences."""

from dataclasses import replace

import pytest

from research.ablation.claims import Claim, Direction
from research.ablation.experiment import Experiment, Outcome
from research.report.formatting import number, typographic
from research.report.judging.evidence import load_study
from research.report.summary import summarize
from tests.report.synthetic_sweep import build, plausible

EXPERIMENT = Experiment(
    question="Which?",
    base="configs/recall.py",
    arms={"one": {}, "two": {"model.num_heads": 2}, "three": {"model.num_heads": 4}},
    seeds=tuple(range(4)),
    outcome=Outcome("accuracy", solved=0.8, higher_is_better=True),
)
FINAL = {"one": (0.9, 0.9, 0.9, 0.9), "two": (0.9, 0.2, 0.2, 0.2), "three": (0.1, 0.2, 0.1, 0.2)}


def said(folder, experiment, finished=1.0, final=FINAL):
    def simulate(arm, point, tuned, seed, generator):
        return plausible(final[arm][seed] + generator.normal(0, 1e-5), generator)

    return summarize(load_study(build(folder, experiment, simulate, finished))).takeaway


def test_of_a_task_that_is_solved_or_not_seeds_are_counted(tmp_path):
    assert said(tmp_path, EXPERIMENT) == (
        "The task (test accuracy ≥ 0.8) is solved in every seed by one, in 1 of 4 seeds by two, in "
        "none by three."
    )


def test_when_nobody_solves_it(tmp_path):
    outcome = replace(EXPERIMENT.outcome, solved=0.99)
    assert said(tmp_path, replace(EXPERIMENT, outcome=outcome)) == (
        "No seed of any arm solves the task (test accuracy ≥ 0.99)."
    )


def test_of_other_outcomes_the_best_mean_is_named(tmp_path):
    better = Claim("One beats three.", test=Direction("one", "three", metric="accuracy"))
    worse = replace(better, test=Direction("three", "one", metric="accuracy"))
    experiment = replace(
        EXPERIMENT,
        outcome=Outcome("accuracy", higher_is_better=True),
        arms=dict(reversed(EXPERIMENT.arms.items())),
        claims=(better, worse),
    )
    assert said(tmp_path, experiment) == (
        "one has the highest mean test accuracy, 0.900, against 0.150 of three; 1 of 2 differences "
        "from three are significant (Holm); claims: 1 supported, 1 refuted."
    )


def test_before_there_is_anything(tmp_path):
    assert said(tmp_path, EXPERIMENT, finished=0) == "No run has finished yet."


@pytest.mark.parametrize(
    ("plain", "shown"),
    [
        ("values at -0.5 [-1, -.2]", "values at −0.5 [−1, −.2]"),
        *((text, text) for text in ("slices 1-2", "gpt-2", "a t-test", "-x", "2026-11-29")),
    ],
)
def test_a_minus_sign_is_one(plain, shown):
    assert typographic(plain) == shown


def test_small_numbers():
    assert [number(v) for v in (-0.25, 1.2e-5, -1234.0)] == ["−0.250", "1.2e−05", "−1,234"]
