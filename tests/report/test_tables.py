"""Tables of reports, by hand and by their rows."""

import csv
import json
import re
from dataclasses import replace

import pytest

from research import stats
from research.ablation.claims import Claim, Equivalence, Threshold, Trend
from research.ablation.experiment import Outcome
from research.report.columns import text_rows, tuning_columns
from research.report.judging.evidence import load_study
from research.report.judging.measuring import measure
from research.report.tables import provenance_warnings
from research.report.tuning import tuning_table
from research.report.write import write_report
from research.runs import store
from tests.report.example import COSTS, EXPERIMENT, simulate
from tests.report.synthetic_sweep import build, plausible


def test_csv_has_one_row_per_run(complete):
    summary, out, _ = complete
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert len(rows) == len(summary.study.runs) == 4 * (2 + 8)
    for row, run in zip(rows, summary.study.runs, strict=True):
        assert (row["run"], row["arm"], row["seed"]) == (run.run, run.arm, str(run.seed))
        assert float(row["best.test.accuracy"]) == run.result["best"]["test"]["accuracy"]
        assert float(row["best.test.accuracy_by_gap[9-16]"]) <= float(row["best.test.accuracy"])
        assert row["task.length"] in ("5", "20") and row["budget.parameters"] == "126000"


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


def test_provenance_is_checked(tmp_path):
    workdir = build(tmp_path / "sweep", EXPERIMENT, simulate)
    assert provenance_warnings(load_study(workdir)) == []
    environment = workdir / load_study(workdir).runs[0].run / store.ENVIRONMENT
    changed = json.loads(environment.read_text())
    changed["git"] = {"commit": "f" * 40, "dirty": True}
    environment.write_text(json.dumps(changed))
    commits, dirty = provenance_warnings(load_study(workdir))
    assert "2 different git commits" in commits and "uncommitted" in dirty


def test_measured_costs_are_in_the_budget_and_in_a_figure(complete, report):
    summary, out, page = complete
    head, _, *rows = re.findall(
        r"^\|.*\|$", (out / "report.md").read_text().split("## Budget")[1], re.M
    )
    place = [cell.strip() for cell in head.split("|")].index("ms / step")
    cells = [[cell.strip() for cell in row.split("|")] for row in rows[:4]]
    assert [row[place] for row in cells[:2]] == ["10 (5.000 to 20)"] * 2
    assert [row[place + 1] for row in cells] == ["5.000", "5.000", "20", "20"]
    assert "cost-by-task-length" in {chart.name for chart in summary.charts}
    assert "cost of a training step by length" in " ".join(page.text)
    # Without measured costs there is neither.
    summary, out, _ = report()
    assert "ms / step" not in (out / "report.md").read_text()
    assert "cost-by-task-length" not in {chart.name for chart in summary.charts}


def test_learning_rate_sensitivity_by_hand(tmp_path):
    """Rates of .9, .8 and .4 lose .0, .1 and .5; one that diverged counts as the worst value, 0."""
    values = {1e-3: 0.9, 3e-3: 0.8, 6e-3: 0.4}
    grid = replace(EXPERIMENT, tune={"optimizer.learning_rate": tuple(values)}, axes={})

    def simulate(arm, point, tuned, seed, generator):
        run = plausible(values[tuned["optimizer.learning_rate"]], generator)
        if arm == "dot" and tuned["optimizer.learning_rate"] == 6e-3:
            run["result"] |= {"status": "diverged", "best": {}, "final": {}}
        return run

    workdir = build(tmp_path, grid, simulate)
    none, dot = tuning_table(load_study(workdir))
    assert none.sensitivity == pytest.approx((0.0 + 0.1 + 0.5) / 3)
    assert dot.sensitivity == pytest.approx((0.0 + 0.1 + 0.9) / 3)
    write_report(workdir)
    assert "| rate sensitivity |" in (workdir / "report.md").read_text()
    assert (workdir / "learning-rates.png").exists()
    # Without a worst value there is nothing to put in the place of a seed that diverged.
    unknown = replace(load_study(workdir), experiment=replace(grid, ranges={}))
    assert [row.sensitivity is None for row in tuning_table(unknown)] == [False, True]


def test_claims_on_measured_costs_need_the_measurement(report):
    claims = (
        Claim("As fast", test=Equivalence("dot", "none", 0.1, metric="cost/seconds_per_step")),
        Claim("Small", test=Threshold("dot", at_most=2**23, metric="cost/memory_bytes",
                                      at={"task.length": 5})),
        Claim("Grows", test=Trend("dot", "task.length", "increasing",
                                  metric="cost/seconds_per_step")),
    )  # fmt: skip
    experiment = replace(EXPERIMENT, claims=claims)
    slower = [replace(c, seconds=tuple(x * (1 + i / 20) for i, x in enumerate(c.seconds)))
              if c.arm == "dot" else c for c in COSTS]  # fmt: skip
    summary, _, _ = report(experiment, costs=slower)
    first, second, third = summary.judgements
    assert "Time of a step of dot over that of none, minus one" in first.effect
    assert first.verdict == "open" and "The rounds do not decide it" in first.why
    assert second.verdict == "supported" and third.verdict == "cannot tell"
    assert "All rounds are equal" in third.why
    summary, _, _ = report(experiment)
    assert {j.verdict for j in summary.judgements} == {"cannot tell"}
    assert "esearch.costs has not measured dot" in summary.judgements[0].why
