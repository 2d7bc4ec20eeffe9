"""Sweeps: nothing twice, nothing lost, the same runs however they are cut into pieces."""

import contextlib
import os
import shutil
import signal
from pathlib import Path

import pytest

from research.ablation import sweep
from research.ablation.cells import read_cells, write_cells
from research.ablation.expansion import tuning_cells
from research.ablation.forecast import forecast, predict
from research.ablation.loading import load_experiment
from research.ablation.populations import Shard, known_cells, parse_shard, populations
from research.ablation.sweep import run_sweep
from research.errors import UserError
from research.report.judging.evidence import load_study
from research.runs.store import BUDGET, TIMINGS, read_json, read_result
from research.training import loop
from research.training.preemption import Preempted
from research.training.program import static_id
from tests import kill_sweep, small
from tests.commands import run_cases, run_commands
from tests.grown import updated

EXPERIMENT = """
from research.ablation.experiment import Experiment, Outcome

experiment = Experiment(
    question="Does a second head help?",
    base="configs/base.py",
    common={common!r},
    arms={arms!r},
    axes={axes!r},
    tune={{"optimizer.learning_rate": (1e-3, 1e-2)}},
    tune_seeds=(100,),
    tune_extend=0,
    seeds=(0, 1),
    same={same!r},
    outcome=Outcome("loss"),
    ablated=("flops_per_token",),
)
"""
STEPS = {"train.steps": 4, "train.log_every": 2, "train.eval_every": 2, "train.checkpoint_every": 2}
HEADS = {
    "one head": {"model.num_heads": 1},
    "two heads": {},
    "two heads again": {"model.num_heads": 2},
}
# An axis that changes no shape: the points share compiled programs.
SCALES = {"model.init_scale": (1.0, 2.0)}
SAME = (("two heads", "two heads again"),)
ALL = Shard()


def write(folder, steps=STEPS, arms=HEADS, axes=SCALES, same=SAME):
    """Writes an experiment; returns its path."""
    common = small.RECALL | {"model.num_layers": 1} | steps
    del common["optimizer.learning_rate"]  # it is tuned
    path = folder / "heads.py"
    path.write_text(EXPERIMENT.format(common=common, arms=arms, axes=axes, same=same))
    return str(path)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return write(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def swept(experiment, tmp_path_factory):
    """A finished sweep and what it counted."""
    workdir = tmp_path_factory.mktemp("sweep")
    return workdir, run_sweep(experiment, workdir, ALL, False, 8)


def test_every_cell_has_a_result_and_equal_cells_share_one(swept):
    workdir, counts = swept
    cells = read_json(workdir / "cells.json")
    # 3 arms at 2 points: 2 rates with one tuning seed, and 2 reported seeds.
    assert len(cells) == 3 * 2 * (2 + 2)
    runs = {cell["run"] for cell in cells}
    # Two arms are the same config, so a third of the runs are trained once for both.
    assert len(runs) == 2 * 2 * (2 + 2)
    assert all(read_result(workdir / run)["status"] == "completed" for run in runs)
    result = read_result(workdir / next(iter(runs)))
    # A claim may name no other column, and each says which way is better.
    assert set(result["budget"]) == set(BUDGET)
    assert set(result["timing"]) <= set(TIMINGS)
    assert counts == {"trained": 16, "finished before": 0, "failed": 0, "waiting": 0}
    assert len(list(workdir.glob("*/result.json"))) == 16
    by_arm = {
        arm: [c["run"] for c in cells if c["arm"] == arm]
        for arm in ("two heads", "two heads again", "one head")
    }
    assert by_arm["two heads"] == by_arm["two heads again"]
    assert not set(by_arm["two heads"]) & set(by_arm["one head"])


def test_reported_runs_take_what_tuning_found_on_seeds_it_never_saw(swept):
    workdir, _ = swept
    cells = read_json(workdir / "cells.json")
    for scale in (1.0, 2.0):
        for arm in ("one head", "two heads"):
            mine = [
                c for c in cells if c["arm"] == arm and c["point"] == {"model.init_scale": scale}
            ]
            tuning = [c for c in mine if c["stage"] == "tune"]
            loss = {
                c["tuned"]["optimizer.learning_rate"]: read_result(workdir / c["run"])["best"][
                    "validation"
                ]["loss"]
                for c in tuning
            }
            assert len(loss) == 2 and {c["seed"] for c in tuning} == {100}
            reported = [c for c in mine if c["stage"] == "report"]
            assert [c["seed"] for c in reported] == [0, 1]
            for cell in reported:
                assert cell["tuned"] == {"optimizer.learning_rate": min(loss, key=loss.get)}
                config = read_json(workdir / cell["run"] / "config.json")
                assert config["optimizer"]["learning_rate"] == min(loss, key=loss.get)
                assert config["model"]["init_scale"] == scale and config["seed"] == cell["seed"]


def test_a_finished_sweep_trains_nothing(swept, experiment, monkeypatch):
    workdir, _ = swept
    before = kill_sweep.figures(workdir)
    monkeypatch.setattr(sweep, "train_population", lambda *_: pytest.fail("trained again"))
    counts = run_sweep(experiment, workdir, ALL, False, 8)
    assert counts == {"trained": 0, "finished before": 16, "failed": 0, "waiting": 0}
    assert kill_sweep.figures(workdir) == before


def test_a_finished_sweep_has_nothing_to_do_after_an_update(swept, experiment, tmp_path):
    workdir, counts = swept
    shutil.copytree(workdir, tmp_path / "copy")
    with contextlib.contextmanager(updated)():
        again = run_sweep(experiment, tmp_path / "copy", ALL, False, 8)
    assert again["trained"] == 0 and again["finished before"] == counts["trained"]
    assert read_json(tmp_path / "copy" / "cells.json") == read_json(workdir / "cells.json")


def test_added_seeds_are_trained_and_nothing_else(swept, experiment, tmp_path):
    workdir = tmp_path / "sweep"
    shutil.copytree(swept[0], workdir)
    before = kill_sweep.figures(workdir)
    path = tmp_path / Path(experiment).name
    path.write_text(Path(experiment).read_text().replace("seeds=(0, 1),", "seeds=(0, 1, 2, 3),"))
    counts = run_sweep(str(path), workdir, ALL, False, 8)
    # Two more seeds of two different arms at two points, in populations as large as those before.
    assert counts == {"trained": 8, "finished before": 16, "failed": 0, "waiting": 0}
    after = kill_sweep.figures(workdir)
    assert {run: after[run] for run in before} == before
    study = load_study(workdir)
    assert study.experiment.looks == [2, 4] and study.registration.looks == (2, 4)


def test_shards_together_are_the_whole(swept, experiment, tmp_path):
    workdir, _ = swept
    first = run_sweep(experiment, tmp_path, parse_shard("1/2"), False, 8)
    assert 0 < first["trained"] < 16 and first["waiting"] > 0
    second = run_sweep(experiment, tmp_path, parse_shard("2/2"), False, 8)
    assert first["trained"] + second["trained"] == 16 and second["waiting"] == 0
    assert kill_sweep.figures(tmp_path) == kill_sweep.figures(workdir)
    together, whole = (load_study(folder).runs for folder in (tmp_path, workdir))
    assert [run.key for run in together] == [run.key for run in whole]
    assert [run.run for run in together] == [run.run for run in whole]


def test_shards_that_finish_together_lose_nothing_of_each_other(tmp_path):
    """The list that one wrote before is not the other's to replace."""

    def rows(arm, stages):
        return [{"arm": arm, "point": {}, "stage": s, "run": arm + s, "seed": 0} for s in stages]

    write_cells(tmp_path, rows("a", ["tune"]), 0, 2)
    write_cells(tmp_path, rows("b", ["tune", "report"]), 1, 2)
    write_cells(tmp_path, rows("a", ["tune", "report"]), 0, 2)
    found = {row["run"] for row in read_cells(tmp_path)}
    assert found == {"atune", "areport", "btune", "breport"}
    # As a whole, later, an arm may have other runs; those of before are not its any more.
    write_cells(tmp_path, rows("a", ["other"]))
    found = {row["run"] for row in read_cells(tmp_path)}
    assert found == {"aother", "btune", "breport"}


@pytest.mark.parametrize("text", ["0/2", "3/2", "a/b", "1", "1/2/3", "-1/2", ""])
def test_shards_that_make_no_sense(text):
    with pytest.raises(UserError, match="must be i/n"):
        parse_shard(text)


def test_populations_stay_within_their_bounds(experiment, swept):
    cells, _ = known_cells(load_experiment(experiment), swept[0])
    for most in (1, 2, 8):
        groups = populations(cells, most)
        runs = [cell.run for group in groups for cell in group.cells]
        assert len(runs) == len(set(runs)) == 16
        assert max(len(group.cells) for group in groups) <= most
        for group in groups:
            assert len({(c.arm, c.stage, c.config.model.init_scale) for c in group.cells}) == 1
        # Names depend on the members alone, so that a sweep finds its checkpoints again.
        assert [g.name for g in groups] == [g.name for g in populations(cells, most)]


def test_a_failing_arm_is_recorded_and_the_rest_go_on(experiment, swept, tmp_path, monkeypatch):
    workdir, _ = swept
    train_population = sweep.train_population

    def failing(configs, runs, home, title, stop):
        if configs[0].model.num_heads == 1 and configs[0].model.init_scale == 2.0:
            raise FloatingPointError("on purpose")
        return train_population(configs, runs, home, title, stop=stop)

    monkeypatch.setattr(sweep, "train_population", failing)
    counts = run_sweep(experiment, tmp_path, ALL, False, 8)
    failed = [r for r in kill_sweep.figures(tmp_path).values() if r["status"] == "failed"]
    assert counts["failed"] == len(failed) == 4
    for result in failed:
        assert "FloatingPointError: on purpose" in result["error"]
        assert "Traceback" in result["error"]
    healthy = kill_sweep.figures(workdir)
    for run, result in kill_sweep.figures(tmp_path).items():
        assert result["status"] == "failed" or result == healthy[run]
    # Without being asked it does not try again; asked, it ends as if nothing had happened.
    monkeypatch.setattr(sweep, "train_population", lambda *_: pytest.fail("trained again"))
    assert run_sweep(experiment, tmp_path, ALL, False, 8)["failed"] == 4
    monkeypatch.setattr(sweep, "train_population", train_population)
    counts = run_sweep(experiment, tmp_path, ALL, True, 8)
    assert (counts["failed"], counts["trained"]) == (0, 4)
    final = kill_sweep.figures(tmp_path)
    reported = {c["run"] for c in read_json(tmp_path / "cells.json")}
    assert {run: final[run] for run in reported} == healthy


def test_forecast_before_and_after(experiment, swept, tmp_path):
    loaded = load_experiment(experiment)
    before = forecast(loaded, tmp_path, ALL, 8)
    assert not list(tmp_path.iterdir()), "a forecast writes nothing"
    # Two arms are one, and their tuning is shared; what waits for tuning is listed too.
    assert {row["status"] for row in before} == {"to do"}
    assert {row["seconds"] for row in before} == {None}
    assert {row["stage"] for row in before} == {"tune", "report"}
    after = forecast(loaded, swept[0], ALL, 8)
    assert len(after) == 16 and {row["status"] for row in after} == {"done"}
    for row in after:
        assert row["parameters"] > 0 and row["flops_per_token"] > 0 and row["state_bytes"] > 0
        assert row["seconds"] > 0 and row["members"] == 2
    parts = [forecast(loaded, swept[0], parse_shard(f"{i}/2"), 8) for i in (1, 2)]
    runs = [{row["run"] for row in part} for part in parts]
    assert runs[0] | runs[1] == {row["run"] for row in after}


def test_forecast_of_a_shape_that_never_ran_goes_by_its_flops(experiment):
    cell = tuning_cells(load_experiment(experiment))[0]
    budget = {"flops_per_token": 100.0, "tokens": 1000, "steps": 10}
    rates = {"other": (0.5, 2000.0), "another": (1.5, 6000.0)}
    assert predict(cell.config, budget, {}) is None
    assert predict(cell.config, budget, rates) == pytest.approx(2.0 / 8000 * 1e5)
    rates[static_id(cell.config)] = (0.25, 1.0)
    assert predict(cell.config, budget, rates) == 2.5


def test_another_experiment_in_the_workdir_is_refused(swept, tmp_path):
    path = write(tmp_path)
    (tmp_path / "heads.py").rename(tmp_path / "tails.py")
    with pytest.raises(
        UserError, match="holds the sweep of the experiment 'heads', not of 'tails'"
    ):
        run_sweep(path.replace("heads.py", "tails.py"), swept[0], ALL, False, 8)


def test_the_command(experiment, swept):
    case = [f"--experiment={experiment}", f"--workdir={swept[0]}"]
    (outcome,) = run_cases("research.sweep", [case])
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [
        "16 finished before",
        f"python -m research.report --workdir={swept[0]}",
    ]


@pytest.mark.parametrize("late", [False, True])
def test_sigterm_stops_a_sweep_and_fails_nothing(swept, tmp_path, monkeypatch, late):
    """It stops, and goes on as if nothing had happened."""
    update, told = loop.ProgressLine.update, []

    def tell_once(self, step, rows):
        update(self, step, rows)
        # In the last steps of a run the signal comes too late for it, but not for the next one.
        if not told and (not late or step == self._steps):
            told.append(step)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.ProgressLine, "update", tell_once)
    message = "stopped between two runs" if late else "run the same command to continue"
    # Four populations that share a program: the runs of one arm of the whole sweep.
    path = write(tmp_path, arms={"small": {}, "large": {"model.init_scale": 2.0}}, axes={}, same=())
    workdir = tmp_path / "sweep"
    with pytest.raises(Preempted, match=message):
        run_sweep(path, workdir, ALL, False, 8)
    assert told
    assert bool(list(workdir.glob("*/result.json"))) == late
    assert len(kill_sweep.figures(workdir)) < 8
    assert run_sweep(path, workdir, ALL, False, 8)["failed"] == 0
    cells = read_json(swept[0] / "cells.json")
    arm = {cell["run"] for cell in cells if cell["arm"] == "two heads"}
    whole = kill_sweep.figures(swept[0])
    assert kill_sweep.figures(workdir) == {run: whole[run] for run in arm} and len(arm) == 8


@pytest.mark.slow  # by SIGTERM sweeps are stopped above
def test_killing_a_sweep_changes_nothing(tmp_path):
    path = write(tmp_path, STEPS | {"train.steps": 12, "train.checkpoint_every": 4})
    said = []
    found = kill_sweep.compare(path, tmp_path, kills=1, seed=1, say=said.append)
    assert len(found) == 16, said
    assert sum("killed" in line for line in said) == 1, said


@pytest.mark.slow
def test_killing_a_sweep_ten_times_changes_nothing(tmp_path):
    path = write(tmp_path, STEPS | {"train.steps": 24, "train.checkpoint_every": 4})
    said = []
    found = kill_sweep.compare(path, tmp_path, kills=10, seed=2, say=said.append)
    assert len(found) == 16, said
    assert sum("killed" in line for line in said) >= 5, said


@pytest.mark.parametrize("held", [1, 2])
def test_no_more_programs_are_held_than_said(held, experiment, tmp_path, monkeypatch):
    """Each compiled program holds memory maps, of which a process has a limited number."""
    events = []
    monkeypatch.setattr(sweep, "MAX_PROGRAMS", held)
    monkeypatch.setattr(sweep, "clear_programs", lambda: events.append("forget"))
    monkeypatch.setattr(
        sweep, "_train", lambda population, *_: events.append(static_id(population.configs[0]))
    )
    run_sweep(experiment, tmp_path, ALL, False, 8)
    # Two programs (one head, two heads), which the two points ask for in turn.
    assert len(set(events) - {"forget"}) == 2
    live = set()
    for event in events:
        live = set() if event == "forget" else live | {event}
        assert len(live) <= held
    assert events.count("forget") == (3 if held == 1 else 0)


def test_forgotten_programs_are_gone():
    """In a process of its own, where no other test needs them."""
    (done,) = run_commands([("tests.live_programs", [])])
    before, after = map(int, done.out.split())
    assert before > after == 0
