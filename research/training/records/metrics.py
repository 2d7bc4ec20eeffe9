"""Writes the metrics of a population as JSON lines and for dashboards, one row late.

Rows are added as device arrays and written when the next row is added, so the host never waits for
the step that it just dispatched. A thread waits instead, so that a row's time stamp is when its
values were computed: on GPUs the host drives the loop of steps, and the next row arrives only after
the next steps are done.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.errors import UserError, naming
from research.runs.bucket import copy_to_bucket
from research.runs.store import METRICS, json_safe, read_metrics, write_text
from research.tasks.task import Sums
from research.training.records import weights_and_biases


def mean_metrics(sums: Mapping[str, Sums], member: int) -> dict[str, float | list[float]]:
    """Returns {metric: total / count} of one member; empty slices are NaN."""
    values = {}
    for name, (total, count) in sums.items():
        total, count = np.asarray(total)[member], np.asarray(count)[member]
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where(count > 0, total / count, np.nan)
        values[name] = float(ratio) if ratio.ndim == 0 else [float(r) for r in ratio]
    return values


def resume_metrics(runs: Sequence[Path], step: int, logged: Iterable[int]) -> None:
    """Drops metrics rows after the step from which runs resume; training writes them again.

    Args:
      runs: run directories.
      step: step of the checkpoint; -1: training starts anew.
      logged: the steps up to `step` that must have a row.

    Raises UserError if rows up to the checkpoint are missing.
    """
    for run in runs:
        rows = [row for row in read_metrics(run) if row["step"] <= step]
        if lost := sorted(set(logged) - {row["step"] for row in rows}):
            raise UserError(
                f"{run / METRICS} was cut short: it has no row of step {lost[0]:,}, and the "
                f"checkpoint is of step {step:,}. Choose another --workdir, or delete that one."
            )
        write_text(run / METRICS, "".join(json.dumps(row) + "\n" for row in rows))


class MetricsWriter:
    """Appends to one metrics.jsonl and writes one TensorBoard log per member.

    With WANDB_PROJECT set, rows go to Weights & Biases too.

    Args:
      runs: run directories, in member order.
      step: step at which training starts or resumes.
      per_step: {name: amount in one step of all members}; rows have NAME as the amount per second
        since the row before.

    Every method raises OSError, with the file's name, if a write fails.
    """

    def __init__(self, runs: Sequence[Path], step: int, per_step: Mapping[str, float]):
        self._runs = runs
        self._per_step = per_step
        self._last: tuple[int, float] | None = None
        self._pending: tuple[int, dict[str, Any], Future[float]] | None = None
        self._waiting = ThreadPoolExecutor(1)
        self._start = time.perf_counter()
        # Imported lazily: tensorboardX imports PyTorch if it is installed.
        from research.training.records.events import EventFile

        self._boards: list[list[Any]] = [[EventFile(run / "tensorboard", step)] for run in runs]
        if weights_and_biases.project():
            for run, boards in zip(runs, self._boards, strict=True):
                boards.append(weights_and_biases.OnlineRun(run))
        self.latest: list[dict] = []

    def add(self, step: int, columns: dict[str, Any]) -> None:
        """Adds the row of `step`: {prefix: sums} and {name: (P,) array or float}."""
        self.flush()
        self._pending = (step, columns, self._waiting.submit(_computed, columns))

    def flush(self) -> None:
        """Writes the pending row; blocks until its values are computed."""
        if self._pending is None:
            return
        step, columns, computed = self._pending
        self._pending = None
        when = computed.result()
        times = {"seconds": round(when - self._start, 3)} | self._rates(step, when)
        members = range(len(self._runs))
        self.latest = [self._row(step, columns, member) | times for member in members]
        self._last = (step, when)
        for run, boards, row in zip(self._runs, self._boards, self.latest, strict=True):
            path = run / METRICS
            with naming(path), open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(json_safe(row)) + "\n")
            # TensorBoard cannot show NaN or infinities; JSON has null for them.
            finite = {k: v for k, v in row.items() if isinstance(v, float) and math.isfinite(v)}
            for board in boards:
                board.add(step, finite)

    def sync(self) -> None:
        """Flushes and fsyncs the rows, so that they survive a power failure.

        The files of a run in a bucket are copied there too.

        Called before a checkpoint: a checkpoint at a step requires the rows up to that step.
        """
        self.flush()
        for path in (run / METRICS for run in self._runs):
            with naming(path), open(path, "rb") as file:
                os.fsync(file.fileno())
        for run in self._runs[:1]:  # all members have one mirror
            copy_to_bucket(run)

    def _row(self, step: int, columns: dict[str, Any], member: int) -> dict:
        row: dict[str, Any] = {"step": step}
        for name, value in columns.items():
            if isinstance(value, Mapping):
                row |= {f"{name}/{k}": v for k, v in mean_metrics(value, member).items()}
            else:
                row[name] = float(np.broadcast_to(np.asarray(value), len(self._runs))[member])
        return row

    def _rates(self, step: int, now: float) -> dict[str, float]:
        """Returns the rates since the last row; the time includes evaluation and saving."""
        if self._last is None:
            return {}
        before, then = self._last
        steps = (step - before) / max(now - then, 1e-9)
        return {name: steps * amount for name, amount in self._per_step.items()}

    def close(self) -> None:
        """Writes the pending row and closes all files."""
        with contextlib.ExitStack() as left:
            left.callback(self._waiting.shutdown)
            for board in (board for boards in self._boards for board in boards):
                left.callback(board.close)
            self.flush()


def _computed(columns: Any) -> float:
    """Waits for all arrays and returns the time (perf_counter) when they were computed."""
    jax.block_until_ready(columns)
    return time.perf_counter()
