"""When the rows of a run were computed, as it says itself."""

import time

import jax.numpy as jnp
import numpy as np
import pytest

from research.ablation.store import read_metrics
from research.training.metrics import MetricsWriter

PAUSE = 0.4


def test_rows_have_the_time_at_which_they_were_computed_not_written(tmp_path):
    (tmp_path / "a").mkdir()
    writer = MetricsWriter([tmp_path / "a"], 0, utilization=0.1)
    began = time.perf_counter()
    for step in (10, 20, 40):
        writer.add(step, {"learning_rate": jnp.float32(0.5)})
        time.sleep(PAUSE)
    lasted = time.perf_counter() - began
    writer.close()
    rows = read_metrics(tmp_path / "a")
    assert [row["step"] for row in rows] == [10, 20, 40]
    # The first row is written when the second one comes, the last one at the end.
    seconds = [row["seconds"] for row in rows]
    assert seconds[0] < PAUSE and seconds[-1] < lasted - PAUSE / 2
    assert np.diff(seconds) == pytest.approx(PAUSE, rel=0.5)
    # So that no row claims to have been computed in no time.
    assert "model_flops_utilization" not in rows[0]
    for before, row, steps in zip(rows, rows[1:], (10, 20), strict=False):
        rate = steps / (row["seconds"] - before["seconds"])
        assert row["model_flops_utilization"] == pytest.approx(0.1 * rate, rel=0.02)
