"""Several processes on this machine train what one does, stop together, and go on as any number."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from research.runs.store import read_json, read_metrics, read_result
from research.training.runs import load_best_params
from tests import corpora, small
from tests.ablation.test_sweep import write
from tests.commands import ROOT, run_cases
from tests.runs import rows_without_time

# Long enough to be stopped on the way. Tiny rates, or rounding would grow over so many steps.
LONG = {"train.steps": 60, "train.log_every": 4, "train.eval_every": 20}
LONG |= {"train.checkpoint_every": 20, "optimizer.learning_rate": 1e-4}
SHAPE = small.RECALL | {"task.batch_size": 8, "model.width": 16} | LONG
DEVICES = 4


def flags_of(devices):
    """Returns XLA's flags, with so many devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    return f"{flags} --xla_force_host_platform_device_count={devices}"


def arguments(workdir, *more, module="research.train", deltas=SHAPE):
    own = [f"--config={small.BASE}", *small.as_flags(deltas)] if module == "research.train" else []
    return [f"--workdir={workdir}", *more, *own]


def run_one(workdir, *more, module="research.train", deltas=SHAPE):
    """Runs the command in one process that has `DEVICES` devices."""
    case = arguments(workdir, *more, module=module, deltas=deltas)
    (outcome,) = run_cases(module, [case], XLA_FLAGS=flags_of(DEVICES))
    assert outcome.code == 0, outcome.err


def start(workdir, processes, *more, module="research.train", deltas=SHAPE):
    """Starts one command in several processes that have `DEVICES` devices together."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", module]
    command += arguments(workdir, *more, module=module, deltas=deltas)
    command += [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
    return [
        subprocess.Popen(
            [*command, f"--process_id={index}"],
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": flags_of(DEVICES // processes)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(processes)
    ]


def finish(processes):
    """Waits; returns what each printed. All must end well."""
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(printed), printed
    return ["".join(x for x in p.splitlines(True) if "peer ranks" not in x) for p in printed]


def figures(run):
    """Everything that was measured, as flat numbers, without what a clock says."""
    rows = rows_without_time(run)
    result = {k: v for k, v in read_result(run).items() if k not in ("timing", "layout")}
    return rows, result


def numbers(value):
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers(v)]
    if isinstance(value, list | tuple):
        return [n for v in value for n in numbers(v)]
    return [float(value)] if isinstance(value, int | float) else []


def assert_alike(run, other):
    """The same steps were logged, and the figures agree to the rounding of sums."""
    (rows, result), (others, other_result) = figures(run), figures(other)
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    assert json.dumps(result).count('"') == json.dumps(other_result).count('"')
    a, b = numbers([rows, result]), numbers([others, other_result])
    assert len(a) == len(b) > 50
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One process with four devices, undisturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    run_one(workdir)
    return workdir


def stop_one(workdir, processes, deltas, after=0):
    """Starts processes and sends SIGTERM to the last once a row beyond `after` is logged."""
    running = start(workdir, processes, deltas=deltas)
    began = time.time()
    while not any(row["step"] > after for row in read_metrics(workdir)):
        assert running[0].poll() is None and time.time() - began < 200
        time.sleep(0.02)
    running[-1].send_signal(signal.SIGTERM)
    first, *others = finish(running)
    assert "saved at step" in first and read_result(workdir) is None
    assert all(text.startswith("SIGTERM: saving") or not text for text in others)
    saved = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    assert read_metrics(workdir)[-1]["step"] == saved > after
    return saved


@pytest.mark.slow
def test_two_processes_are_one(whole, tmp_path):
    first, second = finish(start(tmp_path, 2))
    assert "completed" in first and not second.strip()
    assert_alike(tmp_path, whole)
    assert read_result(tmp_path)["layout"] == "data=4, jit"
    assert read_json(tmp_path / "environment.json")["device"]["processes"] == 2
    assert read_json(whole / "environment.json")["device"]["processes"] == 1


def test_one_signal_stops_all_and_one_process_goes_on(whole, tmp_path):
    stop_one(tmp_path, 2, SHAPE)
    environment = read_json(tmp_path / "environment.json")
    assert environment["device"]["processes"] == 2 and environment["device"]["count"] == DEVICES
    run_one(tmp_path)
    assert_alike(tmp_path, whole)
    assert read_result(tmp_path)["layout"] == "data=4, jit"
    # What four devices saved opens on the one that there is here.
    assert len(jax.devices()) == 1
    params, best = load_best_params(tmp_path)
    assert best["step"] == read_result(tmp_path)["best_step"]
    assert {len(p.devices()) for p in jax.tree.leaves(params)} == {1}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["recall", "text", "tokens"])
def test_any_number_goes_on(task, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 50)
    deltas = SHAPE
    if task == "text":
        deltas = {key: value for key, value in SHAPE.items() if key not in small.OF_RECALL}
        deltas |= {"task.name": "text", "task.path": str(text)}
    if task == "tokens":
        deltas = {key: value for key, value in SHAPE.items() if key not in small.OF_RECALL}
        deltas |= {"task.name": "tokens", "task.path": str(corpora.corpus(tmp_path))}
        deltas |= {"task.data": "streamed"}
    run_one(tmp_path / "whole", deltas=deltas)
    saved = stop_one(tmp_path / "run", 2, deltas)
    stop_one(tmp_path / "run", 4, deltas, after=saved)
    run_one(tmp_path / "run", deltas=deltas)
    assert_alike(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_sweep_in_two_processes(tmp_path):
    experiment = f"--experiment={write(tmp_path)}"
    run_one(tmp_path / "1", experiment, module="research.sweep")
    finish(start(tmp_path / "2", 2, experiment, module="research.sweep"))
    runs = [sorted(p.parent.name for p in (tmp_path / n).glob("*/result.json")) for n in "12"]
    assert runs[0] == runs[1] and runs[0]
    for run in runs[0]:
        assert_alike(tmp_path / "1" / run, tmp_path / "2" / run)


@pytest.mark.slow
def test_one_that_dies_takes_the_others_along(tmp_path):
    first, second = start(tmp_path, 2, deltas=SHAPE | {"train.steps": 100_000})
    while not read_metrics(tmp_path):
        assert first.poll() is None
        time.sleep(0.02)
    second.kill()
    first.communicate(timeout=200)
    assert first.returncode != 0 and read_result(tmp_path) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--num_processes=2"],
            "also need --coordinator (or JAX_COORDINATOR_ADDRESS), --process_id",
        ),
        (
            ["--coordinator=here", "--num_processes=2", "--process_id=0"],
            "--coordinator='here' must be HOST:PORT",
        ),
        (
            ["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"],
            "must be 0 <= process_id < num_processes",
        ),
    ],
)
def test_half_a_description_is_refused(given, message, tmp_path):
    case = [f"--config={small.BASE}", f"--workdir={tmp_path / 'run'}", *given]
    (outcome,) = run_cases("research.train", [case])
    assert outcome.code == 2 and message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
