"""Ablations from Python: trained in the process, read from directories, shown in notebooks."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from research.ablation.claims import Claim, Direction, Threshold
from research.ablation.experiment import Experiment, Outcome
from research.errors import UserError
from research.report.notebook import load, run
from research.report.write import write_report
from tests.commands import ROOT
from tests.report.synthetic_sweep import build, plausible

TINY = Experiment(
    question="Does <b>it</b> train?",
    base="configs/recall.py",
    common={
        "task.length": 8,
        "task.num_pairs": (1,),
        "task.batch_size": 2,
        "model.width": 8,
        "model.num_layers": 1,
        "train.steps": 2,
        "train.eval_every": 1,
        "train.eval_batches": 1,
    },
    arms={"softmax": {}, "sigmoid": {"model.normalizer": "sigmoid"}},
    seeds=2,
    outcome=Outcome("accuracy"),
    claims=(Claim("It is a start.", test=Threshold("softmax", at_least=0.0, share=0.5)),),
)
MADE_UP = replace(
    TINY,
    seeds=(0, 1, 2),
    axes={"task.length": (8, 16)},
    outcome=Outcome("accuracy", higher_is_better=True),
    claims=(Claim("Softmax is <i>better</i>.", test=Direction("softmax", "sigmoid")),),
)
TUTORIAL = ROOT / "docs" / "tutorial.ipynb"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")

    def simulate(arm, point, tuned, seed, generator):
        return plausible((0.9 if arm == "softmax" else 0.5) + 0.01 * seed, generator)

    return build(folder, MADE_UP, simulate)


def test_a_sweep_is_trained_in_the_process_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    results = run(TINY, tmp_path / "mine")
    assert results.study.name == "mine" and len(results.study.reported) == 4
    assert all(row["status"] == "completed" for row in results.rows())
    assert len(results.study.items["accuracy"].means) == 2  # arms, whose runs kept their items
    assert results.verdicts == {"It is a start.": "cannot tell"}  # of two seeds, whatever they do
    seeds = [r.seed for r in results.study.reported]
    # Three seeds are the two there were and one more; what is done is not trained again.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("mine/*/result.json")}
    more = run(replace(TINY, seeds=3), tmp_path / "mine")
    assert len(more.study.reported) == 6 and {r.seed for r in more.study.reported} > set(seeds)
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    with pytest.raises(UserError, match="arms is empty"):
        run(replace(TINY, arms={}), tmp_path / "other")


def test_sweeps_and_reports_read_alike(workdir, tmp_path):
    write_report(workdir, tmp_path / "report")
    (tmp_path / "empty").mkdir()
    one, other = load(workdir), load(tmp_path / "report")
    assert one.takeaway == other.takeaway and one.rows() == other.rows()
    assert one.verdicts == other.verdicts == {"Softmax is <i>better</i>.": "supported"}
    with pytest.raises(UserError, match="no experiment.json.*no results.json"):
        load(tmp_path / "empty")


def test_rows_hold_values_not_texts(workdir):
    row = load(workdir).rows()[0]
    assert row["task.length"] == 8 and row["arm"] == "softmax" and row["best.test.accuracy"] == 0.9


def test_a_notebook_shows_table_and_seeds_and_names_are_text(workdir):
    results = load(workdir)
    page = results._repr_html_()
    assert results.takeaway in page and "+0." not in page and page.count("<tr>") == 1 + 4
    assert "&lt;b&gt;it&lt;/b&gt;" in page and "<i>better" not in page
    assert "data:image/png;base64,iVBOR" in page and not re.search("<script|http", page)
    assert results.figure("curves")._repr_png_().startswith(b"\x89PNG")
    assert "supported: Softmax" in repr(results)
    with pytest.raises(UserError, match="'curve'.*Did you mean 'curves'"):
        results.figure("curve")


def test_a_figure_is_saved_as_what_its_name_says(workdir, tmp_path):
    picture = load(workdir).figure("outcome")
    picture.save(tmp_path / "seeds.pdf")
    assert (tmp_path / "seeds.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(UserError, match="'jpg'"):
        picture.save(tmp_path / "seeds.jpg")


def test_the_folder_of_a_run(workdir):
    folder = load(workdir).run_folder("sigmoid", 1, task__length=16)
    config = json.loads((folder / "config.json").read_text())
    assert config["seed"] == 1 and config["task"]["length"] == 16
    assert config["model"]["normalizer"] == "sigmoid"
    with pytest.raises(UserError, match=r"seed=7 .*\[0, 1, 2\]"):
        load(workdir).run_folder("sigmoid", 7, task__length=16)


def test_without_pandas_it_says_so(workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        load(workdir).dataframe()


def test_the_frame_is_made_of_the_rows(workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=list))
    assert load(workdir).dataframe() == load(workdir).rows()


def code_of(path):
    """Returns the code cells of a notebook as one program."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def test_the_tutorial_is_a_notebook_with_results():
    notebook = json.loads(TUTORIAL.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] is not None and cell["execution_count"] for cell in cells)
    assert not [o for cell in cells for o in cell["outputs"] if o["output_type"] == "error"]
    compile(code_of(TUTORIAL), "tutorial", "exec")


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path):
    """As a program of its own, on a copy of its ablation that takes fewer steps."""
    code = code_of(TUTORIAL).replace("runs/tutorial", str(tmp_path / "tutorial"))
    short, number = re.subn(r'"train.steps": [\d_]+', '"train.steps": 20', code)
    assert number == 1
    done = subprocess.run(
        [sys.executable, "-c", short], cwd=ROOT / "docs", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
