from types import SimpleNamespace

import pytest

from research.ablation.experiment import Experiment, Outcome
from research.report.figures import curve_metric
from research.report.write import write_report
from tests.report.synthetic_sweep import build, plausible


@pytest.mark.parametrize(
    ("logged", "outcome", "drawn"),
    [
        (("loss", "accuracy", "bleu"), "bleu", "bleu"),
        (("loss", "accuracy"), "bleu", "accuracy"),
        (("loss", "accuracy", "error_rate"), "wer", "error_rate"),
        (("loss",), "bleu", "loss"),
        ((), "bleu", "bleu"),
    ],
)
def test_what_is_known_only_at_the_end_shows_the_curve_of_what_chose(logged, outcome, drawn):
    rows = [{"step": 1, "train/loss": 1.0}, {f"validation/{name}": 0.5 for name in logged}]
    study = SimpleNamespace(
        experiment=SimpleNamespace(outcome=SimpleNamespace(metric=outcome)),
        reported=[SimpleNamespace(curve=rows)],
    )
    assert curve_metric(study) == drawn


def test_what_runs_decoded_comes_with_the_report(tmp_path):
    experiment = Experiment(
        question="Which?",
        base="configs/recall.py",
        arms={"one": {}, "other": {"model.num_heads": 1}},
        seeds=(0,),
        outcome=Outcome("accuracy", higher_is_better=True),
    )
    build(tmp_path / "sweep", experiment, lambda *cell: plausible(0.9, cell[-1]))
    runs = [path.parent for path in (tmp_path / "sweep").glob("*/result.json")]
    for run in runs:
        (run / "test.hypotheses.txt").write_text(f"a häuschen\n{run.name}\n", encoding="utf-8")
        (run / "test.references.txt").write_text("not ours to give away\n")
    write_report(tmp_path / "sweep", tmp_path / "report")
    found = {path.name: path.read_text("utf-8") for path in (tmp_path / "report/outputs").iterdir()}
    assert found == {f"{run.name}.test.hypotheses.txt": f"a häuschen\n{run.name}\n" for run in runs}
    assert len(found) == 2
