"""A disk that takes no more: one error with the file's name, at once, and nothing is lost."""

import errno
import functools
import os
import resource
import shutil
import subprocess
import time

import pytest

from research import command_line
from research.errors import UserError, told
from research.runs.store import read_metrics, read_result, write_json
from research.training.records import events
from tests import small
from tests.runs import at_steps, train, without_time

recall = functools.partial(small.recall, model__num_layers=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    (run,) = train(recall(), tmp_path_factory.mktemp("whole"))
    return run


@pytest.fixture
def no_large_files():
    """Returns a function after which no file can grow past the bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size=4000: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def steps_of(run):
    """Returns the steps of whole checkpoints."""
    return sorted(int(p.parent.name) for p in (run / "checkpoints").glob("*/commit_success.txt"))


def test_a_checkpoint_that_cannot_be_written(tmp_path, whole, monkeypatch, no_large_files, capfd):
    checkpoints = tmp_path / "checkpoints"

    def fill():
        while steps_of(tmp_path) != [6]:
            time.sleep(0.01)
        no_large_files()

    at_steps(monkeypatch, [10], fill)
    with pytest.raises(OSError) as error:
        train(recall(), tmp_path)
    assert error.value.errno == errno.EFBIG
    assert (
        told(error.value)
        == f"{checkpoints / '12'}: the checkpoint cannot be written: File too large"
    )
    # What was raised is not printed as well.
    assert tuple(capfd.readouterr()) == ("", "")
    assert steps_of(tmp_path) == [6] and read_result(tmp_path) is None
    monkeypatch.undo()
    no_large_files(resource.RLIM_INFINITY)
    train(recall(), tmp_path)
    assert without_time(tmp_path) == without_time(whole)
    assert steps_of(tmp_path) == [18, 24]
    assert not list(checkpoints.glob("*tmp*")), "what was left of it takes room"


def test_a_failed_save_is_noticed_before_the_next_one(tmp_path, monkeypatch, no_large_files):
    reached = []
    at_steps(monkeypatch, [5], no_large_files)
    at_steps(monkeypatch, [8, 10, 12], lambda: reached.append(time.sleep(1)))
    with pytest.raises(OSError, match="the checkpoint cannot be written.*checkpoints/6"):
        train(recall(), tmp_path)
    assert len(reached) < 3


def test_metrics_that_cannot_be_written(tmp_path, whole, monkeypatch):
    path = tmp_path / "metrics.jsonl"

    def fill():
        path.rename(tmp_path / "kept")
        path.symlink_to("/dev/full")  # every write to it fails as on a full disk

    at_steps(monkeypatch, [8], fill)
    with pytest.raises(OSError) as error:
        train(recall(), tmp_path)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
    monkeypatch.undo()
    path.unlink()
    (tmp_path / "kept").rename(path)
    train(recall(), tmp_path)
    assert without_time(tmp_path) == without_time(whole)


def test_a_tensorboard_log_that_cannot_be_written(tmp_path, whole, monkeypatch):
    write, calls = events.RecordWriter.write, []

    def full(self, data):
        calls.append(data)
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)

    monkeypatch.setattr(events.RecordWriter, "write", full)
    with pytest.raises(OSError) as error:
        train(recall(), tmp_path)
    assert error.value.errno == errno.ENOSPC
    assert "/tensorboard/events.out.tfevents." in error.value.filename
    monkeypatch.undo()
    train(recall(), tmp_path)
    assert without_time(tmp_path) == without_time(whole)


def test_the_log_of_tensorboard_holds_every_row(whole):
    found = {}
    for path in (whole / "tensorboard").iterdir():
        for record in records(path.read_bytes()):
            event = events.Event.FromString(record)
            for value in event.summary.value:
                found[event.step, value.tag] = value.simple_value
    rows = read_metrics(whole)
    expected = {(row["step"], k): v for row in rows for k, v in row.items() if isinstance(v, float)}
    assert found == pytest.approx(expected)


def records(content):
    """Yields the records of a TFRecord file: length, checksum, data, checksum."""
    while content:
        size = int.from_bytes(content[:8], "little")
        yield content[12 : 12 + size]
        content = content[16 + size :]


def test_a_run_that_goes_on_within_a_second_keeps_its_first_log(tmp_path):
    for step in (0, 6):
        events.EventFile(tmp_path, step).close()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_command_ends_with_one_line_and_exit_code_1(monkeypatch, capsys, number):
    assert ended(monkeypatch, OSError(number, os.strerror(number), "runs/a/x")) == 1
    assert capsys.readouterr().err == f"error: runs/a/x: {os.strerror(number)}.\n"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EEXIST, errno.ENOTDIR, errno.ENOENT])
def test_a_wrong_path_is_a_mistake_of_the_user(monkeypatch, capsys, number):
    assert ended(monkeypatch, OSError(number, os.strerror(number), "runs/a/x")) == 2
    assert capsys.readouterr().err == f"error: runs/a/x: {os.strerror(number)}.\n"


def ended(monkeypatch, error):
    """Returns the exit code of a command that raises `error`."""

    def main():
        raise error

    monkeypatch.setattr(command_line.app, "run", lambda guarded, **_: guarded(["command"]))
    with pytest.raises(SystemExit) as stop:
        command_line.run(main)
    return stop.value.code


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, no_large_files):
    no_large_files(10)
    with pytest.raises(OSError) as error:
        write_json(tmp_path / "result.json", {"long": "x" * 100})
    assert error.value.filename == str(tmp_path / "result.json")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [mount, "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if not mount or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_small_disk(small_disk, whole, capfd):
    run = small_disk / "run"
    with open(small_disk / "other", "wb") as other:
        other.write(bytes(200_000))
    with pytest.raises(OSError) as error:
        train(recall(), run)
    assert error.value.errno == errno.ENOSPC and str(run) in str(error.value.filename)
    assert capfd.readouterr().err == ""
    (small_disk / "other").unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    train(recall(), run)
    assert without_time(run) == without_time(whole)


def test_a_full_disk_at_the_start_is_a_mistake_of_the_user(small_disk):
    with pytest.raises(OSError), open(small_disk / "other", "wb", buffering=0) as other:
        while other.write(bytes(4096)) == 4096:
            pass
        other.write(bytes(4096))
    with pytest.raises(UserError, match="No space left on device"):
        train(recall(), small_disk / "run")
