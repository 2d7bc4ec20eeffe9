"""Traces of whole steps, and how much of the devices' peak a step uses."""

import gzip
import json

import jax
import pytest

from research.errors import UserError
from research.runs.store import read_metrics
from research.train import members_of
from research.training import loop, utilization
from research.training.budget import measure_budget
from research.training.loop import train_population
from research.training.profiling import parse_steps
from tests import small

MEMBERS = 3


def train(run, **more):
    config = small.recall(members=MEMBERS, model__num_layers=1)
    runs = [run / str(i) for i in range(MEMBERS)]
    return config, runs, train_population(members_of(config), runs, run, **more)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Config, runs and results of a population that is not traced, on devices of no known peak."""
    return train(tmp_path_factory.mktemp("plain"))


def test_a_trace_is_written_and_changes_no_figure(plain, tmp_path):
    plain = plain[2]
    _, runs, traced = train(tmp_path / "traced", profile=range(4, 5))
    for a, b in zip(plain, traced, strict=True):
        assert {k: v for k, v in a.items() if k != "timing"} == {
            k: v for k, v in b.items() if k != "timing"
        }
    (file,) = (tmp_path / "traced" / "profile").rglob("perfetto_trace.json.gz")
    with gzip.open(file, "rt") as text:
        events = json.load(text)["traceEvents"]
    assert any("train" in str(event.get("name")) for event in events)
    # Dispatches end where the trace does.
    assert {4, 5} <= {row["step"] for row in read_metrics(runs[0])}


@pytest.mark.parametrize("text", ["5", "a:b", "3:3", "5:2", "-1:4", "8:11"])
def test_steps_that_cannot_be_traced(text):
    with pytest.raises(UserError, match="0 <= start < stop <= 10"):
        parse_steps(text, 10)
    assert parse_steps("0:10", 10) == range(10) and not parse_steps("", 10)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU7x", 2307e12 / 2),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("cpu", None),
    ],
)
def test_peaks(kind, peak):
    assert utilization.peak_flops(kind) == peak


def test_rows_have_the_utilization_where_the_peak_is_known(plain, tmp_path, monkeypatch):
    assert not any("model_flops_utilization" in row for row in read_metrics(plain[1][0]))
    monkeypatch.setattr(utilization, "peak_flops", lambda kind: 1e9)
    config, runs, results = train(tmp_path / "known")
    timing, budget = results[0]["timing"], measure_budget(config)
    tokens = config.task.batch_size * config.task.length * MEMBERS
    expected = budget["flops_per_token"] * tokens * timing["steps_per_second"] / 1e9
    used = loop.make_program(config, MEMBERS).layout.devices
    assert timing["model_flops_utilization"] == pytest.approx(expected / used, rel=1e-6)
    first, *rest = read_metrics(runs[0])
    assert "model_flops_utilization" not in first  # nothing to measure from
    assert all(row["model_flops_utilization"] > 0 for row in rest) and rest
    assert jax.devices()[0].device_kind == "cpu"
