"""When the rows of a run were computed, as it says itself."""

import sys
import time

import jax.numpy as jnp
import pytest

from research.errors import UserError
from research.runs.store import read_json, read_metrics
from research.training.records import progress
from research.training.records.metrics import MetricsWriter

PAUSE = 0.4


def test_rows_have_the_time_at_which_they_were_computed_not_written(tmp_path):
    (tmp_path / "a").mkdir()
    before = time.perf_counter()
    writer = MetricsWriter([tmp_path / "a"], 0, {"tokens_per_second": 64})
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
    assert "tokens_per_second" not in rows[0]
    for last, row, steps in zip(rows, rows[1:], (10, 20), strict=False):
        rate = steps / (row["seconds"] - last["seconds"])
        assert row["tokens_per_second"] == pytest.approx(64 * rate, rel=0.02)


def test_a_line_shows_tokens_and_utilization_of_the_latest_row(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    line = progress.ProgressLine("run", 0, 40, ("train/loss", "validation/loss"))
    line.update(10, [{"train/loss": 2.0}])
    rates = {"tokens_per_second": 12_345.6, "model_flops_utilization": 0.382}
    line.update(20, [{"train/loss": loss} | rates for loss in (1.25, 1.5)])
    line.update(30, [{"train/loss": 1.0, "tokens_per_second": 7.0}])
    line.close()
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.startswith("run: step 10/40, ") and "tokens" not in first and "MFU" not in first
    assert "steps/s, 12,346 tokens/s, MFU 38.2%, train/loss 1.250..1.500, " in second
    assert "steps/s, 7 tokens/s, train/loss 1.000, " in third


def test_without_its_package_a_project_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "heads")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="WANDB_PROJECT='heads' needs the package wandb: pip"):
        MetricsWriter([tmp_path], 0, {})


def test_rows_are_kept_for_weights_and_biases(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_PROJECT", "heads")
    monkeypatch.setenv("WANDB_MODE", "offline")
    runs = [tmp_path / name for name in ("a", "b")]
    for steps in ((10, 20), (30,)):  # the second time the run goes on
        for run in runs:
            run.mkdir(exist_ok=True)
        writer = MetricsWriter(runs, steps[0], {})
        for step in steps:
            writer.add(step, {"learning_rate": jnp.float32(0.5)})
        writer.close()
    for run in runs:
        known = read_json(run / "wandb.json")["id"]
        files = sorted(run.glob(f"wandb/offline-run-*-{known}/run-{known}.wandb"))
        assert len(files) == 2
        # The library's own process writes them.
        end = time.monotonic() + 20
        while not all(b"learning_rate" in file.read_bytes() for file in files):
            assert time.monotonic() < end
            time.sleep(0.05)
