"""The choice among tuned values."""

import itertools
import json
from dataclasses import replace

import pytest

from research.ablation import sweep
from research.ablation.expansion import added_cells, tuning_cells
from research.ablation.experiment import Experiment, Outcome
from research.ablation.forecast import forecast
from research.ablation.populations import Shard, known_cells, populations
from research.ablation.registration import with_seeds
from research.ablation.sweep import run_sweep
from research.ablation.tuning import (
    choose,
    extension_text,
    keys_at_edge,
    next_grid_value,
    possible_values,
)
from research.runs.store import read_json, write_json
from tests import small


def tuning(scores, status="completed"):
    """Cells and results of {rate: values over seeds}; None is a diverged seed."""
    cells, results = [], {}
    for rate, values in scores.items():
        for seed, value in enumerate(values):
            run = f"{rate}-{seed}"
            cells.append(
                {
                    "arm": "a",
                    "point": {"x": [1, 2]},
                    "stage": "tune",
                    "tuned": {"lr": rate},
                    "run": run,
                }
            )
            broken = {"status": "diverged", "best": {"validation": {"accuracy": 0.99}}}
            whole = {"status": status, "best": {"validation": {"accuracy": value}}}
            results[run] = broken if value is None else whole
    return cells, results


@pytest.mark.parametrize(
    ("scores", "higher", "best"),
    [
        ({0.1: [0.5, 0.6], 0.2: [0.7, 0.6], 0.3: [0.1, 0.9]}, True, 0.2),
        ({0.1: [0.5, 0.6], 0.2: [0.7, 0.6], 0.3: [0.1, 0.9]}, False, 0.3),
        ({0.1: [0.5, 0.5], 0.2: [0.5, 0.5]}, True, 0.1),
        ({0.1: [0.2, 0.2], 0.2: [1.0, None]}, True, 0.1),
        ({0.1: [None, None], 0.2: [0.1, None]}, True, 0.2),
        ({0.1: [None, None], 0.2: [None, None]}, True, 0.1),
    ],
)
def test_choice(scores, higher, best):
    cells, results = tuning(scores)
    outcome = Outcome("accuracy", higher_is_better=higher)
    assert choose(outcome, cells, results) == {("a", (("x", (1, 2)),)): {"lr": best}}


def test_choice_waits_for_the_whole_grid():
    cells, results = tuning({0.1: [0.5], 0.2: [0.7]})
    del results["0.1-0"]
    assert choose(Outcome("accuracy", higher_is_better=True), cells, results) == {}


def test_choice_counts_a_failed_run_as_worst():
    cells, results = tuning({0.1: [0.1], 0.2: [0.7]})
    results["0.2-0"]["status"] = "failed"
    assert list(choose(Outcome("accuracy", higher_is_better=True), cells, results).values()) == [
        {"lr": 0.1}
    ]


@pytest.mark.parametrize(
    ("values", "below", "above"),
    [
        ((1e-3, 3e-3), 3.33e-4, 9e-3),
        ((3e-3, 1e-3), 3.33e-4, 9e-3),
        ((1e-3, 1e-2, 1e-1), 1e-4, 1.0),
        # 1, 3, 10 goes on as people write it.
        ((3e-4, 1e-3, 3e-3), 1e-4, 1e-2),
        ((1e-3, 3e-3, 1e-2), 3e-4, 3e-2),
        # No rates: one value, even steps, a zero, counts, names.
        ((1e-3,), None, None),
        ((0.1, 0.2, 0.3), None, None),
        ((0.0, 0.1), None, None),
        ((32, 64, 128), None, None),
        (("adam", "sgd"), None, None),
    ],
)
def test_a_grid_is_continued_by_its_own_ratio(values, below, above):
    assert (next_grid_value(values, up=False), next_grid_value(values, up=True)) == (below, above)


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        ({1.0: 0.1, 2.0: 0.2, 3.0: 0.3}, ["x"]),
        ({1.0: 0.1, 2.0: 0.3, 3.0: 0.2}, []),
        ({1.0: 0.3, 2.0: 0.2}, ["x"]),
        # A value further inside does as well, or all fail: nothing points outwards.
        ({1.0: 0.3, 2.0: 0.3, 3.0: 0.1}, []),
        ({1.0: 0.3}, []),
        ({"a": 0.1, "b": 0.3}, []),
    ],
)
def test_edges_of_a_grid(scores, found):
    assert keys_at_edge([({"x": x}, (0, value)) for x, value in scores.items()]) == found


RATE, DECAY = "optimizer.learning_rate", "optimizer.weight_decay"
TUNED = Experiment(
    question="?",
    base=small.BASE,
    arms={"a": {}, "b": {"model.init_scale": 2.0}},
    tune={RATE: (1e-3, 3e-3)},
    tune_seeds=(100, 101),
    seeds=(0, 1),
    outcome=Outcome("loss", higher_is_better=False),
)


def finished(cells, best):
    """Results whose loss grows with the distance from the best value of every key, by arm."""
    results = {}
    for cell in cells:
        ratios = (cell.tuned[k] / v for k, v in best[cell.arm].items())
        loss = sum(max(r, 1 / r) for r in ratios) + 1e-3 * (cell.seed - 100)
        results[cell.run] = {"status": "completed", "best": {"validation": {"loss": loss}}}
    return results


def grown(experiment, best):
    """The tuning cells when nothing more is added."""
    cells = more = tuning_cells(experiment)
    while more:
        more = added_cells(experiment, cells, finished(cells, best))
        cells = cells + more
    return cells


def rates(cells, arm):
    return list(dict.fromkeys(c.tuned[RATE] for c in cells if c.arm == arm))


def test_each_grid_grows_until_its_best_value_is_inside():
    cells = grown(TUNED, {"a": {RATE: 9e-3}, "b": {RATE: 2e-3}})
    assert rates(cells, "a") == [1e-3, 3e-3, 9e-3, 2.7e-2]
    # 2e-3 is between the two, nearer to 3e-3 by ratio.
    assert rates(cells, "b") == [1e-3, 3e-3, 9e-3]
    for cell in cells:
        assert cell.look == max(0, rates(cells, cell.arm).index(cell.tuned[RATE]) - 1)
    assert {c.seed for c in cells if c.tuned[RATE] == 2.7e-2} == {100, 101}
    rows = [c.to_json() for c in cells]
    results = finished(cells, {"a": {RATE: 9e-3}, "b": {RATE: 2e-3}})
    assert choose(TUNED.outcome, rows, results) == {
        ("a", ()): {RATE: 9e-3},
        ("b", ()): {RATE: 3e-3},
    }


@pytest.mark.parametrize(("bound", "number"), [(0, 2), (1, 3), (3, 5)])
def test_a_grid_grows_no_further_than_its_bound(bound, number):
    bounded = replace(TUNED, tune_extend=bound)
    for best in (1e3, 1e-9):
        cells = grown(bounded, {"a": {RATE: best}, "b": {RATE: best}})
        assert len(rates(cells, "a")) == number
        assert set(rates(cells, "a")) <= {
            *TUNED.tune[RATE],
            *possible_values(bounded).get(RATE, ()),
        }


def test_a_grid_of_two_keys_stays_a_product():
    two = replace(TUNED, arms={"a": {}}, tune={RATE: (1e-3, 1e-2, 1e-1), DECAY: (0.1, 0.2, 0.4)})
    cells = grown(two, {"a": {RATE: 1.0, DECAY: 0.05}})
    tried = {key: set(c.tuned[key] for c in cells) for key in two.tune}
    assert tried == {RATE: {1e-3, 1e-2, 1e-1, 1.0, 10.0}, DECAY: {0.1, 0.2, 0.4, 0.05, 0.025}}
    found = [(c.tuned[RATE], c.tuned[DECAY], c.seed) for c in cells]
    every = itertools.product(*tried.values(), two.tune_seeds)
    assert len(found) == len(set(found)) and set(found) == set(every)


def test_nothing_is_added_before_the_grid_is_finished():
    cells = tuning_cells(TUNED)
    results = finished(cells, {"a": {RATE: 1.0}, "b": {RATE: 1.0}})
    assert {c.arm for c in added_cells(TUNED, cells, results)} == {"a", "b"}
    del results[cells[0].run]
    assert {c.arm for c in added_cells(TUNED, cells, results)} == {"b"}


class Died(BaseException):
    """A kill that nothing in the sweep can catch."""


FILE = """
from research.ablation.experiment import Experiment, Outcome
experiment = Experiment(
    question="?", base={base!r}, arms={{"a": {{}}, "b": {{"model.init_scale": 2.0}}}},
    tune={{"optimizer.learning_rate": (1e-3, 3e-3, 1e-2)}}, seeds=2, outcome=Outcome("loss"),
)
"""


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """An experiment file, and training that writes a loss that is least at 0.03."""
    path = tmp_path / "mine.py"
    path.write_text(FILE.format(base=small.BASE))
    trained = []

    def pretend(population, workdir, title, stop):
        trained.append((population.name, [cell.run for cell in population.cells]))
        for cell in population.cells:
            at = {"a": 3e-2, "b": 3e-3}[cell.arm] / cell.tuned[RATE]
            loss = {"loss": max(at, 1 / at)}
            result = {"status": "completed", "best": {"validation": loss}}
            write_json(workdir / cell.run / "result.json", result)

    monkeypatch.setattr(sweep, "_train", pretend)
    return str(path), trained


def test_a_sweep_that_is_killed_adds_the_same_values(pretended, tmp_path, monkeypatch):
    path, trained = pretended
    counts = run_sweep(path, tmp_path / "whole", Shard(), False, 8)
    whole, seen = list(trained), read_json(tmp_path / "whole" / "cells.json")
    # Three rates of each arm, two more of a (0.03 and 0.09), on three seeds; two reported seeds.
    assert counts["trained"] == sum(len(runs) for _, runs in whole) == 3 * (3 + 3 + 2) + 4
    assert [row["tuned"][RATE] for row in seen if row["stage"] == "report"] == 2 * [3e-2] + 2 * [
        3e-3
    ]
    pretend, killed = sweep._train, tmp_path / "killed"

    def dying(*arguments):
        pretend(*arguments)
        raise Died

    trained.clear()
    monkeypatch.setattr(sweep, "_train", dying)
    for _ in whole:
        with pytest.raises(Died):
            run_sweep(path, killed, Shard(), False, 8)
    assert run_sweep(path, killed, Shard(), False, 8)["finished before"] == counts["trained"]
    assert sorted(trained) == sorted(whole)
    assert read_json(killed / "cells.json") == seen
    monkeypatch.setattr(sweep, "_train", pretend)
    shards = [run_sweep(path, tmp_path / "shards", Shard(i, 2), False, 8) for i in (0, 1)]
    assert sum(c["trained"] for c in shards) == counts["trained"]


def test_what_tuning_may_add_is_said_before(pretended, tmp_path):
    path, _ = pretended
    experiment = sweep.prepare(path, tmp_path / "none")
    assert "up to 3 values a side, 3 runs to a value" in extension_text(experiment)
    assert extension_text(replace(experiment, tune_extend=0)) == ""
    rows = forecast(experiment, tmp_path / "none", Shard(), 8)
    assert sum(row["stage"] == "tune" for row in rows) == 2 * 3 * 3


def test_values_that_are_added_train_apart_from_those_before(tmp_path):
    before, _ = known_cells(TUNED, tmp_path)
    for run, result in finished(before, {"a": {RATE: 1.0}, "b": {RATE: 1.0}}).items():
        write_json(tmp_path / run / "result.json", result)
    after, _ = known_cells(TUNED, tmp_path)
    assert len(after) == len(before) + 4
    names = [p.name for p in populations(before, 8)]
    assert names == [p.name for p in populations(after, 8)][: len(names)]


def test_a_value_that_no_run_can_have_is_refused_before(tmp_path):
    path = tmp_path / "mine.py"
    text = FILE.format(base=small.BASE).replace(RATE, "model.dropout")
    path.write_text(text.replace("(1e-3, 3e-3, 1e-2)", "(0.1, 0.2, 0.4)"))
    with pytest.raises(
        sweep.UserError, match=r"may continue model.dropout to 3.2: .* tune_extend=0"
    ):
        sweep.prepare(str(path), tmp_path / "none")


def test_tuning_seeds_are_drawn_and_are_no_others(tmp_path):
    drawn = with_seeds(replace(TUNED, seeds=5, tune_seeds=3), "x")
    assert len(drawn.tune_seeds) == 3 and not set(drawn.tune_seeds) & set(drawn.seeds)
    more = with_seeds(replace(TUNED, seeds=8, tune_seeds=5), "x")
    assert (more.tune_seeds[:3], more.seeds[:5]) == (drawn.tune_seeds, drawn.seeds)
    assert with_seeds(replace(TUNED, tune={}, tune_seeds=3), "x").tune_seeds == ()
    assert json.loads(json.dumps(drawn.to_json()))["tune_seeds"] == list(drawn.tune_seeds)
