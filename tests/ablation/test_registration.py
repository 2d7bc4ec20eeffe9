"""Seeds that nobody chose, and claims that were there before the runs."""

import json
from dataclasses import asdict, replace

import pytest

from research.ablation.claims import Claim, Direction
from research.ablation.expansion import report_cells
from research.ablation.experiment import Experiment, Outcome
from research.ablation.loading import load_experiment
from research.ablation.populations import populations
from research.ablation.registration import (
    FIRST,
    draw_seeds,
    is_late,
    register,
    registration_from_json,
    seed_basis,
    with_seeds,
)
from research.report.judging.evidence import load_study
from research.report.write import write_report
from tests.conftest import ROOT
from tests.report.synthetic_sweep import build, plausible

CLAIM = Claim("a wins", test=Direction("a", "b"))
EXPERIMENT = Experiment(
    question="Which?",
    base="configs/recall.py",
    arms={"a": {}, "b": {"model.width": 16}},
    seeds=5,
    outcome=Outcome("accuracy", higher_is_better=True),
    claims=(CLAIM,),
)


def test_seeds_follow_from_name_and_content():
    basis = seed_basis(EXPERIMENT, "mine")
    seeds = draw_seeds(basis, 5)
    assert seeds == draw_seeds(basis, 5) and len(set(seeds)) == 5 and min(seeds) >= FIRST
    assert with_seeds(EXPERIMENT, basis).seeds == seeds
    # Another name or another rate to tune: other seeds. Another claim: the same.
    assert seed_basis(EXPERIMENT, "yours") != basis
    assert seed_basis(replace(EXPERIMENT, common={"train.steps": 7}), "mine") != basis
    assert seed_basis(replace(EXPERIMENT, claims=()), "mine") == basis
    # Which seeds tune: the same, also when they are drawn.
    assert seed_basis(replace(EXPERIMENT, tune_seeds=5), "mine") == basis
    assert seed_basis(with_seeds(EXPERIMENT, basis), "mine") == basis
    # Seeds that a person gives stay.
    assert with_seeds(replace(EXPERIMENT, seeds=(1, 2)), basis).seeds == (1, 2)


def test_the_seeds_of_a_committed_sweep_are_drawn_again():
    path = ROOT / "experiments" / "results" / "attention_type" / "results.json"
    kept = json.loads(path.read_text())["experiment"]
    loaded = load_experiment(ROOT / "experiments" / "attention_type.py")
    assert seed_basis(loaded, "attention_type") == kept["registration"]["basis"]
    assert list(loaded.seeds) == kept["seeds"]


def test_more_seeds_begin_with_those_there_were():
    assert draw_seeds("x", 8)[:5] == draw_seeds("x", 5)
    avoided = draw_seeds("x", 5)[2]
    assert avoided not in draw_seeds("x", 5, avoid=[avoided])


def test_seeds_stay_those_of_the_first_run():
    first = register(EXPERIMENT, "mine", None)
    changed = replace(EXPERIMENT, common={"train.steps": 7}, seeds=8)
    again = register(changed, "mine", first)
    assert again.basis == first.basis and (first.looks, again.looks) == ((5,), (5, 8))
    # Looking again at as many seeds, or at fewer, is not another chance.
    assert register(replace(EXPERIMENT, seeds=3), "mine", again).looks == (5, 8)
    assert registration_from_json(json.loads(json.dumps(asdict(again)))) == again


def test_claims_of_after_the_first_run_are_late(monkeypatch):
    first = register(EXPERIMENT, "mine", None)
    first = replace(
        first, begun="2020-01-01T00:00:00", claims={k: "2020-01-01T00:00:00" for k in first.claims}
    )
    other = Claim("b wins", test=Direction("b", "a"))
    reworded = replace(CLAIM, text="A wins, as in the paper", source="Paper")
    again = register(replace(EXPERIMENT, claims=(reworded, other)), "mine", first)
    assert not is_late(CLAIM, again) and not is_late(reworded, again) and is_late(other, again)
    assert not is_late(other, None)


def test_the_report_marks_late_claims_and_counts_looks(tmp_path):
    seeds = draw_seeds("x", 8)
    claims = (CLAIM, Claim("b wins", test=Direction("b", "a")))
    experiment = replace(EXPERIMENT, seeds=seeds, claims=claims, looks=(5, 8))

    def simulate(arm, point, tuned, seed, generator):
        return plausible(0.7 + 0.1 * (arm == "a") + generator.normal(0, 0.01), generator)

    build(tmp_path, experiment, simulate)
    path = tmp_path / "experiment.json"
    plain = json.loads(path.read_text())
    old = asdict(register(replace(experiment, claims=(CLAIM,)), "mine", None))
    old |= {"begun": "2020-01-01", "claims": dict.fromkeys(old["claims"], "2020-01-01")}
    path.write_text(json.dumps(plain | {"registration": old}))
    assert load_study(tmp_path).registration.begun == "2020-01-01"
    early, late = write_report(tmp_path).judgements
    assert early.claim.primary and early.level == 0.025 and early.family == 1
    assert not late.claim.primary and "Exploratory" in late.why
    assert "Seeds were added once" in (tmp_path / "report.html").read_text()


def test_added_seeds_train_apart_from_those_before(tmp_path):
    five = replace(with_seeds(EXPERIMENT, "x"), looks=(5,))
    eight = replace(with_seeds(replace(EXPERIMENT, seeds=8), "x"), looks=(5, 8))
    before = populations(report_cells(five, "a", {}, {}), most=8)
    after = populations(report_cells(eight, "a", {}, {}), most=8)
    assert [p.name for p in before] == [after[0].name]
    assert [len(p.cells) for p in after] == [5, 3]


@pytest.mark.parametrize("seeds", ["0", "()"])
def test_a_file_gives_some_seeds(tmp_path, seeds):
    path = tmp_path / "mine.py"
    path.write_text(
        "from research.ablation.experiment import Experiment, Outcome\n"
        "experiment = Experiment('?', 'configs/recall.py', {'a': {}}, Outcome('accuracy'), "
        f"seeds={seeds})\n"
    )
    with pytest.raises(Exception, match="must be the number of reported seeds"):
        load_experiment(path)
    path.write_text(path.read_text().replace(f"seeds={seeds}", "seeds=4"))
    assert len(load_experiment(path).seeds) == 4
    assert load_experiment(path, basis="x").seeds == draw_seeds("x", 4)
