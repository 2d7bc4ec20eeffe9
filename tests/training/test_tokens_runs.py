"""Training on token shards: the same wherever they are, after stops, and when it is evaluated."""

import jax
import numpy as np
import pytest

from research.configuration import apply_deltas
from research.decoding.streaming import stream_scores, streaming
from research.errors import UserError
from research.parallel.layout import ONE_DEVICE
from research.parallel.mesh import make_mesh
from research.runs.store import read_json, read_metrics
from research.tasks.registry import make_task
from research.training.evaluating import evaluate, metric_changes
from research.training.preemption import Preempted
from research.training.program import build_program
from research.training.records.data_record import check_same_data
from research.training.runs import load_run_config, open_run
from tests import corpora, small
from tests.commands import run_cases
from tests.runs import signal_at, train, without_time


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpora.corpus(tmp_path_factory.mktemp("corpus"), shard_tokens=777, tokenizer="bpe:300")


@pytest.fixture(scope="module")
def other(folder, tmp_path_factory):
    """Another corpus of the same tokenizer."""
    tokenizer = f"{folder}/tokenizer.json"
    return corpora.corpus(tmp_path_factory.mktemp("other"), 90, tokenizer=tokenizer)


STREAM = {"task__stream_sinks": (0, 2), "task__stream_window": 6, "task__stream_tokens": 60}


def config(folder, **deltas):
    return small.tokens(folder, members=2, **STREAM, **deltas)


@pytest.fixture(scope="module")
def whole(folder, other, tmp_path_factory):
    """Runs of two members, from the corpus on the device, with a held-out set."""
    return train(
        config(folder, task__held_out=(f"more={other}",)), tmp_path_factory.mktemp("whole")
    )


def test_streamed_and_stopped_it_is_the_same(folder, other, whole, tmp_path, monkeypatch):
    """Losses, results and all, to the bit; a stop is where no chunk would end otherwise."""
    streamed = config(folder, task__data="streamed", task__held_out=(f"more={other}",))
    signal_at(monkeypatch, [8, 15])
    for _ in range(2):
        with pytest.raises(Preempted):
            train(streamed, tmp_path)
    runs = train(streamed, tmp_path)
    for one, other in zip(whole, runs, strict=True):
        assert without_time(one) == without_time(other)
    assert without_time(runs[0]) != without_time(runs[1])


def test_a_run_has_its_tokenizer_and_the_digests_of_its_shards(folder, other, whole):
    manifest = read_json(folder / "manifest.json")
    shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
    (held_out,) = read_json(other / "manifest.json")["splits"]["validation"]["shards"]
    expected = {shard["file"]: shard["sha256"] for shard in shards}
    expected[f"more/{held_out['file']}"] = held_out["sha256"]
    for run in whole:
        files = read_json(run / "data.json")["files"]
        assert files == expected and len(files) > 3
        assert (run / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()
        assert read_json(run / "corpus.json") == {"vocab_size": 300}


def test_a_run_is_evaluated_again(whole):
    opened = open_run(whole[1], load_run_config(whole[1]))
    found = evaluate(opened)
    assert {"loss", "bits_per_byte", "stream_loss"} <= found.metrics["validation"].keys()
    assert not metric_changes(found.metrics, read_json(whole[1] / "result.json"))


def test_a_held_out_set_is_measured_beside_the_validation_split(folder, other, whole):
    """As the run on the other corpus would measure it: the same windows, the same losses."""
    result = read_json(whole[1] / "result.json")
    assert result["slices"]["loss_by_held_out"] == ["more"]
    found = result["best"]["validation"]
    assert found["loss_by_held_out"] != [found["loss"]]
    last = read_metrics(whole[1])[-1]
    assert last["validation/loss_by_held_out"] == result["final"]["validation"]["loss_by_held_out"]
    opened = open_run(whole[1], load_run_config(whole[1]))
    there = apply_deltas(opened.config, {"task.path": str(other), "task.held_out": ()})
    task = make_task(there.task)
    program = build_program(there, ONE_DEVICE, make_mesh(ONE_DEVICE), task)
    stacked = jax.tree.map(lambda leaf: leaf[None], opened.params)
    sums = program.evaluate["validation"](stacked, program.data, np.zeros(1, np.uint32)).sums
    for name in ("loss", "bits_per_byte"):
        mean = float(sums[name].total[0] / sums[name].count[0])
        assert found[f"{name}_by_held_out"] == pytest.approx([mean], rel=1e-5)


def test_a_run_writes_text(whole):
    arguments = [f"--workdir={whole[0]}", "--prompt=Document 🙂", "--tokens=3"]
    (outcome,) = run_cases("research.generate", [arguments])
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("Document 🙂")


def test_a_run_streams_its_corpus_when_it_ends(folder, whole):
    result, task = read_json(whole[1] / "result.json"), make_task(config(folder).task)
    tokens = np.fromfile(folder / "validation-00000.bin", "<u2")
    starts = np.linspace(0, len(tokens) - 61, 4).astype(int)
    pieces = np.stack([tokens[start : start + 61] for start in starts])
    np.testing.assert_array_equal(task.streams("validation"), pieces)
    opened = open_run(whole[1], load_run_config(whole[1]))
    losses = [
        -stream_scores(streaming(opened.model, 6, sinks), opened.params, pieces.astype(np.int32))
        .log_prob[:, 6:]
        .mean()
        for sinks in (0, 2)
    ]
    assert result["slices"]["stream_loss_by_sinks"] == ["0", "2"]
    found = result["best"]["validation"]["stream_loss_by_sinks"]
    assert found == pytest.approx([float(loss) for loss in losses], rel=1e-4)


def test_another_corpus_in_its_place_is_refused(folder, other, whole, tmp_path):
    held_out = {"task__held_out": (f"more={other}",)}
    check_same_data(make_task(config(folder, **held_out).task), whole[0])
    with pytest.raises(UserError, match="more/validation-00000.bin had .* and now is not read"):
        check_same_data(make_task(config(folder).task), whole[0])
    tokenizer = f"{folder}/tokenizer.json"
    changed = corpora.corpus(tmp_path, 61, shard_tokens=777, tokenizer=tokenizer)
    with pytest.raises(
        UserError, match="the data changed since the run began: train-0000..bin had"
    ):
        check_same_data(make_task(config(changed, **held_out).task), whole[0])


def test_a_seed_decides_the_windows(whole):
    losses = [read_json(run / "result.json")["final"]["validation"]["loss"] for run in whole]
    assert losses[0] != losses[1]
