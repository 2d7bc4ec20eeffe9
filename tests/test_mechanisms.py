"""The pages of mechanisms and of config keys say what the code declares."""

import subprocess
import sys

import pytest

from research import config_keys, mechanisms
from research.attention import registry
from research.attention.parts.tables import TABLES
from research.report.judging.evidence import load_study
from research.training.schema import every_key
from tests.conftest import ROOT


def test_the_page_is_what_the_command_writes():
    written = (ROOT / "docs/mechanism-list.md").read_text()
    assert written == mechanisms.page(), "run: python -m research.mechanisms"


def test_the_page_of_config_keys_is_what_the_command_writes():
    written = (ROOT / "docs" / "config.md").read_text()
    assert written == config_keys.page(), "run: python -m research.config_keys"


def test_every_config_key_is_on_its_page_with_what_reads_it():
    page = config_keys.page()
    for key in every_key():
        assert f"| `{key}` |" in page
    rows = [line for line in page.splitlines() if line.startswith("| `task.kind`")]
    assert len(rows) == 2 and "| name: rule |" in rows[0] and "| name: transduction |" in rows[1]
    assert "| name: text, tokens, unless stream_sinks=() |" in page


def test_every_name_is_on_the_page():
    page = mechanisms.page()
    for table in (registry.MIXERS, *TABLES.values()):
        for name in table:
            assert f"| `{name}` |" in page
    for name in registry.MECHANISM_OPTIONS:
        assert f"| `model.{name}` |" in page


def test_what_cannot_be_decoded_has_no_state():
    row = next(line for line in mechanisms.page().splitlines() if "`linformer`" in line)
    assert "none: looks ahead" in row


def test_the_smoke_experiment_has_every_name():
    from experiments.every_mechanism import BASE, experiment

    for field, table in {**TABLES, "mixer": registry.MIXERS}.items():
        chosen = {deltas.get(f"model.{field}") for deltas in experiment.arms.values()}
        assert set(table) <= chosen | set(BASE)
    for name in registry.MECHANISM_OPTIONS:
        deltas = experiment.arms[name]
        assert f"model.{name}" in deltas or name in " ".join(deltas["model.pattern"])


@pytest.mark.slow
def test_every_mechanism_trains(tmp_path):
    """The smoke experiment, as a user runs it: no arm fails, and every loss falls."""
    sweep = [sys.executable, "-m", "research.sweep"]
    sweep += ["--experiment=experiments/every_mechanism.py", f"--workdir={tmp_path}"]
    done = subprocess.run(sweep, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    study = load_study(tmp_path)
    assert len(study.runs) == len(study.experiment.arms)
    for run in study.runs:
        losses = [row["train/loss"] for row in run.curve if "train/loss" in row]
        assert run.status == "completed", run.arm
        assert losses[-1] < losses[0], run.arm
