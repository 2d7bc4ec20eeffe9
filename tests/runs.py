"""Trains runs in this process, disturbs them, and compares what they left."""

import os
import signal

from research.runs.store import TIMINGS, read_json, read_metrics, read_result
from research.train import directories, members_of
from research.training import loop
from research.training.loop import train_population
from research.training.records.checkpoints import load_best


def train(config, workdir):
    """Trains as research.train does; returns the runs' directories."""
    configs = members_of(config)
    runs = directories(workdir, configs)
    train_population(configs, runs, workdir)
    return runs


def without_time(run):
    """Returns result.json and metrics.jsonl without what a clock says."""
    result = {k: v for k, v in read_result(run).items() if k != "timing"}
    return result, rows_without_time(run)


def rows_without_time(run):
    """Returns metrics.jsonl without what a clock says."""
    timed = {"seconds", *TIMINGS}
    return [{k: v for k, v in row.items() if k not in timed} for row in read_metrics(run)]


def best_of(run):
    where = read_json(run / "population.json")
    return load_best(run / where["checkpoints"], where["member"])


def signal_at(monkeypatch, steps, number=signal.SIGTERM):
    """Sends this process a signal when training reaches each of the steps."""
    at_steps(monkeypatch, steps, lambda: os.kill(os.getpid(), number))


def at_steps(monkeypatch, steps, action):
    """Does something when training reaches each of the steps."""
    left = sorted(steps)
    update = loop.ProgressLine.update

    def told(self, step, rows):
        update(self, step, rows)
        if left and step >= left[0]:
            left.pop(0)
            action()

    monkeypatch.setattr(loop.ProgressLine, "update", told)
