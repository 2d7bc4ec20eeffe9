"""The command, and the configs for TPU slices compiled for them."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests import small
from tests.conftest import ROOT


def plan(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "research.plan", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
    )


def test_a_run_on_local_devices():
    run = plan(f"--config={small.BASE}", *small.as_flags(small.RECALL), "--topology=local")
    assert run.returncode == 0, run.stderr
    assert "compiled: kept + temporaries" in run.stdout
    assert "fits" in run.stdout


def test_estimates_need_no_libtpu_and_budgets_stop():
    arguments = ("--config=configs/tpu/lm_125m.py", "--topology=v5e:4x4,v5p:2x2x1", "--estimate")
    run = plan(*arguments)
    assert run.returncode == 0, run.stderr
    assert "v5e:4x4" in run.stdout and "v5p:2x2x1" in run.stdout
    assert "Price of v5p" in run.stdout
    stopped = plan(*arguments, "--budget=0.01")
    assert stopped.returncode == 2
    assert stopped.stderr.splitlines()[-1].startswith("error: --budget=0.01: v5e:4x4 costs about $")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5e:3x3"], "v5e has no topology '3x3'"),
        (["--topology=v5e:4x4", "--config.task.batch_size=4096"], "does not fit:"),
        (["--topology=v5e:4x4", "--config.parallel.model=5"], "parallel.model=5"),
        (["--topology=v5e:4x4", "--prices=nowhere.json"], "nowhere.json"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, message):
    run = plan("--config=configs/tpu/lm_125m.py", "--estimate", *arguments)
    assert run.returncode == 2
    assert message in run.stderr.splitlines()[-1]


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is not None, reason="libtpu is here, nothing is missing"
)
def test_without_libtpu_it_says_how_to_get_it():
    run = plan("--config=configs/tpu/lm_125m.py")
    assert run.returncode == 2
    assert 'pip install "jax[tpu]==' in run.stderr.splitlines()[-1]


@pytest.mark.slow
def test_every_cell_of_an_experiment_has_a_row():
    run = plan("--experiment=experiments/tpu/sequence_length.py", "--estimate")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("fits (") == 6


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason='needs libtpu: pip install "jax[tpu]", of the version of jax that is here',
)
@pytest.mark.parametrize(
    ("config", "deltas"),
    [
        ("lm_125m", {}),
        ("lm_1b3", {}),
        ("lm_125m", {"task.length": 32768, "task.batch_size": 8, "parallel.context": 8,
                     "model.implementation": "splash", "parallel.slice": "v5e:8x8"}),
    ],
    ids=["lm_125m", "lm_1b3", "sequence_length"],
)  # fmt: skip
def test_configs_for_slices_compile_with_kernels_and_as_predicted(config, deltas):
    from research.cloud.forecast import forecast
    from research.cloud.topology import parse_target
    from research.configuration import apply_deltas, load_config

    config = apply_deltas(load_config(f"configs/tpu/{config}.py"), deltas)
    found = forecast(config, parse_target(config.parallel.slice), {}, compiling=True)
    # Splash attention: forwards, forwards again under remat, and two kernels for the gradients.
    assert found.compiled.kernels == 4
    assert found.fits
    tolerance = 0.15 if not deltas else 0.25
    assert found.memory.temporaries == pytest.approx(found.compiled.temporaries, rel=tolerance)
