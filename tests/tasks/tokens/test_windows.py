"""Windows are of the corpus, each row's from its piece, and the same wherever the corpus is."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from research.errors import UserError
from research.parallel.parallelize import to_global_arrays
from research.tasks.registry import make_task
from research.tasks.tokens.corpus import VERIFIED
from research.tasks.tokens.pieces import LONGEST_PIECE, Chunk, Pieces, cut
from research.tasks.tokens.splits import Shard, Split
from research.training.step import data_key
from research.training.validation import check_config
from tests import corpora, small
from tests.compiled import compiled


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpora.corpus(tmp_path_factory.mktemp("corpus"), shard_tokens=777)


def made(folder, **deltas):
    return make_task(small.tokens(folder, **deltas).task)


def on_device(task):
    """Returns the task's data on the one device there is."""
    return to_global_arrays(task.data, jax.sharding.SingleDeviceSharding(jax.devices()[0]))


def whole(task, split):
    """Returns the tokens of a split."""
    tokens = task.corpus.splits[split]
    return tokens.read(0, tokens.tokens)


def split_of(tokens):
    """Returns a split of tokens in memory."""
    split = Split("train", (Shard("none", np.dtype("<u2"), 0, len(tokens)),))
    split._maps[0] = tokens
    return split


def test_pieces_hold_every_window_once():
    """A window can start at every token but those that a split into equal pieces leaves over."""
    tokens = np.arange(103, dtype="<u2")
    pieces = cut(split_of(tokens), 8, 5)
    assert pieces.number == 8
    rows = pieces[slice(None), slice(None)]
    assert rows.shape == pieces.shape
    starts = [row[: pieces.stride].tolist() for row in rows]
    assert sum(starts, []) == list(range(8 * pieces.stride)) and 103 - 5 - 8 < 8 * pieces.stride
    for row in rows:
        np.testing.assert_array_equal(np.diff(row.astype(int)), 1)
    np.testing.assert_array_equal(pieces[slice(2, 4), slice(None)], rows[2:4])
    # Fewer windows than rows: as many pieces as divide the batch.
    assert [cut(split_of(tokens[:n]), 8, 5).number for n in (6, 7, 8, 9, 12, 13)] == [
        1,
        2,
        2,
        4,
        4,
        8,
    ]
    assert cut(split_of(tokens[:5]), 8, 5) is None


def test_a_batch_has_a_window_of_every_piece(folder):
    task = made(folder, task__batch_size=4)
    data, tokens = on_device(task), whole(task, "train")
    assert data["train"].dtype == np.uint16 and data["train"].shape[0] == 4
    draw = compiled(task.batch)
    stride = task.train.stride
    seen = set()
    for step in range(20):
        batch = draw(data, jax.random.key(1), step)
        assert batch["inputs"].dtype == batch["targets"].dtype == np.int32
        np.testing.assert_array_equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
        places = [
            [
                start
                for start in range(row * stride, (row + 1) * stride)
                if np.array_equal(tokens[start : start + 16], window)
                and tokens[start + 16] == batch["targets"][row, -1]
            ]
            for row, window in enumerate(batch["inputs"])
        ]
        assert all(places), "each is in the piece of its row"
        seen |= {tuple(place) for place in places}
    assert len(seen) > 70, "they differ from step to step"


@pytest.mark.parametrize("shard_tokens", [10**6, 50])
def test_the_end_of_the_validation_shards_may_be_a_test(tmp_path, shard_tokens):
    folder = corpora.corpus(tmp_path, shard_tokens=shard_tokens)
    before, task = made(folder), made(folder, task__test_fraction=0.4, task__stream_sinks=(0,),
                                      task__stream_tokens=20)  # fmt: skip
    assert (before.splits, task.splits) == (("validation",), ("validation", "test"))
    every = before.text("validation")
    parts = [task.text(split) for split in task.splits]
    assert len(parts[1]) == round(0.4 * len(every)) and sum(p.bytes for p in parts) == every.bytes
    found = np.concatenate([part[0 : len(part)] for part in parts])
    np.testing.assert_array_equal(found, every[0 : len(every)])
    test = task.evaluation(on_device(task), "test", np.int32(0), 2)
    np.testing.assert_array_equal(test["inputs"][0], parts[1][0:16])
    assert task.streams("test").shape == (4, 21) and set(task.evaluation_data) == set(task.splits)
    with pytest.raises(UserError, match="the test split of .* has 1 tokens, and a window needs"):
        made(folder, task__test_fraction=1 / len(every))


def test_the_batches_of_a_chunk_are_those_of_the_device(folder):
    """For two seeds, some steps, and any part of the rows and members that a device may have."""
    device = made(folder, task__batch_size=4)
    streamed = made(folder, task__batch_size=4, task__data="streamed")
    assert set(streamed.data) == {"validation"}
    seeds, data = np.array([3, 5], np.uint32), on_device(device)
    chunk = streamed.chunk(seeds, data_key, 7, 10, 5)
    windows = chunk["windows"]
    assert windows.shape == (2, 5, 4, 17) and windows.dtype == np.uint16
    every = slice(None)
    found = windows[every, every, every, every]
    assert found.shape == windows.shape and not found[:, 3:].any()
    np.testing.assert_array_equal(windows[1:, every, 2:3, every], found[1:, :, 2:3])
    draw, read = compiled(device.batch), compiled(streamed.batch)
    for member, seed in enumerate(seeds):
        for step in range(7, 10):
            expected = draw(data, data_key(seed), step)
            own = {"windows": found[member], "first": chunk["first"]}
            batch = read(own, data_key(seed), step)
            for name in ("inputs", "targets"):
                np.testing.assert_array_equal(batch[name], expected[name])


def test_a_chunk_reads_beyond_two_to_the_31(tmp_path):
    """Places within a piece fit into int32; only on the host, piece and place are added."""
    path, tokens, stride = tmp_path / "train.bin", 4 * (2**30 + 10) + 1, 2**30 + 10
    with open(path, "wb") as file:
        file.truncate(2 * tokens)
        for piece in range(4):
            file.seek(2 * (piece * stride + stride - 1))
            file.write(np.array([piece + 1], "<u2").tobytes())
    pieces = cut(Split("train", (Shard(path, np.dtype("<u2"), 0, tokens),)), 4, 1)
    assert (pieces.number, pieces.stride) == (4, stride)
    chunk = Chunk(pieces, np.full((1, 1, 4), stride - 1, np.int32), 1)
    found = chunk[(slice(None),) * 4]
    assert found[0, 0, :, 0].tolist() == [1, 2, 3, 4]


def test_windows_are_drawn_and_read_beyond_two_to_the_31(tmp_path):
    """Of a corpus of 2^32 tokens nearly, in the two longest pieces that there can be.

    The file is sparse. Windows are written where a seed draws them, and have to be found there.
    """
    path, length = tmp_path / "train.bin", 16
    tokens = 2 * (LONGEST_PIECE - length) + length
    with open(path, "wb") as file:
        file.truncate(2 * tokens)
    np.arange(100, dtype="<u2").tofile(tmp_path / "val.bin")
    # So that the file, which is all holes, is not read for its digest.
    versions = {p.name: [p.stat().st_size, p.stat().st_mtime_ns, "uint16", 0] for p in
                (path, tmp_path / "val.bin")}  # fmt: skip
    known = {n: {"version": v, "sha256": "0", "largest": 99} for n, v in versions.items()}
    (tmp_path / VERIFIED).write_text(json.dumps(known))
    shards = {"task__corpus_vocab_size": 60_000, "task__data": "streamed"}
    with pytest.raises(UserError, match="task.batch_size=1 cuts the train split into pieces of 4,"):
        made(tmp_path, task__batch_size=1, **shards)
    task = made(tmp_path, task__batch_size=2, **shards)
    assert task.train.shape == (2, LONGEST_PIECE)
    seeds, steps = np.array([3, 5], np.uint32), range(7, 57)
    starts = compiled(
        lambda seed: jax.vmap(lambda step: task.starts(data_key(seed), step))(np.arange(7, 57))
    )
    places = np.stack([np.asarray(starts(seed)) for seed in seeds]).astype(np.int64)
    # Uniform over the piece: a sum or product that overflows would leave a half or a sign.
    assert places.min() >= 0 and places.max() < task.train.stride
    assert abs((places >= task.train.stride / 2).mean() - 0.5) < 0.2
    places[..., 1] += task.train.stride
    assert (places[..., 1] >= 2**31).mean() > 0.9
    written = np.random.default_rng(0).integers(1, 60_000, (*places.shape, length + 1), np.uint16)
    with open(path, "r+b") as file:
        for place in np.ndindex(places.shape):
            file.seek(2 * int(places[place]))
            file.write(written[place].astype("<u2").tobytes())
    chunk = task.chunk(seeds, data_key, steps.start, steps.stop, len(steps))
    np.testing.assert_array_equal(chunk["windows"][(slice(None),) * 4], written)
    # What a device would hold as a piece is the same tokens.
    row = task.train.split.read(task.train.stride, task.train.shape[1])
    assert len(row) == task.train.shape[1]
    for member, step in np.ndindex(places.shape[:2]):
        start = int(places[member, step, 1]) - task.train.stride
        np.testing.assert_array_equal(row[start : start + length + 1], written[member, step, 1])


def test_a_piece_longer_than_a_device_can_address_is_refused(folder, monkeypatch):
    longest = made(folder).data["validation"].shape[1]
    for limit, split in ((longest, "train"), (longest - 1, "(train|validation)")):
        monkeypatch.setattr("research.tasks.tokens.windows.LONGEST_PIECE", limit)
        for data in ("device", "streamed"):
            with pytest.raises(UserError, match=f"task.batch_size=4 cuts the {split} split into"):
                made(folder, task__data=data)


def test_evaluation_is_spread_over_the_held_out_tokens(folder):
    task = made(folder, task__batch_size=4, task__eval_lengths=(24,))
    data, tokens = on_device(task), whole(task, "validation")
    pieces = task.data["validation"]
    draw = compiled(task.evaluation, 1, 3, 4)
    for bucket, length in ((0, 16), (1, 24)):
        batches = [draw(data, "validation", i, 3, bucket) for i in range(3)]
        for i, batch in enumerate(batches):
            again = draw(data, "validation", i, 3, bucket)
            np.testing.assert_array_equal(batch["inputs"], again["inputs"])
            assert (batch["eval_length"] == bucket - 1).all()
            for row, window in enumerate(batch["inputs"]):
                start = row * pieces.stride + round(i * (pieces.stride - 1) / 2 - 1e-9)
                np.testing.assert_array_equal(window, tokens[start : start + length])
    # What `interpret` reads is the same.
    example = task.example("validation", 5, 3)
    np.testing.assert_array_equal(example["inputs"][0], draw(data, "validation", 1, 3)["inputs"][1])


def test_packed_documents_are_told_apart_by_their_end_tokens(folder):
    """On the device, read from disk and in evaluation, against a loop over the tokens."""
    deltas = {"task__batch_size": 4, "task__length": 64, "task__documents": "packed"}
    task = made(folder, **deltas, task__restart_positions=True)
    streamed = made(folder, **deltas, task__data="streamed")
    data, key, parts = on_device(task), jax.random.key(1), set()
    chunk = streamed.chunk(np.array([1], np.uint32), lambda _: key, 0, 4, 4)
    own = {"windows": chunk["windows"][(slice(None),) * 4][0], "first": chunk["first"]}
    draw, read = compiled(task.batch), compiled(streamed.batch)
    look = compiled(task.evaluation, 1, 3)
    batches = [draw(data, key, step) for step in range(4)]
    for step, batch in enumerate(batches):
        found = read(own, key, step)
        assert batch.keys() - found.keys() == {"positions"}
        for name, array in found.items():
            np.testing.assert_array_equal(array, batch[name])
    for batch in (*batches, look(data, "validation", 1, 3)):
        for row, tokens in enumerate(batch["inputs"]):
            number, place, following = 0, 0, [*tokens[1:], batch["targets"][row, -1]]
            for at, token in enumerate(tokens):
                assert batch["segments"][row, at] == number
                assert batch["positions"][row, at] == place
                ends = token == 256
                assert batch["targets"][row, at] == (-1 if ends else following[at])
                number, place = (number + 1, 0) if ends else (number, place + 1)
            parts.add(number)
        assert batch["segments"].dtype == batch["targets"].dtype == np.int32
    assert max(parts) >= 2, "there are windows of three documents"


def test_packed_documents_have_losses_of_their_own(folder):
    """The first token of a document counts for nothing; its second has one token of context."""
    task = made(folder, task__documents="packed", task__length=64)
    batch = compiled(task.evaluation, 1, 3)(on_device(task), "validation", 0, 2)
    ends = batch["inputs"] == 256
    assert ends.any()
    outputs = np.where(ends[..., None], 1e4, 0) * np.eye(257)[0]
    sums = task.metrics(outputs.astype(np.float32), batch)
    assert sums["loss"].count == (~ends).sum()
    np.testing.assert_allclose(sums["loss"].total / sums["loss"].count, np.log(257), rtol=1e-6)
    label = task.slices["loss_by_position"].index("1")
    starts = np.roll(ends, 1, 1) | (np.arange(64) == 0)
    assert sums["loss_by_position"].count[label] == (starts & ~ends).sum()


def test_packed_documents_need_an_end_token(folder, tmp_path):
    np.full(500, 7, "<u2").tofile(tmp_path / "train.bin")
    np.full(500, 7, "<u2").tofile(tmp_path / "val.bin")
    deltas = {"task__corpus_vocab_size": 9, "task__documents": "packed"}
    with pytest.raises(UserError, match="task.end_token=-1: nothing in .* says which token ends"):
        made(tmp_path, **deltas)
    with pytest.raises(UserError, match="task.end_token=9: the vocabulary has 9 tokens"):
        made(tmp_path, **deltas, task__end_token=9)
    assert made(tmp_path, **deltas, task__end_token=8).packed
    with pytest.raises(UserError, match="task.end_token=8: the manifest of .* says it"):
        made(folder, task__documents="packed", task__end_token=8)


def test_what_cannot_keep_packed_documents_apart_is_refused(folder):
    def refused(match, **deltas):
        with pytest.raises(UserError, match=match):
            check_config(small.tokens(folder, task__documents="packed", **deltas))

    moba = {"model__mask": "moba", "model__block_length": 4, "model__top_blocks": 2}
    refused("task.documents='packed': MoBA looks at tokens of all segments", **moba)
    refused("'packed': implementation 'jax_cudnn' lacks", model__implementation="jax_cudnn")
    refused(
        "task.restart_positions=True: position 'fire' counts positions from the start",
        model__position="fire",
        task__restart_positions=True,
    )


def test_bits_per_byte_counted_by_hand(folder):
    """With uniform predictions, each token costs log2 V bits, for its bytes on average."""
    task = made(folder)
    batch = compiled(task.evaluation, 1, 3)(on_device(task), "validation", 0, 1)
    sums = task.metrics(np.zeros((*batch["targets"].shape, 257), np.float32), batch)
    split = task.corpus.splits["validation"]
    bits = sums["bits_per_byte"].total / sums["bits_per_byte"].count
    np.testing.assert_allclose(bits, np.log2(257) * split.tokens / split.bytes, rtol=1e-5)
    assert split.tokens > split.bytes, "the end tokens"
    unknown = dataclasses.replace(task, bytes_per_token=0.0)
    assert "bits_per_byte" not in unknown.metrics(np.zeros((4, 16, 257), np.float32), batch)


def test_windows_that_do_not_fit_are_refused(folder):
    with pytest.raises(UserError, match=r"task.length=9000 is too long: the train split of .* has"):
        made(folder, task__length=9000)
    with pytest.raises(UserError, match="task.eval_lengths=2000 is too long: the validation split"):
        made(folder, task__eval_lengths=(2000,))
    number = len(whole(made(folder), "validation"))
    assert made(folder, task__length=number - 1).data["validation"].number == 1
    with pytest.raises(
        UserError, match=f"has {number:,} tokens, and a window needs {number + 1:,}"
    ):
        made(folder, task__length=number)


def test_pieces_of_a_view_are_whole_arrays():
    assert Pieces(split_of(np.arange(9, dtype="<u2")), 1, 2)[slice(0, 1), slice(None)].shape == (
        1,
        9,
    )
