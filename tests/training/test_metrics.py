"""When the rows of a run were computed, as it says itself."""

import time

import jax.numpy as jnp
import pytest

from research.runs.store import read_metrics
from research.training.records.metrics import MetricsWriter

PAUSE = 0.4


def test_rows_have_the_time_at_which_they_were_computed_not_written(tmp_path):
    (tmp_path / "a").mkdir()
    before = time.perf_counter()
    writer = MetricsWriter([tmp_path / "a"], 0, utilization=0.1)
    after, handed = time.perf_counter(), []
    for step in (10, 20, 40):
        handed.append(time.perf_counter())
        writer.add(step, {"learning_rate": jnp.float32(0.5)})
        time.sleep(PAUSE)
    handed.append(time.perf_counter())
    writer.close()
    rows = read_metrics(tmp_path / "a")
    assert [row["step"] for row in rows] == [10, 20, 40]
    # A row is written when the next one comes, the last one at the end; it was there before that.
    for row, came, following in zip(rows, handed, handed[1:], strict=False):
        assert came - after - 1e-3 <= row["seconds"] < following - before
    # So that no row claims to have been computed in no time.
    assert "model_flops_utilization" not in rows[0]
    for last, row, steps in zip(rows, rows[1:], (10, 20), strict=False):
        rate = steps / (row["seconds"] - last["seconds"])
        assert row["model_flops_utilization"] == pytest.approx(0.1 * rate, rel=0.02)
