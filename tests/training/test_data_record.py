"""A run knows the bytes that it was made from, and goes on with no others."""

import hashlib
import shutil

import numpy as np
import pytest
import soundfile

from research.ablation.populations import Shard
from research.ablation.sweep import run_sweep
from research.configuration import apply_deltas, to_plain
from research.errors import UserError
from research.runs.store import CONFIG, DATA, RESULT, read_json, write_json
from research.tasks.digests import file_digest, read_bytes
from research.tasks.registry import make_task
from research.training.loop import train_population
from research.training.program import cached_task
from research.training.records.data_record import check_same_data, write_data
from research.training.runs import LoadedRun, load_run_task
from research.training.schema import run_id
from tests import small

TEXT = "A rose by any other name would smell as sweet.\n" * 40


def text(folder):
    (folder / "rose.txt").write_text(TEXT)
    return small.text(folder / "rose.txt"), folder / "rose.txt"


def translation(folder):
    return small.translation(small.corpus(folder)), folder / "val.en"


def sentiment(folder):
    return small.sentiment(small.labelled(folder)), folder / "dev.tsv"


def speech(folder):
    rows = []
    for i, split in enumerate(["train"] * 4 + ["val"] * 4):
        noise = 0.1 * np.random.default_rng(i).standard_normal(2000)
        soundfile.write(folder / f"{i}.wav", noise, 4000)
        rows.append(f"{i}.wav\tda\t\t{split}\n")
    (folder / "all.tsv").write_text("".join(rows))
    return small.speech(task__path=str(folder / "all.tsv")), folder / "5.wav"


TASKS = [text, translation, sentiment, speech]


def write_run(run, config):
    """Writes what training writes before its first step, and that it has ended; returns the task"""
    task = make_task(config.task)
    write_data(task, run)
    write_json(run / CONFIG, to_plain(config))
    write_json(run / RESULT, {"status": "completed"})
    return task


def spoil(path):
    """Changes a file so that nothing but its bytes tells."""
    content = path.read_bytes()
    if path.suffix == ".wav":
        path.write_bytes(content[:-2] + b"\x01\x01")
    else:
        # Another order of its lines: the same alphabet, words and sizes.
        lines = content.splitlines(keepends=True)
        path.write_bytes(b"".join(lines[::-1]) if len(set(lines)) > 1 else content + lines[0])
    cached_task.cache_clear()
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(params=TASKS, ids=lambda make: make.__name__)
def made(request, tmp_path):
    """A run that has ended, its task, and one of its files."""
    (tmp_path / "data").mkdir()
    config, file = request.param(tmp_path / "data")
    return config, file, tmp_path / "run", write_run(tmp_path / "run", config)


def test_every_file_is_in_the_run_with_its_sha256(made):
    _, file, run, task = made
    files = read_json(run / DATA)["files"]
    assert files == task.files
    folder = file.parent
    texts = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".wav"}
    expected = {name: hashlib.sha256(content).hexdigest() for name, content in texts.items()}
    sounds = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.wav")}
    if sounds:
        listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(sounds.items()))
        expected["recordings"] = hashlib.sha256(listing.encode()).hexdigest()
    assert files == expected


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_goes_on_with_no_other_bytes(made, finished):
    config, file, run, task = made
    if not finished:
        (run / RESULT).unlink()
    before = file_digest(file)
    now = spoil(file)
    with pytest.raises(UserError, match=f"{run}: the data changed since the run began: ") as error:
        train_population([config], [run], run)
    message = str(error.value)
    assert "\n" not in message and "another --workdir" in message
    if file.suffix == ".wav":
        assert f"recordings had sha256 {task.files['recordings'][:12]} and now has " in message
    else:
        assert f"{file.name} had sha256 {before[:12]} and now has {now[:12]}" in message


def test_a_run_is_not_opened_with_other_data(made):
    config, file, run, task = made
    opened = LoadedRun(run, config, None, None, {}, None, (), {})
    assert load_run_task(opened).files == task.files
    spoil(file)
    with pytest.raises(UserError, match=r"the data changed since the run began: (\S+) had sha256 "):
        load_run_task(opened)


@pytest.mark.parametrize("make", TASKS)
def test_data_may_be_moved(make, tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "data").mkdir(parents=True)
    config, _ = make(here / "data")
    path = config.task.path.removeprefix(f"{here}/")
    config = apply_deltas(config, {"task.path": path})
    monkeypatch.chdir(here)
    write_run(tmp_path / "run", config)
    here.rename(there)
    monkeypatch.chdir(there)
    check_same_data(make_task(config.task), tmp_path / "run")


def test_a_known_corpus_may_lie_in_another_data_dir(tmp_path, monkeypatch):
    from research.tasks import corpora

    file = corpora.RemoteFile("roses/rose.txt", "", hashlib.sha256(TEXT.encode()).hexdigest())
    monkeypatch.setitem(corpora.TEXTS, "roses", file)
    for place in ("here", "there"):
        (tmp_path / place / "roses").mkdir(parents=True)
        (tmp_path / place / "roses" / "rose.txt").write_text(TEXT)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "here"))
    config = small.text("roses")
    write_run(tmp_path / "run", config)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "there"))
    check_same_data(make_task(config.task), tmp_path / "run")


def test_a_run_of_before_is_taken_as_it_is(made):
    _, file, run, task = made
    (run / DATA).unlink()
    check_same_data(task, run)
    # One that has its files in corpus.json is held to them, wherever they lie.
    if (run / "corpus.json").exists() and file.suffix != ".wav":
        known = read_json(run / "corpus.json")
        old = {f"/old/{name}": digest for name, digest in task.files.items()}
        write_json(run / "corpus.json", known | {"sha256": old})
        check_same_data(task, run)
        old[f"/old/{file.name}"] = "0" * 64
        write_json(run / "corpus.json", known | {"sha256": old})
        with pytest.raises(UserError, match=f"{file.name} had sha256 000000000000 and now has"):
            check_same_data(task, run)


def test_a_tokenizer_may_be_written_in_the_format_of_before(tmp_path):
    config, _ = sentiment(tmp_path)
    task = write_run(tmp_path / "run", config)
    file = tmp_path / "run" / "tokenizer.json"
    words = [piece[1:] for piece in task.tokenizer.pieces(range(2, task.vocab_size))]
    write_json(file, {"kind": "open_word", "words": words})
    known = read_json(tmp_path / "run" / "corpus.json")
    write_json(tmp_path / "run" / "corpus.json", known | {"tokenizer": file_digest(file)})
    check_same_data(task, tmp_path / "run")
    write_json(file, {"kind": "open_word", "words": [*words, "zoo"]})
    with pytest.raises(UserError, match="tokenizer.json differs"):
        check_same_data(task, tmp_path / "run")


EXPERIMENT = """
from research.ablation.experiment import Experiment, Outcome

experiment = Experiment(
    question="Does a second head help?",
    base="configs/base.py",
    common={common!r},
    arms={{"one head": {{"model.num_heads": 1}}, "two heads": {{}}}},
    seeds=(0,),
    outcome=Outcome("loss", split="validation", at="final", higher_is_better=False),
)
"""


@pytest.fixture
def sweep(tmp_path):
    """An experiment on a text; and a sweep of it, one of whose two arms has finished."""
    config, file = text(tmp_path)
    mine = {"task.path": str(file)}
    (tmp_path / "heads.py").write_text(EXPERIMENT.format(common=small.TEXT | mine))
    one = apply_deltas(config, {"model.num_heads": 1})
    write_run(tmp_path / "sweep" / run_id(one), one)
    return tmp_path, config, file


def swept(folder):
    return run_sweep(str(folder / "heads.py"), folder / "sweep", Shard(), False, 8)


def test_a_sweep_whose_file_changed_does_not_go_on(sweep):
    folder, _, file = sweep
    spoil(file)
    # The first arm would be skipped, the second would train on the new file.
    with pytest.raises(UserError, match="rose.txt had sha256 [0-9a-f]{12} and now has "):
        swept(folder)
    assert len(list((folder / "sweep").glob("*/config.json"))) == 1


def test_a_finished_sweep_is_held_to_its_file(sweep):
    folder, config, file = sweep
    write_run(folder / "sweep" / run_id(config), config)
    assert swept(folder)["finished before"] == 2
    spoil(file)
    with pytest.raises(UserError, match="rose.txt had sha256 "):
        swept(folder)


def test_an_arm_does_not_begin_with_another_file_than_its_siblings(sweep):
    folder, config, file = sweep
    # The arm that has not begun is asked first.
    one = apply_deltas(config, {"model.num_heads": 1})
    shutil.rmtree(folder / "sweep" / run_id(one))
    write_run(folder / "sweep" / run_id(config), config)
    spoil(file)
    with pytest.raises(UserError, match=f"{run_id(config)}: the data changed since the run began"):
        swept(folder)


def test_a_file_is_hashed_once_while_it_is_the_same(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc")
    assert read_bytes(path) == b"abc"
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", None)
        assert file_digest(path) == hashlib.sha256(b"abc").hexdigest()
    path.write_bytes(b"abcd")
    assert file_digest(path) == hashlib.sha256(b"abcd").hexdigest()
