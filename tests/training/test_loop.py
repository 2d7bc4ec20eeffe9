"""Runs on disk: complete, resumed to the bit, one process each, readable afterwards."""

import functools
import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from research.configuration import apply_deltas, to_plain
from research.errors import UserError
from research.runs.store import read_json, read_metrics, read_result
from research.training import loop
from research.training.loop import train_population
from research.training.preemption import Preempted, StopRequest
from research.training.program import make_program
from research.training.records.checkpoints import load_best
from research.training.records.metrics import mean_metrics
from research.training.schema import resolve
from tests import small
from tests.commands import ROOT
from tests.runs import best_of, signal_at, train, without_time

recall = functools.partial(small.recall, model__num_layers=1)
BOUNDARIES = [5, 6, 8, 10, 12, 15, 16, 18, 20, 24]  # of small.RECALL: every 5, 6 and 8 steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of one member that nothing disturbed."""
    (run,) = train(recall(), tmp_path_factory.mktemp("whole"))
    return run


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    return train(recall(members=3), tmp_path_factory.mktemp("population"))


def test_a_run_has_its_files(whole):
    assert read_json(whole / "config.json") == to_plain(resolve(recall()))
    environment = read_json(whole / "environment.json")
    assert environment["versions"]["jax"] == jax.__version__
    assert {"python", "flax", "optax", "numpy"} <= environment["versions"].keys()
    assert environment["device"]["platform"] == jax.default_backend()
    assert environment["device"]["count"] == jax.device_count()
    assert len(environment["git"]["commit"]) == 40
    assert isinstance(environment["git"]["dirty"], bool)
    assert environment["command"][0] == "python"
    result = read_result(whole)
    assert (result["status"], result["diverged_at"], result["steps"]) == ("completed", -1, 24)
    assert result["seed"] == 0 and result["implementation"] == "dense"
    assert result["budget"]["parameters"] > 0 and result["timing"]["members"] == 1
    for which in ("best", "final"):
        assert result[which].keys() == {"validation", "test"}
        for metrics in result[which].values():
            assert 0 <= metrics["accuracy"] <= 1 and metrics["loss"] > 0
            assert len(metrics["accuracy_by_gap"]) == len(result["slices"]["accuracy_by_gap"])
    assert not list(whole.rglob("*.tmp")) and not list(whole.glob(".*.json.*"))


def test_metrics_are_complete_and_in_order(whole):
    rows = read_metrics(whole)
    assert [row["step"] for row in rows] == BOUNDARIES
    for row in rows:
        assert {"train/loss", "train/accuracy", "train/gradient_norm"} <= row.keys()
        assert ("validation/accuracy" in row) == (row["step"] % 8 == 0)
    # The rate of the last step that the row covers: warmup over 4 steps, then a cosine.
    assert rows[0]["learning_rate"] == pytest.approx(
        1e-2 * (0.1 + 0.9 * (1 + np.cos(np.pi * (5 - 4) / 20)) / 2), rel=1e-5
    )
    assert rows[-1]["learning_rate"] == pytest.approx(1e-3, rel=1e-4)
    best = max(rows, key=lambda row: row.get("validation/accuracy", -1))
    result = read_result(whole)
    assert result["best"]["validation"]["accuracy"] == pytest.approx(best["validation/accuracy"])
    assert result["best_step"] == best["step"]


def test_a_finished_run_is_not_trained_again(whole, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    monkeypatch.setattr(loop, "make_program", lambda *_: pytest.fail("trained again"))
    train(recall(), whole)
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


def test_where_a_run_reports_changes_nothing_in_what_it_learns(whole, tmp_path):
    config = recall(train__log_every=7, train__checkpoint_every=50)
    (run,) = train(config, tmp_path)
    assert [r["step"] for r in read_metrics(run)] == [7, 8, 14, 16, 21, 24]
    for one, two in zip(
        jax.tree.leaves(best_of(run)), jax.tree.leaves(best_of(whole)), strict=True
    ):
        np.testing.assert_array_equal(one, two)
    assert read_result(run)["final"] == read_result(whole)["final"]


def test_best_parameters_are_those_that_were_recorded(population):
    config = recall()
    program = make_program(config)
    for run in population:
        params, best = best_of(run)
        result = read_result(run)
        assert best["step"] == result["best_step"]
        stacked = jax.tree.map(lambda leaf: np.asarray(leaf)[None], params)
        for split, evaluate in program.evaluate.items():
            found = mean_metrics(evaluate(stacked, program.task.data).sums, 0)
            for name, value in result["best"][split].items():
                if isinstance(value, float):
                    assert found[name] == pytest.approx(value, rel=1e-5), name
        assert best["value"] == pytest.approx(result["best"]["validation"]["accuracy"])


def test_members_have_runs_of_their_own(population, whole):
    assert [read_result(run)["seed"] for run in population] == [0, 1, 2]
    assert [read_json(run / "population.json")["member"] for run in population] == [0, 1, 2]
    # The member with the seed of the single run has its figures, up to the order of additions.
    one, alone = (read_result(run)["final"]["validation"] for run in (population[0], whole))
    assert one["loss"] == pytest.approx(alone["loss"], rel=1e-3)
    losses = {read_result(run)["final"]["validation"]["loss"] for run in population}
    assert len(losses) == 3


@pytest.mark.parametrize(
    "stops",
    [[1], [7, 13], pytest.param([5, 10, 15, 20], marks=pytest.mark.slow)],
    ids=str,
)
def test_a_stopped_run_ends_as_if_nothing_had_happened(whole, tmp_path, monkeypatch, stops, capfd):
    signal_at(monkeypatch, stops)
    stopped = 0
    for _ in range(len(stops) + 1):
        try:
            (run,) = train(recall(), tmp_path)
            break
        except Preempted as error:
            stopped += 1
            assert "run the same command to continue" in str(error)
            assert read_result(tmp_path) is None
    assert stopped == len(stops)
    assert capfd.readouterr().err.count("SIGTERM: saving, then stopping") == stopped
    assert without_time(run) == without_time(whole)


def test_a_request_in_the_last_steps_is_not_lost(whole, tmp_path, monkeypatch):
    # A sweep that swallowed it would start the next run after it said that it would stop.
    signal_at(monkeypatch, [24])
    with StopRequest() as stop:
        train_population([recall()], [tmp_path], tmp_path, stop=stop)
    assert stop.agreed()
    assert without_time(tmp_path) == without_time(whole)


def test_a_population_that_was_stopped_ends_the_same(population, tmp_path, monkeypatch):
    signal_at(monkeypatch, [11], signal.SIGINT)
    with pytest.raises(Preempted):
        train(recall(members=3), tmp_path)
    for run, undisturbed in zip(train(recall(members=3), tmp_path), population, strict=True):
        assert without_time(run) == without_time(undisturbed)


def test_a_kill_loses_at_most_the_steps_since_the_checkpoint(whole, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    update = loop.ProgressLine.update

    def killed(self, step, rows):
        update(self, step, rows)
        if step == 16:
            raise Killed

    monkeypatch.setattr(loop.ProgressLine, "update", killed)
    with pytest.raises(Killed):
        train(recall(), tmp_path)
    monkeypatch.undo()
    # As after a power cut: a row that came after the checkpoint, and half of another.
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 16, "train/loss": 0.0}) + '\n{"step": 18, "tra')
    first = []
    monkeypatch.setattr(
        loop.ProgressLine, "update", lambda self, step, rows: first.append(step) or None
    )
    (run,) = train(recall(), tmp_path)
    assert first[0] == 15, "goes on after step 12, the last checkpoint"
    assert without_time(run) == without_time(whole)


def test_a_member_that_diverges_is_marked_and_the_others_finish(tmp_path, whole):
    wild = apply_deltas(recall(), {"seed": 1, "optimizer.learning_rate": 1e30})
    # As many as in the population, so that they share its programs.
    configs = [recall(), wild, recall(seed=2)]
    runs = [tmp_path / "calm", tmp_path / "wild", tmp_path / "other"]
    calm, lost, other = train_population(configs, runs, tmp_path)
    assert calm["status"] == other["status"] == "completed" and lost["status"] == "diverged"
    assert 0 < lost["diverged_at"] < 24
    assert calm["final"]["validation"]["loss"] == pytest.approx(
        read_result(whole)["final"]["validation"]["loss"], rel=1e-3
    )
    for path in tmp_path.rglob("*.json*"):
        assert "NaN" not in path.read_text(), "JSON has no word for it"


def test_another_config_is_refused_and_nothing_is_touched(whole):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    with pytest.raises(UserError) as error:
        train(recall(model__width=16), whole)
    assert "model.width (8 there, 16 here)" in str(error.value)
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


def test_a_checkpoint_of_another_model_is_one_line(tmp_path, monkeypatch):
    signal_at(monkeypatch, [6])
    with pytest.raises(Preempted):
        train(recall(), tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError) as error:
        train(recall(model__width=16), tmp_path)
    assert "is of another model" in str(error.value)
    assert str(tmp_path / "checkpoints") in str(error.value)


def test_load_best_of_nothing_is_one_line(tmp_path):
    with pytest.raises(UserError, match="there are no checkpoints"):
        load_best(tmp_path / "checkpoints", 0)


LONG = {
    "model__num_layers": 1,
    "train__steps": 40000,
    "train__log_every": 1,
    "train__eval_every": 40000,
    "train__checkpoint_every": 40000,
}


def test_processes_of_a_user(tmp_path):
    """Whoever comes second to the workdir is refused, SIGTERM saves with exit code 0."""
    changes = {key.replace("__", "."): value for key, value in LONG.items()}
    command = [sys.executable, "-m", "research.train", "--config=configs/base.py"]
    command += [*small.as_flags(small.RECALL | changes), f"--workdir={tmp_path}"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as first:
        try:
            while first.poll() is None and not read_metrics(tmp_path):
                time.sleep(0.05)
            # As a second command does, which would say it in one line and end with exit code 2.
            with pytest.raises(UserError) as refused:
                train(small.recall(**LONG), tmp_path)
            assert first.poll() is None, first.stderr.read()
            first.terminate()
            out, err = first.communicate(timeout=120)
        finally:
            first.kill()
    assert str(refused.value) == f"another process is training in {tmp_path}."
    assert first.returncode == 0, err
    # On a slow machine progress lines come before it.
    assert err.splitlines()[-1] == "SIGTERM: saving, then stopping (once more: stop at once)"
    assert "run the same command to continue." in out
    (step,) = (p.name for p in (tmp_path / "checkpoints").iterdir())
    assert int(step) == read_metrics(tmp_path)[-1]["step"]
    assert read_result(tmp_path) is None
