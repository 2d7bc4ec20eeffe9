"""What a plan counts of the data: the corpus that the run will read, or a size that was stated."""

import json

import pytest

from research.cloud.data import data_bytes, describe_data, parse_tokens, planned_data
from research.configuration import apply_deltas, load_config
from research.errors import UserError
from research.parallel.layout import AXES, Layout
from research.tasks.registry import make_task
from tests import corpora, small

LARGE = "configs/tpu/lm_125m.py"


def held(config, tokens=0, members=1, **axes):
    """Returns the bytes of data on a device of a layout, and the line that says so."""
    layout = Layout(**axes)
    found = planned_data(config, tokens)
    sizes = dict(zip(AXES, layout.shape, strict=True))
    size = data_bytes(config, found.task, members, sizes)
    return size, describe_data(config, found, layout)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("10B", 10**10), ("2.6B", 26 * 10**8), ("500k", 500_000), ("1_000", 1000)],
)
def test_numbers_of_tokens(text, tokens):
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["many", "10G", "-1", "0", "1e9"])
def test_what_is_no_number_of_tokens(text):
    with pytest.raises(UserError, match=r"--tokens='.*' must be a number of tokens"):
        parse_tokens(text)


def test_a_prepared_corpus_is_counted_by_its_manifest(tmp_path):
    folder = corpora.corpus(tmp_path, tokenizer="bpe:300")
    config = small.tokens(folder, task__batch_size=8)
    counts = json.loads((folder / "manifest.json").read_text())["splits"]
    one, line = held(config)
    task = make_task(config.task)
    arrays = [task.data[split][:, :] for split in ("train", "validation")]
    assert one == sum(a.nbytes for a in arrays)
    total = sum(split["tokens"] for split in counts.values())
    assert f"{total:,} tokens (as {folder} says), uint16, in 8 pieces" in line
    # Only the manifest is needed: a plan is made on a laptop.
    for shard in folder.glob("*.bin"):
        shard.unlink()
    four, line = held(config, data=4)
    assert four == one / 4 and "split over data=4" in line


def test_a_stated_corpus_has_two_bytes_a_token_in_pieces():
    config = load_config(LARGE)
    size, line = held(config, 10**10, data=16)
    # Pieces overlap by a window.
    assert size == pytest.approx(2 * 10**10 / 16, rel=1e-3)
    assert "10,000,000,000 tokens (as --tokens says), uint16, in 512 pieces" in line
    wide = apply_deltas(config, {"task.corpus_vocab_size": 100_000})
    assert held(wide, 10**10, data=16)[0] == pytest.approx(2 * size, rel=1e-3)


def test_of_a_streamed_corpus_two_chunks_and_the_validation_split_are_held():
    deltas = {"task.data": "streamed", "task.batch_size": 4, "task.length": 15}
    config = apply_deltas(load_config(LARGE), deltas)
    size, line = held(config, 10**7, members=2, data=2)
    chunk = 2 * 50 * 4 * 16 * 2  # members, steps, rows, tokens, bytes
    validation = 2 * 10**5
    assert size == pytest.approx((validation + 2 * chunk) / 2, abs=200)
    assert "read from disk 50 steps at a time" in line
    # The same, but for its validation split, however large it is.
    assert held(config, 10**9, members=2, data=2)[0] - size == pytest.approx(10**7, rel=0.02)


@pytest.mark.parametrize(
    ("deltas", "tokens", "message"),
    [
        ({}, 0, "task.path='data/fineweb-edu': .* for example --tokens=10B"),
        ({"task.corpus_vocab_size": 0}, 10**9, "task.corpus_vocab_size=0: --tokens states"),
        (
            {"task.name": "text", "task.tokenizer": "bpe", "task.path": "none.txt"},
            0,
            "there is no file 'none.txt'. .* --tokens=10B",
        ),
        ({"task.name": "recall"}, 10**9, "task.name='recall' says itself"),
    ],
)
def test_an_unknown_size_is_one_line(deltas, tokens, message):
    config = apply_deltas(load_config(LARGE), deltas)
    with pytest.raises(UserError, match=message) as error:
        planned_data(config, tokens)
    assert "\n" not in str(error.value)


def test_a_text_is_guessed_by_its_bytes(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("word " * 3000)
    deltas = {"task.name": "text", "task.tokenizer": "bpe", "task.path": str(path)}
    size, line = held(apply_deltas(load_config(LARGE), deltas), data=4)
    assert size == pytest.approx(4 * 5000 + 4 * 1024, rel=0.01)  # and the characters of each token
    assert "about 5,000 tokens (guessed at 3 bytes each), int32, whole on every device" in line
