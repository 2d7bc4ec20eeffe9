"""A sweep that is asked to stop stops: it fails nothing, and goes on as if nothing had happened."""

import os
import signal

import pytest

from research.ablation.sweep import Shard, run_sweep
from research.training import loop
from research.training.preemption import Preempted
from tests.ablation.test_sweep import write
from tests.kill_sweep import figures


def test_sigterm_stops_a_sweep_and_fails_nothing(tmp_path, monkeypatch):
    path = write(tmp_path)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run_sweep(path, whole, Shard(), False, 8)

    update, told = loop.ProgressLine.update, []

    def tell_once(self, step, rows):
        update(self, step, rows)
        if not told:
            told.append(step)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.ProgressLine, "update", tell_once)
    with pytest.raises(Preempted, match="run the same command to continue"):
        run_sweep(path, stopped, Shard(), False, 8)
    assert told
    assert not list(stopped.glob("*/result.json"))
    counts = run_sweep(path, stopped, Shard(), False, 8)
    assert counts["failed"] == 0
    assert figures(stopped) == figures(whole)
