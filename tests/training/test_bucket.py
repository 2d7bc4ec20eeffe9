"""Runs and sweeps in a bucket: the same as in a directory, with nothing appended to or renamed."""

import errno
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from research.ablation.experiment import Experiment, Outcome
from research.errors import UserError
from research.report.judging.evidence import load_study
from research.report.results import read_results
from research.report.write import write_report
from research.runs import bucket
from research.runs.store import read_json, read_result
from research.training.preemption import Preempted
from research.training.records.checkpoints import COMMIT
from tests import buckets, small
from tests.commands import run_cases
from tests.report.synthetic_sweep import build, plausible
from tests.runs import at_steps, best_of, signal_at, train, without_time

URL = f"gs://{buckets.BUCKET}/runs/recall"
EXPERIMENT = Experiment(
    question="How many heads?",
    base="configs/recall.py",
    arms={"few": {"model.num_heads": 1}, "many": {"model.num_heads": 2}},
    seeds=(0, 1),
    outcome=Outcome("accuracy", higher_is_better=True),
)
CONFIG = small.recall(model__num_layers=1)


class Killed(Exception):
    pass


def kill():
    raise Killed


@pytest.fixture
def objects(monkeypatch):
    monkeypatch.setattr(bucket, "MIRRORS", [])
    with buckets.bucket(monkeypatch) as objects:
        yield objects


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    (run,) = train(CONFIG, tmp_path_factory.mktemp("whole"))
    return run


def elsewhere(url=URL):
    """Opens a directory as a machine does that has never seen it."""
    bucket.MIRRORS.clear()
    return bucket.open_workdir(url)


def saved(objects):
    return sorted(int(n.split("/")[3]) for n in objects if n.count("/") == 4 and COMMIT in n)


def test_a_run_is_killed_damaged_stopped_and_goes_on_elsewhere(objects, whole, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_steps(patch, [20], kill)
        train(CONFIG, elsewhere())
    assert saved(objects) == [12, 18] and "runs/recall/result.json" not in objects
    # The rows that a checkpoint needs are there before it is.
    commit = objects.written.index(f"runs/recall/checkpoints/18/{COMMIT}")
    assert objects.written[:commit].count("runs/recall/metrics.jsonl") >= 3
    damaged = next(n for n in objects if n.startswith("runs/recall/checkpoints/18/training/d/"))
    objects[damaged] = objects[damaged][0][:100], 1
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        signal_at(patch, [15])
        train(CONFIG, elsewhere())
    assert 18 not in saved(objects) and "runs/recall/checkpoints/18.damaged" in objects
    mirror = elsewhere()
    train(CONFIG, mirror)
    assert saved(objects) == [18, 24] and without_time(mirror) == without_time(whole)
    small_files = [n for n in objects.written if "/checkpoints/" not in n]
    assert small_files[-1] == "runs/recall/result.json"
    assert not [n for n in objects if Path(n).name.startswith(".")]

    # It is read elsewhere, and a finished run is not trained again.
    before, mirror = len(objects.written), elsewhere()
    assert not (mirror / "checkpoints").exists() and without_time(mirror) == without_time(whole)
    train(CONFIG, mirror)
    assert len(objects.written) == before
    ours, theirs = best_of(mirror), best_of(whole)
    jax.tree.map(np.testing.assert_array_equal, ours[0], theirs[0])
    assert ours[1] == theirs[1]
    assert bucket.named(f"{mirror / 'a'} and") == f"{URL}/a and"


def test_what_the_bucket_refuses_is_said_in_one_line(objects):
    mirror = elsewhere()
    objects.refuse = True
    with pytest.raises(UserError, match="it cannot be copied to the bucket .the quota is used up"):
        train(CONFIG, mirror)
    (mirror / "a").write_text("a")
    with pytest.raises(OSError) as error:
        bucket.copy_all()
    assert error.value.errno == errno.EIO and error.value.filename.startswith(URL)


def test_a_report_is_made_from_a_bucket(objects, tmp_path):
    local = build(tmp_path / "sweep", EXPERIMENT, lambda *given: plausible(0.9, given[-1]))
    for path in (p for p in local.rglob("*") if p.is_file()):
        objects[f"sweep/{path.relative_to(local)}"] = path.read_bytes(), 1
    url = f"gs://{buckets.BUCKET}/sweep"
    mirror = elsewhere(url)
    ours, theirs = load_study(mirror), load_study(local)
    assert [r.result for r in ours.runs] == [r.result for r in theirs.runs] and len(ours.runs) > 1
    write_report(mirror, formats=())
    bucket.copy_all()
    assert url in objects["sweep/report.html"][0].decode()
    assert str(mirror) not in objects["sweep/report.html"][0].decode()
    assert read_json(elsewhere(url) / "results.json")["workdir"] == url
    assert len(read_results(elsewhere(url)).runs) == len(theirs.runs)


def test_where_directories_cannot_be_renamed_a_damaged_checkpoint_no_longer_counts(
    whole, tmp_path, monkeypatch, capfd
):
    """As under gcsfuse, which refuses to rename directories."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "result.json").unlink()

    def refused(self, target):
        raise OSError(errno.ENOTSUP, "no directory is renamed", str(self))

    monkeypatch.setattr(Path, "rename", refused)
    for path in (run / "checkpoints" / "24" / "training" / "d").iterdir():
        path.write_bytes(b"")
    train(CONFIG, run)
    assert "checkpoints/24 is damaged" in capfd.readouterr().err
    assert (run / "checkpoints" / "24.damaged").is_file() and read_result(run) is not None
    assert without_time(run) == without_time(whole)
    assert (run / "checkpoints" / "24" / COMMIT).is_file(), "it was saved again"


def test_other_places_are_refused_in_one_line(monkeypatch):
    for module in ("google.cloud", "google.cloud.storage"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="needs the packages gcsfs and google-cloud-storage .*pip"):
        bucket.open_workdir(URL)
    with pytest.raises(UserError, match="--workdir=s3://b/a: only gs:// buckets"):
        bucket.open_workdir("s3://b/a")
    assert bucket.open_workdir("runs/a") == Path("runs/a") == bucket.whereabouts(Path("runs/a"))
    assert not bucket.MIRRORS
    sweep = ["--experiment=experiments/head_count.py", f"--workdir={URL}"]
    (outcome,) = run_cases("research.sweep", [sweep])
    assert outcome.code == 2 and outcome.err == (
        f"error: --workdir={URL}: research.sweep needs a directory; mount the bucket, and give the "
        "mounted directory.\n"
    )
