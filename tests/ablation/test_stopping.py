"""A sweep that is asked to stop stops: it fails nothing, and goes on as if nothing had happened."""

import os
import signal

import pytest

from research.ablation.sweep import Shard, run_sweep
from research.training import loop
from research.training.preemption import Preempted
from tests.ablation.test_sweep import write
from tests.kill_sweep import figures


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """An experiment of four populations that share a program."""
    arms = {"small": {}, "large": {"model.init_scale": 2.0}}
    return write(tmp_path_factory.mktemp("experiment"), arms=arms, axes={}, same=())


@pytest.fixture(scope="module")
def whole(path, tmp_path_factory):
    """A sweep that nothing stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    run_sweep(path, workdir, Shard(), False, 8)
    return workdir


@pytest.mark.parametrize("late", [False, True])
def test_sigterm_stops_a_sweep_and_fails_nothing(path, whole, tmp_path, monkeypatch, late):
    update, told = loop.ProgressLine.update, []

    def tell_once(self, step, rows):
        update(self, step, rows)
        # In the last steps of a run the signal comes too late for it, but not for the next one.
        if not told and (not late or step == self._steps):
            told.append(step)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.ProgressLine, "update", tell_once)
    message = "stopped between two runs" if late else "run the same command to continue"
    with pytest.raises(Preempted, match=message):
        run_sweep(path, tmp_path, Shard(), False, 8)
    assert told
    assert bool(list(tmp_path.glob("*/result.json"))) == late
    assert len(figures(tmp_path)) < len(figures(whole))
    counts = run_sweep(path, tmp_path, Shard(), False, 8)
    assert counts["failed"] == 0
    assert figures(tmp_path) == figures(whole)
