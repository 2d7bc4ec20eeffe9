"""Shards on this machine: every one on its own devices, signals and failures reported."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from research.cloud.launch.devices import (
    Devices,
    assign_devices,
    cuda_gpus,
    local_devices,
    tpu_chips,
)
from research.errors import UserError
from tests.commands import ROOT, Outcome, run_cases, run_commands

CORES = tuple(range(8))

# Stands in for `python -m research.sweep`: a project with that module alone, around the real
# launcher.
SWEEP = """
import json, os, signal, sys, time
shard = next(a for a in sys.argv if a.startswith("--shard=")).removeprefix("--shard=")
workdir = next(a for a in sys.argv if a.startswith("--workdir=")).removeprefix("--workdir=")
def stop(*_):
    print("saving", flush=True)
    time.sleep(0.3)
    print("saved at step 7", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
seen = {"shard": shard, "cores": sorted(os.sched_getaffinity(0)), "argv": sys.argv[1:]}
seen |= {k: v for k, v in os.environ.items() if k.startswith(("CUDA_", "XLA_PYTHON"))}
name = os.path.join(workdir, "seen-" + shard.replace("/", "-") + ".json")
with open(name, "w") as file:
    json.dump(seen, file)
print("training", shard)
if "LONG" in os.environ:
    time.sleep(60)
if os.environ.get("FAIL") == shard:
    print("ValueError: the cause")
    sys.exit(3)
print("unfinished line", end="")
"""


COMMAND = ("--shards=2", "--workdir=runs/x", "--experiment=experiments/head_count.py")


@pytest.fixture
def project(tmp_path):
    """A directory with the project's experiments, whose sweep is the one above."""
    for name in ("configs", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "research").mkdir()
    (tmp_path / "research" / "__init__.py").touch()
    (tmp_path / "research" / "sweep.py").write_text(SWEEP)
    return tmp_path


def launch(project: Path, *more: str, **environment: str) -> Outcome:
    """Launches the shards in the project."""
    environment = {"JAX_PLATFORMS": "cpu"} | environment
    command = ("research.launch", [*COMMAND, *more])
    return run_commands([command], directory=project, **environment)[0]


def test_two_shards_run_side_by_side_and_the_report_is_named(project):
    done = launch(project, "--retry_failed")
    assert done.code == 0, done.err
    for i in (1, 2):
        assert f"[{i}/2] training {i}/2" in done.out
        assert f"[{i}/2] unfinished line" in done.out
        log = (project / f"runs/x/launch/local/shard-{i}.log").read_text()
        assert log == f"training {i}/2\nunfinished line"
    assert done.out.splitlines()[-1] == "python -m research.report --workdir=runs/x"
    seen = [json.loads((project / f"runs/x/seen-{i}-2.json").read_text()) for i in (1, 2)]
    here = sorted(os.sched_getaffinity(0))
    if len(here) > 1:
        assert not set(seen[0]["cores"]) & set(seen[1]["cores"])
    assert set(seen[0]["cores"]) | set(seen[1]["cores"]) <= set(here)
    assert "--retry_failed" in seen[0]["argv"]


def test_a_failed_shard_is_named_with_its_last_lines(project):
    done = launch(project, FAIL="2/2")
    assert done.code == 1
    said = done.out
    assert "[2/2] failed with exit code 3" in said and "[1/2] failed" not in said
    assert "    ValueError: the cause" in said.splitlines()


def test_gpus_are_dealt_out(project):
    tool = project / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n3\\n'\n")
    tool.chmod(0o755)
    environment = {"PATH": f"{tool.parent}:{os.environ['PATH']}", "JAX_PLATFORMS": "cuda"}
    assert launch(project, **environment).code == 0
    seen = [json.loads((project / f"runs/x/seen-{i}-2.json").read_text()) for i in (1, 2)]
    assert [s["CUDA_VISIBLE_DEVICES"] for s in seen] == ["0,1", "2,3"]


def test_a_signal_reaches_every_shard_once_and_it_waits_until_they_have_saved(project):
    # A process of its own, which has to find the launcher beside the sweep.
    shutil.rmtree(project / "research")
    shutil.copytree(ROOT / "research", project / "research")
    (project / "research" / "sweep.py").write_text(SWEEP)
    process = subprocess.Popen(
        [sys.executable, "-m", "research.launch", *COMMAND],
        cwd=project,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "LONG": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    logs = [project / f"runs/x/launch/local/shard-{i}.log" for i in (1, 2)]
    end = time.monotonic() + 30
    while not all(log.exists() and "training" in log.read_text() for log in logs):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    second = launch(project)
    assert second.code == 2 and "earlier launch" in second.err
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    for log in logs:
        assert log.read_text().splitlines()[1:] == ["saving", "saved at step 7"]
    assert "the same command goes on" in said.splitlines()[-1]
    assert launch(project).code == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--experiment=experiments/head_count.py", "--shards=99"), "--shards=99"),
        (("--experiment=experiments/head_cout.py",), "head_count.py"),
        (("--experiment=a.py", "--config=configs/text.py"), "either"),
        ((), "either"),
        (("--config=configs/text.py", "--config.model.widht=8"), "'model.width'"),
        (("--config=configs/text.py", "--shards=2"), "--shards=2"),
        (("--config=configs/text.py", "--engine=sturm"), "slurm"),
        (("--config=configs/text.py", "--engine=gcloud"), "--slice, --bucket"),
        (("--config=configs/text.py", "--bucket=x"), "skypilot"),
    ],
)
def test_a_mistake_is_one_line(wrong, said, tmp_path):
    (done,) = run_cases("research.launch", [[f"--workdir={tmp_path}/x", *wrong]])
    assert done.code == 2 and said in done.err
    assert done.err.startswith("error: ") and done.err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_overrides_are_passed_on_however_they_are_written(tmp_path):
    case = [
        *("--config", "configs/text.py", "--config.model.num_heads", "2", "--dry_run"),
        *("--noconfig.model.talking_heads", "--config.model.output_gate"),
        *("--config.task.path=it's; $HOME", f"--workdir={tmp_path}/x"),
    ]
    (done,) = run_cases("research.launch", [case])
    assert done.code == 0, done.err
    words = " ".join(done.out.replace("\\\n", " ").split())
    assert "--config=configs/text.py --config.model.num_heads=2 --noconfig.model.talking" in words
    assert "--config.model.output_gate '--config.task.path=it'\"'\"'s; $HOME' --workdir" in words


def test_a_dry_run_writes_and_starts_nothing(tmp_path):
    cloud = ("--bucket=my-bucket", "--slice=v5e:4x4", "--submit", "--yes", "--dry_run")
    case = ["--engine=skypilot", "--config=configs/text.py", f"--workdir={tmp_path}/x", *cloud]
    (done,) = run_cases("research.launch", [case])
    assert done.code == 0 and "sky jobs launch" in done.out and "tpu-v5litepod-16" in done.out
    assert not (tmp_path / "x").exists()


def test_equal_parts_and_none_twice():
    for count, shards in ((8, 2), (8, 8), (7, 2), (4, 3)):
        ids = tuple(map(str, range(count)))
        parts = assign_devices(Devices("gpu", ids, CORES), shards)
        given = [i for p in parts for i in p.environment["CUDA_VISIBLE_DEVICES"].split(",")]
        assert len(parts) == shards and len(set(given)) == len(given)
        assert len(given) == count // shards * shards
        assert not any("XLA_PYTHON_CLIENT_MEM_FRACTION" in p.environment for p in parts)
    cores = assign_devices(Devices("cpu", (), CORES), 3)
    assert [len(p.cores) for p in cores] == [2, 2, 2]
    assert len({c for p in cores for c in p.cores}) == 6
    assert [p.cores for p in assign_devices(Devices("cpu", (), (3, 5)), 3)] == [(3,), (5,), (3,)]


def test_processes_that_share_a_gpu_share_its_memory():
    parts = assign_devices(Devices("gpu", ("0", "1"), CORES), 5)
    load: dict[str, float] = {}
    for part in parts:
        gpu = part.environment["CUDA_VISIBLE_DEVICES"]
        fraction = float(part.environment["XLA_PYTHON_CLIENT_MEM_FRACTION"])
        load[gpu] = load.get(gpu, 0.0) + fraction
    assert set(load) == {"0", "1"} and max(load.values()) <= 0.9


def test_tpu_chips_belong_to_one_process_each():
    chips = tuple("01234567")
    for shards, bounds in ((2, "2,2,1"), (4, "1,2,1"), (8, "1,1,1")):
        parts = [b.environment for b in assign_devices(Devices("tpu", chips, CORES), shards)]
        given = [c for p in parts for c in p["TPU_VISIBLE_CHIPS"].split(",")]
        assert sorted(given) == list(chips)
        assert {p["TPU_CHIPS_PER_PROCESS_BOUNDS"] for p in parts} == {bounds}
        assert len({p["TPU_PROCESS_PORT"] for p in parts}) == shards
    with pytest.raises(UserError, match="into 1, 2, 4, 8"):
        assign_devices(Devices("tpu", chips, CORES), 16)


def test_what_the_environment_leaves_out_is_not_used(tmp_path, monkeypatch):
    assert local_devices({"JAX_PLATFORMS": "cpu", "TPU_VISIBLE_CHIPS": "0"}).kind == "cpu"
    assert tpu_chips({"TPU_VISIBLE_CHIPS": "2,3"}) == ("2", "3")
    for name in ("accel0", "accel1", "accelerators"):
        (tmp_path / name).touch()
    assert tpu_chips({}, tmp_path) == ("0", "1")
    monkeypatch.setattr(shutil, "which", lambda name: name)
    assert cuda_gpus({"CUDA_VISIBLE_DEVICES": "1,3"}) == ("1", "3")
    assert cuda_gpus({"CUDA_VISIBLE_DEVICES": ""}) == ()
