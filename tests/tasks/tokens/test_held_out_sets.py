"""Named held-out sets: their windows and metrics, beside those of the validation split."""

import shutil

import jax
import numpy as np
import pytest

from research.ablation.sweep import _reads
from research.configuration import apply_deltas
from research.errors import UserError
from research.parallel.parallelize import to_global_arrays
from research.tasks.registry import make_task
from research.training.schema import run_id
from tests import corpora, small
from tests.compiled import compiled


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two corpora of bytes, one of another tokenizer, and shards without a manifest."""
    folder = tmp_path_factory.mktemp("sets")
    for name, number, tokenizer in (
        ("train", 60, "bytes"),
        ("wiki", 90, "bytes"),
        ("bpe", 60, "bpe:257"),
        ("larger", 60, "bpe:300"),
    ):
        (folder / name).mkdir()
        corpora.corpus(folder / name, number, tokenizer=tokenizer)
    (np.arange(500, dtype="<u2") % 200).tofile(folder / "code.bin")
    (np.arange(500, dtype="<u2")).tofile(folder / "foreign.bin")
    return folder


def made(folder, *sets, **deltas):
    given = tuple(one.replace("{}", str(folder)) for one in sets)
    config = small.tokens(folder / "train" / "tokens", task__held_out=given, **deltas)
    return make_task(config.task)


SETS = ("wiki={}/wiki/tokens", "code={}/code.bin")


@pytest.fixture(scope="module")
def task(folder):
    return made(folder, *SETS, task__eval_lengths=(24,))


def batches(task):
    """Returns all batches of an evaluation of three batches, by bucket."""
    data = to_global_arrays(task.data, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    draw = compiled(task.evaluation, 1, 3, 4)
    numbers = task.evaluation_batches("validation", 3)
    return [
        [draw(data, "validation", i, number, bucket) for i in range(number)]
        for bucket, number in enumerate(numbers)
    ]


def test_every_set_has_a_bucket_of_its_own_windows(folder, task):
    found = batches(task)
    assert [len(of) for of in found] == [3, 2, 3, 3]
    assert {int(b["held_out"][0]) for of in found[:2] for b in of} == {-1}
    for number, (path, of) in enumerate(
        zip(("wiki/tokens/validation-00000.bin", "code.bin"), found[2:], strict=True)
    ):
        tokens = np.fromfile(folder / path, "<u2")
        stride = (len(tokens) - 16) // 4
        for i, batch in enumerate(of):
            assert (batch["held_out"] == number).all() and (batch["eval_length"] == -1).all()
            for row, (inputs, targets) in enumerate(
                zip(batch["inputs"], batch["targets"], strict=True)
            ):
                start = row * stride + int(i * (stride - 1) / 2)
                np.testing.assert_array_equal(inputs, tokens[start : start + 16])
                np.testing.assert_array_equal(targets, tokens[start + 1 : start + 17])


def test_metrics_by_hand(task):
    """Uniform over 4 tokens in the split, over 8 at the other length, over 16 and 2 in the sets."""
    total, measured = {}, compiled(task.metrics)
    for (batch, *_), tokens in zip(batches(task), (4, 8, 16, 2), strict=True):
        logits = np.full((*batch["targets"].shape, task.vocab_size), -1e4, np.float32)
        for i in range(tokens):
            likely = (batch["targets"][..., None] + i) % task.vocab_size
            np.put_along_axis(logits, likely, 0.0, axis=2)
        sums = measured(logits, batch)
        total = jax.tree.map(np.add, total, sums) if total else sums
    mean = {k: s.total / np.maximum(s.count, 1e-9) for k, s in total.items()}
    split, wiki = task.corpus.splits["validation"], task.held_out["wiki"].splits["validation"]
    np.testing.assert_allclose(mean["loss"], np.log(4), rtol=1e-5)
    np.testing.assert_allclose(mean["bits_per_byte"], 2 * split.tokens / split.bytes, rtol=1e-5)
    np.testing.assert_allclose(mean["loss_by_length"], np.log([8]), rtol=1e-5)
    np.testing.assert_allclose(mean["loss_by_held_out"], np.log([16, 2]), rtol=1e-5)
    bits = mean["bits_per_byte_by_held_out"]
    np.testing.assert_allclose(bits[0], 4 * wiki.tokens / wiki.bytes, rtol=1e-5)
    assert total["bits_per_byte_by_held_out"].count[1] == 0, "nothing says how many bytes they are"
    # Sets count in no metric of the split: the first position is of the split's two lengths.
    np.testing.assert_allclose(mean["loss_by_position"][0], np.log([4, 8]).mean(), rtol=1e-5)
    for name in ("loss_by_held_out", "bits_per_byte_by_held_out"):
        assert task.slices[name] == ["wiki", "code"]


def test_without_sets_nothing_changes(folder):
    plain, config = made(folder), small.tokens(folder / "train" / "tokens")
    assert plain.evaluation_batches("validation", 3) == (3,) and set(plain.slices) == {
        "loss_by_position"
    }
    (found,) = batches(plain)
    assert "held_out" not in found[0] and set(plain.data) == {"train", "validation"}
    assert "held_out" not in jax.eval_shape(plain.batch, plain.data_shapes(), jax.random.key(0))
    empty = small.tokens(folder / "train" / "tokens", task__held_out=())
    assert run_id(config) == run_id(empty)


WRONG = {
    "no name": ("{}/wiki/tokens", r"task.held_out='.*' must be NAME=PATH, such as wiki="),
    "odd name": ("a b={}/wiki/tokens", "must be NAME=PATH"),
    "name of a split": ("train={}/wiki/tokens", "the name 'train' is taken"),
    "twice": ("code={}/code.bin", "the name 'code' is taken"),
    "nothing there": ("a={}/none", r"task.held_out='a=.*none': there is no such file"),
    "no manifest": ("a={}/wiki", r"has no manifest.json; name its shards"),
    "tokenizer": ("a={}/bpe/tokens", r"was encoded by the tokenizer \w{12}, and .* by \w{12}"),
    "vocabulary": ("a={}/larger/tokens", "has a vocabulary of 300 tokens, and .* of 257"),
    "token": ("a={}/foreign.bin", "foreign.bin has the token 499; the vocabulary has 257"),
    "training": ("a={}/train/tokens/train-0*.bin", "train-00000.bin is a training shard"),
    "short": ("a={}/short.bin", "the held-out set 'a' has 9 tokens, and a window needs 17"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_named(folder, case):
    np.arange(9, dtype="<u2").tofile(folder / "short.bin")
    given, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        made(folder, SETS[1], given)


def test_a_damaged_set_is_named(folder, tmp_path):
    shutil.copytree(folder / "wiki" / "tokens", tmp_path / "tokens")
    with open(tmp_path / "tokens" / "validation-00000.bin", "ab") as file:
        file.write(b"\0\0")
    with pytest.raises(UserError, match="it was cut short or changed"):
        made(folder, f"wiki={tmp_path}/tokens")
    # The training shards of a set are not read.
    (tmp_path / "tokens" / "train-00000.bin").unlink()
    shutil.copy(folder / "wiki" / "tokens" / "validation-00000.bin", tmp_path / "tokens")
    assert made(folder, f"wiki={tmp_path}/tokens").slices["loss_by_held_out"] == ["wiki"]


def test_a_sweep_compares_the_files_of_runs_with_the_same_sets_only(folder):
    """An arm with a set reads more files than one without; that is no change of the data."""
    plain = small.tokens(folder / "train" / "tokens")
    with_set = small.tokens(folder / "train" / "tokens", task__held_out=(f"a={folder}/code.bin",))
    assert _reads(plain) == _reads(apply_deltas(plain, {"seed": 3})) != _reads(with_set)
