"""Metrics of a population on their way to disk: JSON lines and TensorBoard, one step late.

Rows are handed over as device arrays and written when the next row comes, so that the host never
waits for the step that it just dispatched. A thread waits in its place, so that the time of a row
is when it was computed: on GPUs the host drives a loop of steps, and the next row comes only when
the next steps are done.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorboardX

from research.ablation.store import METRICS, plain, read_metrics, write_text
from research.tasks.task import Sums


def ratios(sums: Mapping[str, Sums], member: int) -> dict[str, float | list[float]]:
    """Returns {metric: total / count} of one member; slices that hold nothing are NaN."""
    values = {}
    for name, (total, count) in sums.items():
        total, count = np.asarray(total)[member], np.asarray(count)[member]
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where(count > 0, total / count, np.nan)
        values[name] = float(ratio) if ratio.ndim == 0 else [float(r) for r in ratio]
    return values


class MetricsWriter:
    """Writes one metrics.jsonl and one TensorBoard log per member.

    Args:
      runs: run directories, in member order.
      resume_step: rows after this step are dropped first; they are from a run that was cut after
        its last checkpoint and will come again.
      utilization: model FLOPs utilization at one step per second, where the devices' peak is known.
    """

    def __init__(self, runs: Sequence[Path], resume_step: int, utilization: float | None = None):
        self._runs = runs
        self._utilization = utilization
        self._last: tuple[int, float] | None = None
        self._pending: tuple[int, dict[str, Any], Future[float]] | None = None
        self._waiting = ThreadPoolExecutor(1)
        self._start = time.perf_counter()
        for run in runs:
            rows = [row for row in read_metrics(run) if row["step"] <= resume_step]
            write_text(run / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
        self._boards = [
            tensorboardX.SummaryWriter(str(run / "tensorboard"), flush_secs=30) for run in runs
        ]
        self.latest: list[dict] = []

    def add(self, step: int, columns: dict[str, Any]) -> None:
        """Hands over the row of `step`: {prefix: sums} and {name: (P,) array or float}."""
        self.flush()
        self._pending = (step, columns, self._waiting.submit(_computed, columns))

    def flush(self) -> None:
        """Writes the row that is waiting; blocks until its values are computed."""
        if self._pending is None:
            return
        step, columns, computed = self._pending
        self._pending = None
        when = computed.result()
        times = {"seconds": round(when - self._start, 3)} | self._utilized(step, when)
        members = range(len(self._runs))
        self.latest = [self._row(step, columns, member) | times for member in members]
        self._last = (step, when)
        for run, board, row in zip(self._runs, self._boards, self.latest, strict=True):
            with open(run / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps(plain(row)) + "\n")
            for name, value in row.items():
                # TensorBoard has no word for NaN either; it would warn once for every value.
                if isinstance(value, float) and math.isfinite(value):
                    board.add_scalar(name, value, step)

    def _row(self, step: int, columns: dict[str, Any], member: int) -> dict:
        row: dict[str, Any] = {"step": step}
        for name, value in columns.items():
            if isinstance(value, Mapping):
                row |= {f"{name}/{k}": v for k, v in ratios(value, member).items()}
            else:
                row[name] = float(np.broadcast_to(np.asarray(value), len(self._runs))[member])
        return row

    def _utilized(self, step: int, now: float) -> dict[str, float]:
        """The utilization since the last row; evaluation and saving count as time."""
        if self._utilization is None or self._last is None:
            return {}
        before, then = self._last
        rate = (step - before) / max(now - then, 1e-9)
        return {"model_flops_utilization": rate * self._utilization}

    def close(self) -> None:
        """Writes what is left."""
        self.flush()
        self._waiting.shutdown()
        for board in self._boards:
            board.close()


def _computed(columns: Any) -> float:
    """Waits, and returns when all of it was there."""
    jax.block_until_ready(columns)
    return time.perf_counter()
