"""A sweep that is asked to stop stops: it fails nothing, and goes on as if nothing had happened."""

import os
import signal

import pytest

from research.ablation.sweep import Shard, run_sweep
from research.training import loop
from research.training.preemption import Preempted
from tests.ablation.test_sweep import write
from tests.kill_sweep import figures


@pytest.mark.parametrize("late", [False, True])
def test_sigterm_stops_a_sweep_and_fails_nothing(tmp_path, monkeypatch, late):
    path = write(tmp_path)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run_sweep(path, whole, Shard(), False, 8)

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
        run_sweep(path, stopped, Shard(), False, 8)
    assert told
    assert bool(list(stopped.glob("*/result.json"))) == late
    assert len(figures(stopped)) < len(figures(whole))
    counts = run_sweep(path, stopped, Shard(), False, 8)
    assert counts["failed"] == 0
    assert figures(stopped) == figures(whole)
