"""Reports of runs that kept the results of their test items: intervals, words, results.json."""

import json
from dataclasses import replace

import numpy as np
import pytest

from research import stats
from research.ablation.claims import Claim, Direction, Threshold
from research.ablation.experiment import Outcome
from research.report.judging.evidence import load_study
from research.report.judging.measuring import measure
from research.report.latex import latex
from research.report.write import rewrite_report, write_report
from research.runs import store
from tests.report.example import EXPERIMENT
from tests.report.synthetic_sweep import build, diverged, on_items, plausible

M, SEEDS = 300, 4
SCALE = {"none": 0.8, "dot": 1.4}
SHARED = replace(
    EXPERIMENT,
    tune={},
    seeds=tuple(range(SEEDS)),
    outcome=Outcome("accuracy", higher_is_better=True),
    claims=(
        Claim("Attention wins", test=Direction("dot", "none"), within_steps=True),
        Claim("It is good", test=Threshold("dot", at_least=0.5)),
    ),
)
KEY = (("task.length", 20),)


def right(arm, seed):
    """Whether a seed answers each item: items are easy or hard for both arms."""
    hard = np.random.default_rng(99).normal(size=M)
    own = np.random.default_rng([seed, list(SCALE).index(arm)]).normal(0, 0.5, M)
    return (hard + own + SCALE[arm] > 0).astype(float)


def shared(arm, point, tuned, seed, generator):
    run = plausible(0.9, generator)
    return on_items(run, right(arm, seed), np.arange(M, dtype=np.uint32))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("items")
    build(folder / "sweep", SHARED, shared)
    return write_report(folder / "sweep", folder / "out", paper=True), folder / "out"


def by_hand(paired=True):
    """The squared error of the difference of both arms, and that of seeds alone."""
    results = {arm: np.array([right(arm, s) for s in range(SEEDS)]) for arm in SCALE}
    seeds = sum(r.mean(1).var(ddof=1) / SEEDS for r in results.values())
    none, dot = (r.mean(0) for r in results.values())
    apart = (dot - none).var(ddof=1) if paired else dot.var(ddof=1) + none.var(ddof=1)
    return seeds + apart / M, seeds


def test_table_and_claims_have_the_error_of_the_items(written):
    summary, _ = written
    row = next(r for r in summary.rows if r.arm == "dot")
    difference = summary.judgements[0].checks[0]
    assert difference.quantity.items == (M,)
    assert difference.quantity.estimate.error**2 == pytest.approx(by_hand()[0], rel=1e-4)
    assert (row.low, row.high) == pytest.approx(difference.quantity.interval(stats.ALPHA))
    threshold = summary.judgements[1].checks[0].quantity
    of_dot = np.array([right("dot", s) for s in range(SEEDS)])
    squared = of_dot.mean(1).var(ddof=1) / SEEDS + of_dot.mean(0).var(ddof=1) / M
    assert threshold.estimate.error**2 == pytest.approx(squared, rel=1e-4)


def test_the_report_says_so(written):
    summary, out = written
    assert f"Welch, over {SEEDS} seeds of each and {M} test items)" in summary.judgements[0].effect
    assert f"over {SEEDS} seeds and {M} test items)" in summary.judgements[1].effect
    for name in ("report.md", "report.html"):
        assert "Intervals of differences are over seeds and test items, and" in (
            (out / name).read_text()
        )
    paper = latex(summary)
    assert f"over the {M} test items" in paper and "crossed random effects, Owen 2007" in paper
    assert "Intervals are over seeds and test items." in paper


def test_a_report_without_the_runs_is_the_same(written, tmp_path):
    summary, out = written
    again = rewrite_report(out, tmp_path)
    for name in ("report.md", "results.csv", "results.json"):
        assert (tmp_path / name).read_text() == (out / name).read_text()
    assert [j.reason for j in again.judgements] == [j.reason for j in summary.judgements]
    kept = json.loads((out / "results.json").read_text())["items"]
    assert kept.keys() == {"accuracy"} and len(json.dumps(kept)) < 1000


def without(workdir, arm):
    for run in load_study(workdir).reported:
        if run.arm == arm:
            (workdir / run.run / store.ITEMS).unlink()


def test_without_the_items_of_an_arm_intervals_are_over_seeds(tmp_path):
    workdir = build(tmp_path, SHARED, shared)
    without(workdir, "none")
    summary = write_report(workdir)
    quantity = summary.judgements[0].checks[0].quantity
    assert quantity.items == ()
    assert quantity.estimate.error**2 == pytest.approx(by_hand()[1], rel=1e-4)
    assert "seeds, and over test items where the runs kept" in (workdir / "report.md").read_text()
    without(workdir, "dot")
    write_report(workdir)
    assert "are over seeds, on these test data, and" in (workdir / "report.md").read_text()


def test_arms_with_other_items_are_independent(tmp_path):
    def apart(arm, point, tuned, seed, generator):
        run = shared(arm, point, tuned, seed, generator)
        run["items"]["id"] = run["items"]["id"] + np.uint32(7 * (arm == "dot"))
        return run

    summary = write_report(build(tmp_path, SHARED, apart))
    quantity = summary.judgements[0].checks[0].quantity
    assert quantity.items == (M, M) and f"{M} and {M} test items" in summary.judgements[0].effect
    assert quantity.estimate.error**2 == pytest.approx(by_hand(paired=False)[0], rel=1e-4)


def test_a_diverged_seed_is_the_worst_on_every_sample_of_items(tmp_path):
    def broken(arm, point, tuned, seed, generator):
        run = shared(arm, point, tuned, seed, generator)
        return {**run, **diverged(run)} if (arm, seed) == ("dot", 0) else run

    study = load_study(build(tmp_path, SHARED, broken))
    ((variance, _),) = measure(study).items.of_mean(("dot", KEY))
    three = np.array([right("dot", s) for s in range(1, SEEDS)]).sum(0) / SEEDS
    assert variance == pytest.approx(three.var(ddof=1) / M, rel=1e-4)


def test_what_is_solved_is_a_matter_of_seeds(tmp_path):
    solved = replace(SHARED, outcome=replace(SHARED.outcome, solved=0.8), claims=())
    workdir = build(tmp_path, solved, shared)
    write_report(workdir)
    assert "are over seeds, on these test data, and" in (workdir / "report.md").read_text()
    # By its name it is a mean, as in a claim that names it.
    study = load_study(workdir)
    assert measure(study).solved and measure(study, "accuracy").items.means
