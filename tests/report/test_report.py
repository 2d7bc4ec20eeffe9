"""Reports of made-up sweep directories, whole and broken."""

import csv
import functools
import json
import re
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from research import stats
from research.ablation.claims import Claim, Direction, Threshold, Trend
from research.ablation.experiment import Experiment, Outcome
from research.ablation.measure import point_key
from research.errors import UserError
from research.report.columns import text_rows, tuning_columns
from research.report.judging.evidence import load_study, measure
from research.report.tables import provenance_warnings, tuning_table
from research.report.write import rewrite_report, write_report
from research.runs import store
from tests.commands import run_cases
from tests.report.synthetic_sweep import GAPS, build, failed, plausible

EXPERIMENT = Experiment(
    question="Does attention beat a fixed vector?",
    base="configs/recall.py",
    arms={"none": {"model.mixer": "none"}, "dot": {"model.mixer": "dot"}},
    axes={"task.length": (5, 20)},
    tune={"optimizer.learning_rate": (1e-3, 3e-3)},
    tune_seeds=(100,),
    seeds=tuple(range(8)),
    worst={"accuracy": 0.0},
    outcome=Outcome("accuracy", solved=0.95, higher_is_better=True),
    claims=(
        Claim("Attention wins when it is long", "Paper, Fig. 2", {"none": 0.55, "dot": 1.0},
              Direction("dot", "none", 0.2, at={"task.length": 20})),
        Claim("The advantage reaches every gap",
              test=Threshold("dot", at_least=0.9, share=0.5, metric="accuracy_by_gap")),
        Claim("Attention learns sooner",
              test=Direction("dot", "none", metric="steps_to_threshold")),
        Claim("Slices fall", test=Trend("none", "slice", "decreasing", metric="accuracy_by_gap")),
    ),
)  # fmt: skip

FINAL = {("none", 5): 0.9, ("none", 20): 0.5, ("dot", 5): 1.0, ("dot", 20): 1.0}


def simulate(arm, point, tuned, seed, generator):
    final = FINAL[arm, point["task.length"]]
    return plausible(min(1.0, final + (0 if final == 1 else generator.normal(0, 0.01))), generator)


class Page(HTMLParser):
    """Checks that tags nest, and collects what a browser would load, show and identify."""

    VOID = {"meta", "br", "hr", "col", "input", "link", "img"}

    def __init__(self):
        super().__init__()
        self.open, self.errors, self.tags, self.urls, self.ids, self.text = [], [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.urls += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset")]
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append((tag, self.getpos()))

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.text.append(data)


def read_page(path):
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.errors == [] and page.open == []
    assert len(page.ids) == len(set(page.ids))
    outside = [url for url in page.urls if re.match(r"(?i)\s*(https?:|//|javascript:|data:)", url)]
    assert outside == []
    inside = [url[1:] for url in page.urls if url.startswith("#")]
    assert set(inside) <= set(page.ids)
    return page


def build_and_report(folder, experiment=EXPERIMENT, simulate=simulate, finished=1.0):
    """Builds a sweep, writes its report without a warning, returns what was written."""
    workdir = build(folder / "sweep", experiment, simulate, finished)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = write_report(workdir, folder / "out")
    return summary, folder / "out", read_page(folder / "out" / "report.html")


@pytest.fixture
def report(tmp_path):
    return functools.partial(build_and_report, tmp_path)


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """The report of the whole sweep, for tests that only read it."""
    return build_and_report(tmp_path_factory.mktemp("complete"))


def test_complete(complete):
    summary, out, page = complete
    assert [j.verdict for j in summary.judgements] == ["supported"] * 4
    markdown = (out / "report.md").read_text()
    images = re.findall(r"!\[.*?\]\((.*?)\)", markdown)
    assert images and all((out / image).read_bytes().startswith(b"\x89PNG") for image in images)
    assert sorted(out.glob("*.png")) == sorted(out / image for image in images)
    assert "not finished" not in markdown
    assert "On 1 x86, 2 CPU cores." in markdown
    text = " ".join(page.text)
    assert "Paper, Fig. 2" in text and "40 of 40 runs finished" in text
    headings = [a for tag, a in page.tags if tag == "th" and "aria-sort" in a]
    assert headings and all(a["aria-sort"] == "none" for a in headings)
    sections = {a["id"] for tag, a in page.tags if tag == "section"}
    assert sections == {
        "verdicts", "outcome", "results", "axes", "curves", "slices", "steps", "budget", "tuning",
        "arms", "runs", "methods", "reproduce",
    }  # fmt: skip


def test_csv_has_one_row_per_run(complete):
    summary, out, _ = complete
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert len(rows) == len(summary.study.runs) == 4 * (2 + 8)
    for row, run in zip(rows, summary.study.runs, strict=True):
        assert (row["run"], row["arm"], row["seed"]) == (run.run, run.arm, str(run.seed))
        assert float(row["best.test.accuracy"]) == run.result["best"]["test"]["accuracy"]
        assert float(row["best.test.accuracy_by_gap[9-16]"]) <= float(row["best.test.accuracy"])
        assert row["task.length"] in ("5", "20") and row["budget.parameters"] == "126000"


def test_links_lead_to_the_files_of_the_runs_beside_the_report(tmp_path):
    summary, _, _ = build_and_report(tmp_path)
    workdir = summary.study.workdir
    write_report(workdir)
    page = read_page(workdir / "report.html")
    links = [url for url in page.urls if not url.startswith("#")]
    assert len(links) == 3 * len(summary.study.runs)
    assert all((workdir / link).is_file() for link in links)


def test_a_report_kept_apart_from_its_runs_links_to_nothing(complete):
    _, _, page = complete
    assert [url for url in page.urls if not url.startswith("#")] == []
    assert " ".join(page.text).count("result.json") >= 40


def test_unfinished(report):
    summary, out, page = report(finished=0.6)
    text = " ".join(page.text)
    assert "24 of 40 runs finished" in text and "16 runs still to come" in text
    assert summary.judgements[0].verdict == "cannot tell"
    assert "not finished" in summary.judgements[0].why
    assert "24 of 40 runs finished" in (out / "report.md").read_text()


def test_nothing_finished(report):
    summary, _, page = report(finished=0.0)
    assert "0 of 40 runs finished" in " ".join(page.text)
    assert {j.verdict for j in summary.judgements} == {"cannot tell"}
    assert summary.charts == []


def test_cells_not_written_yet_count_as_missing(tmp_path):
    build(tmp_path / "sweep", EXPERIMENT, simulate)
    (tmp_path / "sweep" / "cells.json").write_text("[]")
    summary = write_report(tmp_path / "sweep")
    assert summary.progress["waiting"] == 40


def test_one_seed(report):
    summary, _, page = report(replace(EXPERIMENT, seeds=(0,)))
    assert "one seed is not evidence" in " ".join(page.text)
    assert {j.verdict for j in summary.judgements} == {"cannot tell"}
    assert all("one seed is not evidence" in row.notes for row in summary.rows)


def test_slices_are_points_of_their_own(complete):
    summary, _, _ = complete
    data = measure(summary.study, "accuracy_by_gap")
    assert [p["slice"] for p in data.points[:4]] == GAPS
    run = summary.study.reported[0]
    for i, label in enumerate(GAPS):
        key = run.arm, point_key({**run.point, "slice": label})
        assert data.values[key][run.seed] == run.result["best"]["test"]["accuracy_by_gap"][i]


def test_names_are_text_everywhere(report):
    evil = '<script>alert("x")</script>'
    names = [evil, "ünïcode 注意", 'two  spaces & "quotes"', "{{script}} $x_1$ | `code` %s"]
    experiment = replace(
        EXPERIMENT,
        question=f"Why {evil}?",
        arms={name: {"model.mixer": name} for name in names},
        axes={'task.<b>"kind"</b>': ("<i>a</i>", "b c")},
        claims=(
            Claim(evil, evil, {evil: evil}, Direction(names[0], names[1])),
            Claim("published text", published=evil, test=Threshold(names[2], at_least=0.5)),
        ),
    )

    def run(arm, point, tuned, seed, generator):
        if arm == names[3] and seed == 2:
            return failed(f"Traceback\n{evil}")
        return plausible(0.9 + generator.normal(0, 0.01), generator)

    summary, out, page = report(experiment, run)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not {"b", "i"} & {tag for tag, a in page.tags if "class" not in a}
    text = " ".join(page.text)
    assert all(name in text for name in names)
    assert evil not in (out / "report.md").read_text()
    assert list(csv.DictReader((out / "results.csv").open()))[0]["arm"] == evil


def test_budget_flags_what_is_not_ablated(report):
    def unequal(arm, point, tuned, seed, generator):
        run = simulate(arm, point, tuned, seed, generator)
        if arm == "dot":
            run["result"]["budget"] |= {
                "parameters": 150_000,
                "state_bytes": 1,
                "tokens": 33_000_000,
            }
        return run

    summary, _, page = report(replace(EXPERIMENT, ablated=("state_bytes",)), unequal)
    rows = {row.arm: row for row in summary.budget}
    assert len(summary.budget) == 2
    flagged = {c for c, cost in rows["dot"].costs.items() if cost.flagged}
    assert flagged == {"parameters"}
    assert rows["dot"].costs["parameters"].ratio == pytest.approx(150 / 126)
    assert not any(cost.flagged for cost in rows["none"].costs.values())
    assert "150,000 ×1.19 ⚠" in " ".join(page.text)


def rates(best):
    """Runs that do better the nearer their learning rate is to `best`."""

    def simulate(arm, point, tuned, seed, generator):
        off = abs(tuned["optimizer.learning_rate"] - best)
        return plausible(0.9 - 50 * off + generator.normal(0, 0.001), generator)

    return simulate


@pytest.mark.parametrize(("best", "edges"), [(1e-3, ["rate"]), (3e-3, []), (6e-3, ["rate"])])
def test_tuning_marks_the_edge_of_the_grid(tmp_path, best, edges):
    grid = replace(EXPERIMENT, tune={"optimizer.learning_rate": (1e-3, 3e-3, 6e-3)})
    rows = tuning_table(load_study(build(tmp_path, grid, rates(best))))
    assert all(row.tuned == row.best == {"optimizer.learning_rate": best} for row in rows)
    assert all([e[-4:] for e in row.edges] == edges and row.total == 3 for row in rows)


def test_the_report_names_who_is_at_the_edge_of_a_grid_that_was_continued(tmp_path):
    bounded = replace(EXPERIMENT, tune_extend=2)
    build(tmp_path, bounded, rates(1e-3))
    write_report(tmp_path)
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "continued on a side where its best value lay at the edge (by at most 2" in text
        assert "So it is here, for" in text and "One tuning seed does not tell" in text


def test_what_tuning_might_have_chosen_is_read_off_its_validation(tmp_path):
    experiment = replace(
        EXPERIMENT,
        tune={"optimizer.learning_rate": (1e-3, 3e-3)},
        tune_seeds=(100, 101, 102),
        outcome=Outcome("accuracy", higher_is_better=True),
        claims=(),
    )
    made = {}

    def simulate(arm, point, tuned, seed, generator):
        value = 0.8 + 10 * tuned["optimizer.learning_rate"] + generator.normal(0, 0.02)
        made.setdefault(arm, {}).setdefault(tuned["optimizer.learning_rate"], []).append(value)
        return plausible(value, generator)

    axes = {}
    study = load_study(build(tmp_path, replace(experiment, axes=axes), simulate))
    found = measure(study).choice
    for arm in experiment.arms:
        scores = [values[:3] for values in made[arm].values()]
        expected = stats.choice_deviation(scores, [stats.mean(s) for s in scores])
        assert found[arm, ()] == pytest.approx(expected, rel=1e-9) and expected > 0
    # Another metric of the same runs, and one that tuning runs do not have by seeds.
    loss = measure(study, "loss").choice
    assert loss["none", ()] == pytest.approx(3.5 * found["none", ()], rel=1e-9)
    assert not measure(study, "budget/parameters").choice
    assert not measure(study, "accuracy_by_gap").choice


@pytest.mark.parametrize("own", [True, False])
def test_the_report_says_what_its_intervals_are_of(tmp_path, own):
    arms = {name: {"task.test_of_seed": own} for name in EXPERIMENT.arms}
    build(tmp_path, replace(EXPERIMENT, arms=arms), simulate)
    write_report(tmp_path)
    said = "over seeds, each with a test of its own," if own else "over seeds, on these test data,"
    for name in ("report.md", "report.html"):
        assert said in (tmp_path / name).read_text()


def test_runs_that_do_not_use_the_choice_are_marked(tmp_path):
    workdir = build(tmp_path, EXPERIMENT, rates(1e-3))
    tune = json.loads((workdir / "cells.json").read_text())[0]
    result = json.loads((workdir / tune["run"] / store.RESULT).read_text())
    result["best"]["validation"]["accuracy"] = 0.1
    (workdir / tune["run"] / store.RESULT).write_text(json.dumps(result))
    study = load_study(workdir)
    cells = text_rows(tuning_columns(study), tuning_table(study))
    assert cells[0][2] == "0.001 ⚠ tuning chose 0.003"
    assert cells[1][2] == "0.001 ⚠ edge of the grid"


def test_main_table_by_hand(report):
    """Three seeds .9 .8 .7 against .5 .5 .4, whose variances are .01 and .00333."""
    values = {"none": [0.5, 0.5, 0.4], "dot": [0.9, 0.8, 0.7]}

    def fixed(arm, point, tuned, seed, generator):
        run = plausible(0.5, generator)
        run["result"]["best"] = {"test": {"accuracy": values[arm][seed % 100 % 3]}}
        return run

    outcome = Outcome("accuracy", higher_is_better=True)
    experiment = replace(EXPERIMENT, tune={}, seeds=(0, 1, 2), claims=(), outcome=outcome)
    summary, out, _ = report(experiment, fixed)
    none, dot = summary.rows[:2]
    assert none.reference and none.outcome.mean == pytest.approx(0.466667, abs=1e-6)
    assert (dot.outcome.low, dot.outcome.high) == (0.7, 0.9) and dot.outcome.sd == pytest.approx(
        0.1
    )
    assert dot.difference == pytest.approx(1 / 3)
    # scipy.stats.ttest_ind(..., equal_var=False).
    assert dot.p == pytest.approx(0.013172, rel=1e-3)
    assert (dot.low, dot.high) == pytest.approx((0.128478, 0.538189), abs=1e-5)
    assert dot.solved is None and "+0.333 \\[+0.128, +0.538\\]" in (out / "report.md").read_text()


def test_of_an_outcome_with_a_threshold_seeds_are_counted(complete):
    summary, out, _ = complete
    none, dot = summary.rows[2:]
    assert none.solved[0] == 0 and dot.solved[0] == 8 and dot.when_solved == 1.0
    # Clopper-Pearson: 0.025 ** (1 / 8).
    assert dot.solved[1:] == (pytest.approx(0.63058, abs=1e-4), 1.0)
    assert dot.difference == 1.0 and dot.p < 0.001
    text = (out / "report.md").read_text()
    assert "8 of 8 \\[63–100 %\\]" in text and "when solved" in text


def test_a_report_of_a_hundred_runs_is_quick(report):
    start = time.process_time()
    summary, _, _ = report(replace(EXPERIMENT, seeds=tuple(range(23))))
    assert len(summary.study.runs) == 100
    assert time.process_time() - start < 5


def test_provenance_is_checked(tmp_path):
    workdir = build(tmp_path / "sweep", EXPERIMENT, simulate)
    assert provenance_warnings(load_study(workdir)) == []
    environment = workdir / load_study(workdir).runs[0].run / store.ENVIRONMENT
    changed = json.loads(environment.read_text())
    changed["git"] = {"commit": "f" * 40, "dirty": True}
    environment.write_text(json.dumps(changed))
    commits, dirty = provenance_warnings(load_study(workdir))
    assert "2 different git commits" in commits and "uncommitted" in dirty


def test_no_sweep_directory(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="not a sweep directory"):
            write_report(path)
        assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_named(tmp_path):
    build(tmp_path / "sweep", EXPERIMENT, simulate)
    (tmp_path / "sweep" / "cells.json").write_text("[{")
    with pytest.raises(UserError, match="cells.json cannot be read"):
        write_report(tmp_path / "sweep")


def test_an_outcome_no_run_has_is_named(report):
    with pytest.raises(UserError, match="'acuracy'.*Did you mean 'accuracy'"):
        report(replace(EXPERIMENT, outcome=Outcome("acuracy", higher_is_better=True), claims=()))


def test_experiment_survives_json(complete):
    summary, _, _ = complete
    assert summary.study.experiment.to_json() == json.loads(json.dumps(EXPERIMENT.to_json()))


def test_command(complete, tmp_path):
    case = [f"--workdir={complete[0].study.workdir}", f"--out={tmp_path / 'there'}", "--latex"]
    (done,) = run_cases("research.report", [case])
    assert done.code == 0, done.err
    assert "supported" in done.out and str(tmp_path / "there" / "report.html") in done.out
    assert (tmp_path / "there" / "report.html").is_file()
    assert "report.tex" in done.out and (tmp_path / "there" / "report.tex").is_file()
    assert {path.suffix for path in (tmp_path / "there").glob("curves.*")} == {".png", ".pdf"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--workdir is missing"),
        (["--workdir=/nonexistent"], "is not a sweep"),
        (["--wrkdir=x"], "workdir"),
        (["--workdir=x", "--formats=jpg"], "'jpg'"),
    ],
)
def test_command_errors_are_one_line(arguments, message):
    (done,) = run_cases("research.report", [arguments])
    assert done.code == 2
    assert message in done.err and done.err.count("\n") == 1


def test_reading_results_needs_no_jax():
    names = "ablation.tuning report.__main__ report.judging.bootstrap report.write"
    code = "import sys\n" + "".join(f"import research.{n}\n" for n in names.split())
    code += "print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"jax", "jaxlib", "flax"} & set(json.loads(done.stdout.replace("'", '"')))


def test_a_report_is_made_again_from_its_results(complete, tmp_path):
    summary, out, _ = complete
    again = rewrite_report(out, tmp_path)
    for name in ("report.md", "results.csv", "results.json"):
        assert (tmp_path / name).read_text() == (out / name).read_text()
    assert [j.reason for j in again.judgements] == [j.reason for j in summary.judgements]
    assert {c.name for c in again.charts} == {c.name for c in summary.charts}
    read_page(tmp_path / "report.html")


def test_results_that_are_not_there_or_damaged(tmp_path):
    with pytest.raises(UserError, match="has no results.json"):
        rewrite_report(tmp_path)
    for content in ("{", "{}", '{"experiment": {}}'):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(UserError, match="cannot be read|holds no results"):
            rewrite_report(tmp_path)
