"""Files of a run that are cut short, emptied or gone: recovered from, or one line, never wrong."""

import errno
import functools
import json
import os
import shutil

import jax
import numpy as np
import pytest

from research.errors import UserError
from research.runs.store import read_json, read_metrics, read_result
from research.training.preemption import Preempted
from research.training.program import abstract_state, make_program
from research.training.records.checkpoints import Checkpoints, load_best
from research.training.runs import load_best_params
from tests import small
from tests.runs import best_of, signal_at, train, without_time

recall = functools.partial(small.recall, model__num_layers=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run, with the checkpoints of steps 18 and 24."""
    (run,) = train(recall(), tmp_path_factory.mktemp("whole"))
    return run


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped at step 12, with the checkpoints of steps 6 and 12."""
    run = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, [12])
        with pytest.raises(Preempted):
            train(recall(), run)
    return run


@pytest.fixture
def copy(stopped, tmp_path):
    """Returns a copy of the stopped run, to be damaged."""
    return shutil.copytree(stopped, tmp_path / "run")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def zero(path):
    # What a power cut leaves where a file had its length before its content.
    path.write_bytes(bytes(path.stat().st_size))


def remove(path):
    path.unlink()


def damage(checkpoint, pattern="training/manifest.ocdbt", how=empty):
    for path in checkpoint.glob(pattern):
        if path.is_file():
            how(path)


@pytest.mark.parametrize(
    ("pattern", "how"),
    [("training/d/*", cut), ("best/_METADATA", empty), ("training/manifest.ocdbt", remove)],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_is_taken(
    copy, whole, capfd, pattern, how
):
    newest = copy / "checkpoints" / "12"
    damage(newest, pattern, how)
    left = sorted(p.relative_to(newest) for p in newest.rglob("*"))
    train(recall(), copy)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"{newest} is damaged (") and line.endswith("set aside as 12.damaged.")
    aside = copy / "checkpoints" / "12.damaged"
    assert sorted(p.relative_to(aside) for p in aside.rglob("*")) == left
    assert without_time(copy) == without_time(whole)
    for one, two in zip(
        jax.tree.leaves(best_of(copy)), jax.tree.leaves(best_of(whole)), strict=True
    ):
        np.testing.assert_array_equal(one, two)


def test_a_second_damaged_checkpoint_of_a_step_does_not_take_the_place_of_the_first(copy, whole):
    shutil.copytree(copy / "checkpoints" / "12", copy / "checkpoints" / "12.damaged")
    damage(copy / "checkpoints" / "12")
    train(recall(), copy)
    assert (copy / "checkpoints" / "12.damaged.1" / "training").is_dir()
    assert without_time(copy) == without_time(whole)


def test_without_a_checkpoint_that_can_be_read_it_says_how_to_start_over(copy):
    for step in ("6", "12"):
        damage(copy / "checkpoints" / step)
    # The second time they are set aside already; that is no reason to begin anew in silence.
    for _ in range(2):
        with pytest.raises(UserError) as error:
            train(recall(), copy)
        assert str(copy / "checkpoints") in str(error.value)
        assert "choose another --workdir or delete that directory" in str(error.value)
    assert sorted(p.name for p in (copy / "checkpoints").iterdir()) == ["12.damaged", "6.damaged"]
    shutil.rmtree(copy / "checkpoints")
    train(recall(), copy)
    assert read_result(copy)["status"] == "completed"


def test_another_model_is_no_damage(copy):
    (copy / "config.json").unlink()
    with pytest.raises(UserError, match=r"is of another model: .*\(1, 16, 8\) there, \(1, 16, 4\)"):
        train(recall(model__width=4), copy)
    assert sorted(p.name for p in (copy / "checkpoints").iterdir()) == ["12", "6"]


def test_readers_take_the_best_of_the_newest_checkpoint_that_can_be_read(copy, capfd):
    checkpoints = copy / "checkpoints"
    expected = load_best(checkpoints, 0)
    damage(checkpoints / "12", "training/*")  # not what they read
    np.testing.assert_array_equal(load_best(checkpoints, 0)[1]["value"], expected[1]["value"])
    assert capfd.readouterr().err == ""
    damage(checkpoints / "12", "best/manifest.ocdbt")
    assert load_best(checkpoints, 0)[1]["step"] == 0  # at step 6 nothing was evaluated yet
    assert "12 is damaged (" in capfd.readouterr().err
    assert (checkpoints / "12").is_dir(), "a reader moves nothing: training may still go on"
    damage(checkpoints / "6", "best/manifest.ocdbt")
    with pytest.raises(UserError, match="none of the checkpoints"):
        load_best(checkpoints, 0)


def test_a_finished_run_is_not_read_with_other_parameters_than_its_result_has(whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    params, best = load_best_params(run)
    damage(run / "checkpoints" / "24", "best/manifest.ocdbt")
    result = read_json(run / "result.json")
    if best["step"] <= 18:  # the checkpoint before it has the same
        assert load_best_params(run)[1] == best
        (run / "result.json").write_text(json.dumps(result | {"best_step": 24}))
    with pytest.raises(UserError, match=r"was best at step 24.*Delete .*result\.json"):
        load_best_params(run)
    (run / "result.json").unlink()
    train(recall(), run)
    assert without_time(run) == without_time(whole)
    for one, two in zip(
        jax.tree.leaves(load_best_params(run)[0]), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_array_equal(one, two)


def test_no_directory_is_renamed(whole, tmp_path, monkeypatch):
    """Mounted buckets refuse to rename a directory."""
    rename, renamed = os.rename, []

    def refuse(source, target, **rest):
        if os.path.isdir(source):
            raise OSError(errno.EPERM, "a bucket renames no directory", str(source))
        renamed.append(source)
        rename(source, target, **rest)

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, refuse)
    (run,) = train(recall(), tmp_path)
    assert renamed, "files are still written under another name first"
    assert without_time(run) == without_time(whole)


def test_a_save_that_was_killed_counts_as_none(copy, whole):
    checkpoints = copy / "checkpoints"
    before = load_best(checkpoints, 0)[1]["step"]
    newest = shutil.copytree(checkpoints / "6", checkpoints / "18")
    assert load_best(checkpoints, 0)[1]["step"] != before
    (newest / "commit_success.txt").unlink()
    assert load_best(checkpoints, 0)[1]["step"] == before
    (run,) = train(recall(), copy)
    assert without_time(run) == without_time(whole)


@pytest.mark.parametrize("how", [cut, empty, zero])
@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_a_damaged_json_file_is_one_line(whole, tmp_path, name, how):
    shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    how(tmp_path / "run" / name)
    with pytest.raises(UserError, match=rf"{name} cannot be read: it was cut short or damaged"):
        train(recall(), tmp_path / "run")


@pytest.mark.parametrize("how", [empty, remove])
def test_rows_that_are_gone_are_missed(copy, how):
    how(copy / "metrics.jsonl")
    with pytest.raises(UserError, match=r"metrics\.jsonl was cut short: it has no row of step 5,"):
        train(recall(), copy)


def test_only_the_last_line_of_the_metrics_may_be_cut(copy):
    path = copy / "metrics.jsonl"
    rows = read_metrics(copy)
    path.write_bytes(path.read_bytes() + b'{"step": 15, "train/l')
    assert read_metrics(copy) == rows
    path.write_bytes(b"\x00\x00\n" + path.read_bytes())
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1: damaged"):
        read_metrics(copy)


def test_a_tokenizer_that_is_cut_short_is_one_line(tmp_path, monkeypatch):
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("ä brown fox jumps over the lazy dog. " * 60, encoding="utf-8")
    signal_at(monkeypatch, [6])
    with pytest.raises(Preempted):
        train(small.text(text), run)
    kept = (run / "tokenizer.json").read_bytes()
    for how in (cut, empty):
        how(run / "tokenizer.json")
        with pytest.raises(UserError, match="the data changed since the run began"):
            train(small.text(text), run)
        (run / "tokenizer.json").write_bytes(kept)
    # The text is the one that it was made from, so that it can be made again.
    remove(run / "tokenizer.json")
    train(small.text(text), run)
    assert (run / "tokenizer.json").read_bytes() == kept


@pytest.mark.slow
def test_no_file_of_a_checkpoint_can_be_damaged_so_that_it_reads_as_another(whole, tmp_path):
    """Each file cut short, emptied, zeroed and removed: the same values, or those of step 18."""
    run = shutil.copytree(whole, tmp_path / "run")
    newest, shapes = run / "checkpoints" / "24", abstract_state(make_program(recall()), 1)

    def restored():
        with Checkpoints(run / "checkpoints", 2) as checkpoints:
            step, state = checkpoints.restore(shapes)
        return step, [np.asarray(leaf) for leaf in jax.tree.leaves(state)]

    pristine, outcomes = {24: restored()[1]}, set()
    newest.rename(newest.with_name("aside"))
    pristine[18] = restored()[1]
    newest.with_name("aside").rename(newest)
    best = load_best(run / "checkpoints", 0)
    for path in sorted(p for p in newest.rglob("*") if p.is_file()):
        content = path.read_bytes()
        for how in (cut, empty, zero, remove):
            how(path)
            params, found = load_best(run / "checkpoints", 0)
            if found["step"] == best[1]["step"]:
                for one, two in zip(jax.tree.leaves(params), jax.tree.leaves(best[0]), strict=True):
                    np.testing.assert_array_equal(one, two, err_msg=f"{how.__name__} {path}")
            step, leaves = restored()
            for one, two in zip(leaves, pristine[step], strict=True):
                np.testing.assert_array_equal(one, two, err_msg=f"{how.__name__} {path}")
            if newest.with_name("24.damaged").exists():
                newest.with_name("24.damaged").rename(newest)
            elif not newest.exists():  # without its commit file it was never whole, and is removed
                shutil.copytree(whole / "checkpoints" / "24", newest)
            path.write_bytes(content)
            outcomes.add((how.__name__, step))
    assert outcomes == {
        (how, step) for how in ("cut", "empty", "zero", "remove") for step in (18, 24)
    }
