"""The command, and the configs for TPU slices compiled for them."""

import importlib.util

import pytest

from tests import small
from tests.commands import run_cases

LOCAL = [f"--config={small.BASE}", *small.as_flags(small.RECALL), "--topology=local"]
LARGE = "--config=configs/tpu/lm_125m.py"
TOKENS = "--tokens=10B"
SLICES = [LARGE, "--topology=v5e:4x4,v5p:2x2x1", "--estimate", TOKENS]
MISTAKES = {
    "task.path='data/fineweb-edu': there is no such file or directory": [LARGE, "--estimate"],
    "--tokens='lots' must be a number of tokens": [LARGE, "--estimate", "--tokens=lots"],
    "v5e has no topology '3x3'": [LARGE, "--estimate", "--topology=v5e:3x3"],
    "the generation 'v9' is unknown. Known: v4, v5e": [LARGE, "--estimate", "--topology=v9:2x2"],
    "does not fit:": [LARGE, "--estimate", TOKENS, "--config.task.batch_size=4096"],
    "parallel.model=5": [LARGE, "--estimate", TOKENS, "--config.parallel.model=5"],
    "nowhere.json": [LARGE, "--estimate", TOKENS, "--prices=nowhere.json"],
    "--budget=0.01: v5e:4x4 costs about $": [
        LARGE,
        "--estimate",
        TOKENS,
        "--budget=0.01",
    ],
    "give either --config=configs/NAME.py or --experiment": [],
}


@pytest.fixture(scope="module")
def outcomes():
    cases = [LOCAL, SLICES, *MISTAKES.values()]
    return run_cases("research.plan", cases, JAX_PLATFORMS="cpu")


def test_a_run_on_local_devices(outcomes):
    run = outcomes[0]
    assert run.code == 0, run.err
    assert "compiled: kept + temporaries" in run.out
    assert "fits" in run.out


def test_estimates_need_no_libtpu(outcomes):
    run = outcomes[1]
    assert run.code == 0, run.err
    assert "v5e:4x4" in run.out and "v5p:2x2x1" in run.out
    assert "Price of v5p" in run.out
    assert run.out.count("Corpus: 10,000,000,000 tokens (as --tokens says), uint16") == 2


@pytest.mark.parametrize("message", MISTAKES)
def test_what_cannot_be_is_one_line(outcomes, message):
    run = outcomes[2 + list(MISTAKES).index(message)]
    assert run.code == 2
    assert run.err.startswith("error: ") or run.err.splitlines()[-1].startswith("error: ")
    assert message in run.err.splitlines()[-1]


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is not None, reason="libtpu is here, nothing is missing"
)
def test_without_libtpu_it_says_how_to_get_it():
    (run,) = run_cases("research.plan", [[LARGE, TOKENS]], JAX_PLATFORMS="cpu")
    assert run.code == 2
    assert 'pip install "jax[tpu]==' in run.err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows"), [("sequence_length", 6), ("head_count_125m", 7)])
def test_every_cell_of_an_experiment_has_a_row(name, rows):
    case = [f"--experiment=experiments/tpu/{name}.py", "--estimate", TOKENS, "--max_members=auto"]
    (run,) = run_cases("research.plan", [case])
    assert run.code == 0, run.err
    assert run.out.count("fits (") == rows
    assert "differ in implementation" not in run.out


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
        ("lm_125m", {"model.num_heads": 48, "model.implementation": "splash"}),
        ("lm_125m", {"task.length": 32768, "task.batch_size": 8, "parallel.context": 8,
                     "model.implementation": "splash", "parallel.slice": "v5e:8x8"}),
    ],
    ids=["lm_125m", "lm_1b3", "head_count_125m", "sequence_length"],
)  # fmt: skip
def test_configs_for_slices_compile_with_kernels_and_as_predicted(config, deltas):
    from research.cloud.forecast import forecast
    from research.configuration import apply_deltas, load_config
    from research.parallel.topology import parse_target

    config = apply_deltas(load_config(f"configs/tpu/{config}.py"), deltas)
    found = forecast(config, parse_target(config.parallel.slice), {}, compiling=True, tokens=10**10)
    # Splash attention: forwards, forwards again under remat, and two kernels for the gradients.
    assert found.compiled.kernels == 4
    assert found.fits
    tolerance = 0.15 if not deltas else 0.25
    assert found.estimate.memory.temporaries == pytest.approx(
        found.compiled.temporaries, rel=tolerance
    )
