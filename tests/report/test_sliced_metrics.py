"""Metrics that are lists, of arms whose lists are of the same things and of others."""

from research.ablation.experiment import Experiment, Outcome
from research.ablation.measure import point_key
from research.report.judging.evidence import load_study
from research.report.judging.measuring import measure, slice_labels
from tests.report.synthetic_sweep import build, failed, plausible

HEADS = {"few": ["layer 0.0", "layer 1.0"], "many": ["layer 0.0", "layer 0.1", "layer 1.0"]}
EXPERIMENT = Experiment(
    question="How many heads?",
    base="configs/recall.py",
    arms={"few": {"model.num_heads": 1}, "many": {"model.num_heads": 2}},
    seeds=(0, 1),
    outcome=Outcome("accuracy", higher_is_better=True),
)


def simulate(arm, point, tuned, seed, generator):
    run = plausible(0.9, generator)
    number = {"few": 10, "many": 20}[arm] + seed
    values = [number + 0.1 * i for i in range(len(HEADS[arm]))]
    best = {s: m | {"score_by_head": values} for s, m in run["result"]["best"].items()}
    slices = run["result"]["slices"] | {"score_by_head": HEADS[arm]}
    return run | {"result": run["result"] | {"best": best, "slices": slices}}


def values_of(data, arm):
    return {p["slice"]: data.values.get((arm, point_key(p))) for p in data.points}


def test_arms_keep_their_own_slices(tmp_path):
    study = load_study(build(tmp_path, EXPERIMENT, simulate))
    assert slice_labels(study, "score_by_head") == {point_key({}): HEADS["many"]}
    data = measure(study, "score_by_head")
    assert [p["slice"] for p in data.points] == HEADS["many"]
    # The second head of one arm is the third one's of the other.
    assert values_of(data, "few") == {
        "layer 0.0": {0: 10, 1: 11},
        "layer 0.1": None,
        "layer 1.0": {0: 10.1, 1: 11.1},
    }
    assert values_of(data, "many")["layer 1.0"] == {0: 20.2, 1: 21.2}


def test_runs_that_failed_have_none(tmp_path):
    def some_fail(arm, point, tuned, seed, generator):
        if seed == 1:
            return failed("Traceback")
        return simulate(arm, point, tuned, seed, generator)

    study = load_study(build(tmp_path, EXPERIMENT, some_fail))
    data = measure(study, "score_by_head")
    assert values_of(data, "few")["layer 1.0"] == {0: 10.1}
    assert values_of(data, "many")["layer 0.1"] == {0: 20.1}
