"""Profiles of compiler flags: in effect from the start of a process, recorded, no part of a run."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from research.ablation.loading import use_profile_of
from research.ablation.sweep import prepare
from research.errors import UserError
from research.parallel import xla_flags
from research.parallel.xla_flags import (
    PROFILES,
    check_profile_in_use,
    flags_in_use,
    say_if_useless,
    use_profile,
)
from research.training.schema import run_id
from research.training.validation import check_config
from tests import small
from tests.commands import run_cases

TPU = "LIBTPU_INIT_ARGS"


@pytest.fixture
def environment(monkeypatch):
    """The variables that compilers read, empty, and restored afterwards."""
    for variable in xla_flags.VARIABLES.values():
        monkeypatch.setenv(variable, "")
    return os.environ


def test_flags_that_are_set_already_come_last_and_win(environment):
    environment[TPU] = "--mine=1 --xla_tpu_scoped_vmem_limit_kib=1"
    use_profile("large_vmem")
    use_profile("large_vmem")
    assert environment[TPU].split() == [
        *PROFILES["large_vmem"].flags,
        "--mine=1",
        "--xla_tpu_scoped_vmem_limit_kib=1",
    ]
    assert flags_in_use() == {TPU: environment[TPU]}
    check_profile_in_use("large_vmem")


def test_the_default_adds_nothing(environment):
    use_profile("")
    check_profile_in_use("")
    assert flags_in_use() == {}


def test_a_profile_is_of_the_whole_process(environment):
    config = small.recall(parallel__xla_flags="async_collectives")
    with pytest.raises(UserError, match="is for a whole process, .* not in an arm"):
        check_config(config)
    assert run_id(config) == run_id(small.recall())


def test_an_unknown_profile_is_one_line(environment):
    with pytest.raises(UserError, match="parallel.xla_flags='fast' must be one of '', collective"):
        use_profile("fast")


EXPERIMENT = """
from research.ablation.experiment import Experiment, Outcome
from tests import small
experiment = Experiment(
    question="?",
    base=small.BASE,
    common=small.RECALL | {common!r},
    arms={{"a": {{"model.num_layers": 1}}, "b": {arm!r}}},
    seeds=(0,),
    outcome=Outcome("accuracy"),
)
"""


def test_an_experiment_has_one_profile(environment, tmp_path):
    path, key = tmp_path / "flags.py", "parallel.xla_flags"
    path.write_text(EXPERIMENT.format(common={key: "large_vmem"}, arm={}))
    with pytest.raises(UserError, match="is for a whole process"):
        prepare(str(path), tmp_path / "runs")
    assert use_profile_of(str(path)) == "large_vmem"
    prepare(str(path), tmp_path / "runs")
    assert use_profile_of(str(path), f"{key.split('.')[1]}=async_collectives") != "large_vmem"
    path.write_text(EXPERIMENT.format(common={}, arm={key: "no_collective_matmul"}))
    assert use_profile_of(str(path)) == ""
    with pytest.raises(UserError, match="arm 'b': parallel.xla_flags='no_.* not in an arm"):
        prepare(str(path), tmp_path / "runs")


def test_what_is_for_another_platform_says_so(environment, capsys):
    say_if_useless("async_collectives")
    assert "is for a TPU and does nothing on this cpu" in capsys.readouterr().out
    say_if_useless("")
    assert not capsys.readouterr().out


def test_commands_apply_and_record_a_profile(tmp_path):
    tiny = [f"--config={small.BASE}", *small.as_flags(small.RECALL | {"train.steps": 1})]
    cases = [
        [*tiny, "--config.parallel.xla_flags=no_collective_matmul", f"--workdir={tmp_path / 'a'}"],
        [*tiny, "--config.parallel.xla_flags=fast", f"--workdir={tmp_path / 'b'}"],
    ]
    applied, unknown = run_cases("research.train", cases, JAX_PLATFORMS="cpu")
    assert applied.code == 0, applied.err
    assert "does nothing on this cpu" in applied.out
    recorded = json.loads((tmp_path / "a" / "environment.json").read_text())
    assert recorded["flags"][TPU] == " ".join(PROFILES["no_collective_matmul"].flags)
    assert unknown.code == 2
    assert "parallel.xla_flags='fast'" in unknown.err.splitlines()[-1]


COMPILE = """
import jax
from jax.sharding import SingleDeviceSharding
from research.parallel.topology import parse_target, target_devices
from research.parallel.xla_flags import use_profile
use_profile({!r})
device = target_devices(parse_target("v6e:1x1"))[0]
x = jax.ShapeDtypeStruct((256, 256), "bfloat16", sharding=SingleDeviceSharding(device))
jax.jit(lambda x: x @ x).lower(x).compile()
"""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason='needs libtpu: pip install "jax[tpu]", of the version of jax that is here',
)
@pytest.mark.parametrize("name", [n for n, p in PROFILES.items() if p.platform == "tpu"])
def test_the_compiler_knows_the_flags(name):
    run = subprocess.run(
        [sys.executable, "-c", COMPILE.format(name)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-500:]
