"""Language modelling on text, its tokenizers and its data files, counted by hand."""

import hashlib
import math

import jax
import numpy as np
import pytest

from research.errors import UserError
from research.tasks import corpora
from research.tasks.corpora import RemoteFile, fetch, read_file, text_file
from research.tasks.registry import make_task
from research.tasks.text import tokenizer
from research.tasks.text.tokenizer import make_tokenizer
from tests import small
from tests.compiled import compiled

# One, two, three and four bytes a character, and a combining mark.
UNICODE = "naïve Ångström – “日本語” 🙂🙂 e\u0301 Ω\n"
ENGLISH = "To be, or not to be: that is the question.\r\nWhether 'tis nobler\tin the mind\n"


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """A data directory and a home of its own, so that no tokenizer is cached between tests."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "data"


def written(tmp_path, content):
    path = tmp_path / "corpus.txt"
    path.write_text(content, encoding="utf-8", newline="")
    return path


def made(tmp_path, content, **deltas):
    return make_task(small.text(written(tmp_path, content), **deltas).task)


# Data files.


def test_fetch_checks_what_it_downloads(data, monkeypatch):
    content = b"some text"
    file = RemoteFile("set/a.txt", "https://example.org/a", hashlib.sha256(content).hexdigest())

    class Response:
        def __init__(self, body):
            self.body = body

        def read(self):
            return self.body

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Response(b"something else"))
    with pytest.raises(UserError, match=r"https://example.org/a has sha256 .* not the recorded"):
        fetch(file)
    assert not (data / "set").exists()

    calls = []
    monkeypatch.setattr(
        "urllib.request.urlopen", lambda *_, **__: calls.append(1) or Response(content)
    )
    assert fetch(file).read_bytes() == content
    assert fetch(file) == data / "set" / "a.txt"
    assert len(calls) == 1, "fetched once"
    assert [p.name for p in (data / "set").iterdir()] == ["a.txt"]

    (data / "set" / "a.txt").write_bytes(b"some tex")
    with pytest.raises(UserError, match="not the recorded"):
        fetch(file)


def test_fetch_without_network_says_what_to_do(data):
    with pytest.raises(UserError) as error:
        read_file(text_file("tinyshakespeare"))
    for part in ("tinyshakespeare/input.txt", str(data), "no network in tests", "set DATA_DIR"):
        assert part in str(error.value)
    assert not data.exists()


def test_every_known_corpus_has_a_checksum():
    for file in corpora.TEXTS.values():
        assert len(bytes.fromhex(file.sha256)) == 32
        assert file.url.startswith("https://")


def test_line_ends_are_kept_as_they_are(tmp_path):
    assert read_file(text_file(str(written(tmp_path, ENGLISH)))) == ENGLISH


# The task.


def test_splits_are_the_first_nine_tenths_and_the_rest(tmp_path):
    text = (ENGLISH + UNICODE) * 9
    task = made(tmp_path, text)
    cut = int(len(text) * 0.9)
    assert task.tokenizer.decode(task.data["train"].tolist()) == text[:cut]
    assert task.tokenizer.decode(task.data["validation"].tolist()) == text[cut:]


def test_a_test_is_the_end_of_what_validation_would_have(tmp_path):
    whole = made(tmp_path, ENGLISH * 40)
    task = made(tmp_path, ENGLISH * 40, task__test_fraction=0.04)
    assert (whole.splits, task.splits) == (("validation",), ("validation", "test"))
    parts = [np.asarray(task.data[split]) for split in task.splits]
    np.testing.assert_array_equal(np.concatenate(parts), whole.data["validation"])
    np.testing.assert_array_equal(task.data["train"], whole.data["train"])
    assert len(parts[1]) == int(len(ENGLISH * 40) * 0.04)
    windows = task.evaluation(task.data, "test", 0, 1)["inputs"]
    np.testing.assert_array_equal(windows[0], parts[1][: task.length])
    for fraction in (-0.1, 0.1, 0.5):
        with pytest.raises(UserError, match="test_fraction=.* must be in"):
            made(tmp_path, ENGLISH * 40, task__test_fraction=fraction)


def test_bpe_is_trained_on_the_training_split_alone(tmp_path):
    kinds = {"task__tokenizer": "bpe", "task__bpe_vocab_size": 300}
    text = ENGLISH * 90
    cut = int(len(text) * 0.9)
    one = made(tmp_path, text, **kinds)
    two = made(tmp_path, text[:cut] + "語" * (len(text) - cut), **kinds)
    assert one.tokenizer.to_json() == two.tokenizer.to_json()


def test_targets_are_the_inputs_shifted_by_one(tmp_path):
    text = "".join(chr(0x4E00 + i) for i in range(400))  # each character once: windows are unique
    task = made(tmp_path, text, task__batch_size=32)
    batch = compiled(task.batch)(task.data, jax.random.key(0))
    assert batch["inputs"].shape == batch["targets"].shape == (32, 16)
    for row, target in zip(batch["inputs"].tolist(), batch["targets"].tolist(), strict=True):
        found = task.tokenizer.decode(row) + task.tokenizer.decode(target[-1:])
        assert found in text[:360]
        assert task.tokenizer.decode(target) == found[1:]


def test_training_windows_reach_both_ends_of_the_split(tmp_path):
    text = "".join(chr(0x4E00 + i) for i in range(60))  # 54 for training, windows of 16 + 1
    task = made(tmp_path, text, task__length=4, task__batch_size=64)
    draw = compiled(jax.vmap(lambda k: task.batch(task.data, k)["inputs"][:, 0]))
    batches = draw(jax.random.split(jax.random.key(0), 40))
    starts = np.bincount(np.asarray(batches).ravel(), minlength=50)
    # Windows of 4 and their last target: starts 0 .. 49, each as often as any other.
    assert len(starts) == 50
    expected = starts.sum() / 50
    assert ((starts - expected) ** 2 / expected).sum() < 100  # 49 degrees


@pytest.mark.parametrize(("batches", "size"), [(1, 4), (5, 4), (3, 7)])
def test_validation_windows_are_spread_evenly_and_fixed(tmp_path, batches, size):
    text = "".join(chr(0x4E00 + i) for i in range(1500))
    task = made(tmp_path, text, task__batch_size=size)
    evaluation = compiled(task.evaluation, 1, 3)
    found = [evaluation(task.data, "validation", i, batches) for i in range(batches)]
    starts = np.concatenate([b["inputs"][:, 0] for b in found]) - 1350
    last = 150 - 16 - 1
    assert starts.min() == 0 and starts.max() == last
    steps = np.diff(starts)
    assert (np.abs(steps - last / (batches * size - 1)) <= 1).all()
    for batch in found:
        np.testing.assert_array_equal(batch["targets"], batch["inputs"] + 1)


def test_batches_depend_on_the_key_alone(tmp_path):
    task = made(tmp_path, ENGLISH * 50)
    other = made(tmp_path, ENGLISH * 50)
    one, two = (compiled(task.batch)(task.data, jax.random.key(k))["inputs"] for k in (0, 1))
    again = compiled(other.batch)(task.data, jax.random.key(0))["inputs"]
    assert (one == again).all() and (one != two).any()


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_bits_per_character_counted_by_hand(tmp_path, kind):
    text = (ENGLISH + UNICODE) * 9
    task = made(tmp_path, text, task__tokenizer=kind, task__bpe_vocab_size=300)
    batch = compiled(task.evaluation, 1, 3)(task.data, "validation", 0, 2)
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(*batch["inputs"].shape, task.vocab_size)).astype(np.float32)
    nats, characters = 0.0, 0
    for row, targets in zip(logits.astype(np.float64), batch["targets"].tolist(), strict=True):
        for scores, target in zip(row, targets, strict=True):
            nats += math.log(np.exp(scores).sum()) - scores[target]
        if kind == "char":
            characters += len(targets)
        else:
            # The bytes themselves, as the vocabulary of the library gives them.
            joined = b"".join(
                bytes(tokenizer._BYTE_OF[c] for c in task.tokenizer.library.id_to_token(t))
                for t in targets
            )
            characters += sum(byte & 0xC0 != 0x80 for byte in joined)
    sums = compiled(task.metrics)(logits, batch)
    assert sums["bits_per_character"].count == characters
    np.testing.assert_allclose(sums["loss"].total, nats, rtol=1e-5)
    assert sums["loss"].count == batch["targets"].size
    bits = sums["bits_per_character"].total / sums["bits_per_character"].count
    np.testing.assert_allclose(bits, nats / math.log(2) / characters, rtol=1e-5)
    if kind == "char":
        loss = sums["loss"].total / sums["loss"].count
        np.testing.assert_allclose(bits, loss / math.log(2), rtol=1e-6)


def test_bits_per_character_do_not_depend_on_the_tokenizer(tmp_path):
    """A model that knows nothing but the bytes: uniform over 256 without a single merge."""
    text = UNICODE * 40
    task = made(tmp_path, text, task__tokenizer="bpe", task__bpe_vocab_size=256)
    batch = compiled(task.evaluation, 1, 3)(task.data, "validation", 0, 4)
    assert task.vocab_size == 256
    sums = compiled(task.metrics)(np.zeros((*batch["inputs"].shape, 256)), batch)
    bits = sums["bits_per_character"].total / sums["bits_per_character"].count
    per_byte = 8 * batch["targets"].size / sums["bits_per_character"].count
    np.testing.assert_allclose(bits, per_byte, rtol=1e-6)
    # Close to the bytes that a character of this text takes.
    np.testing.assert_allclose(bits / 8, len(text.encode()) / len(text), rtol=0.1)


def test_loss_by_position_sums_to_the_loss(tmp_path):
    task = made(tmp_path, ENGLISH * 50)
    batch = compiled(task.batch)(task.data, jax.random.key(0))
    shape = (*batch["inputs"].shape, task.vocab_size)
    sums = compiled(task.metrics)(np.random.default_rng(0).normal(size=shape), batch)
    by_position = sums["loss_by_position"]
    np.testing.assert_allclose(by_position.total.sum(), sums["loss"].total, rtol=1e-6)
    assert task.slices["loss_by_position"] == ["1", "2-3", "4-7", "8-15", "16"]
    assert by_position.count.tolist() == [4 * n for n in (1, 2, 4, 8, 1)]


def test_a_text_that_is_too_short_is_named(tmp_path):
    with pytest.raises(UserError, match="the validation split .* has 8 tokens"):
        made(tmp_path, ENGLISH)
    assert made(tmp_path, ENGLISH * 3, task__length=8).length == 8


def test_real_corpus_if_it_is_there(monkeypatch, request):
    monkeypatch.undo()
    path = corpora.data_directory() / corpora.TEXTS["tinyshakespeare"].path
    if not path.is_file():
        pytest.skip("tiny Shakespeare is not under DATA_DIR")
    text = read_file(text_file("tinyshakespeare"))
    assert len(text) == 1_115_394 and len(set(text)) == 65
    assert make_tokenizer("char", [text]).pieces([0]) == ["\n"]
