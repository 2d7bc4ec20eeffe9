"""Classified texts: what a batch holds, that an epoch is one, what is measured and kept."""

import json

import jax
import numpy as np
import pytest

from research.errors import UserError
from research.tasks.registry import make_task
from research.tasks.task import UNKNOWN
from research.tasks.text.sentiment import choose_lengths
from research.tasks.text.tokenizer import CORPUS, FILE, OPEN, load_tokenizer, open_words
from tests import small
from tests.compiled import compiled


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return small.labelled(tmp_path_factory.mktemp("texts"))


def made(path, **deltas):
    return make_task(small.sentiment(path, **deltas).task)


@pytest.fixture(scope="module")
def task(path):
    return made(path)


def texts_of(path, split):
    """Returns {(text, label): how often} of a file."""
    lines = open(path.replace("{split}", split), encoding="utf-8").read().splitlines()
    found = {}
    for line in lines:
        text, label = line.split("\t")
        found[text, label] = found.get((text, label), 0) + 1
    return found


def buckets_of(task, steps):
    """Returns the bucket of each of the first steps."""
    return compiled(jax.vmap(task.bucket))(np.arange(steps)).tolist()


def shown(task, batch):
    """Returns the texts and labels of a batch's rows that count."""
    found = []
    for row, length, label in zip(batch["inputs"], batch["length"], batch["label"], strict=True):
        assert (row[length:] == 0).all() and (row[:length] > 0).all()
        if label >= 0:
            found.append((task.tokenizer.decode(row[:length].tolist()), task.labels[label]))
    return found


@pytest.mark.parametrize(("split", "name"), [("validation", "dev"), ("test", "test")])
def test_an_evaluation_has_every_text_once(task, path, split, name):
    wanted, found = texts_of(path, name), []
    evaluation = compiled(task.evaluation, 1, 3, 4)
    for bucket, batches in enumerate(task.evaluation_batches(split, 1)):
        for index in range(batches):
            batch = evaluation(task.data, split, index, batches, bucket)
            assert len(batch["label"]) == task.batch_size
            found += shown(task, batch)
    assert {pair: found.count(pair) for pair in found} == wanted


def test_an_epoch_has_a_text_once_at_most_and_depends_on_the_seed(task, path):
    wanted = texts_of(path, "train")
    draw = compiled(task.batch, 3)
    buckets = buckets_of(task, sum(task.epochs.batches))
    orders = []
    for seed in (0, 1):
        found, key = [], jax.random.key(seed)
        for step, bucket in enumerate(buckets):
            batch = draw(task.data, key, step, bucket)
            assert batch["inputs"].shape == (task.batch_size, task.bounds[bucket])
            found += shown(task, batch)
        assert all(found.count(pair) <= wanted[pair] for pair in found)
        assert len(found) > 80
        orders.append(found)
    assert orders[0] != orders[1]
    assert len(task.bounds) > 1, "else buckets are not tested"


def test_tokens_are_those_without_padding(task):
    draw, key = compiled(task.batch, 3), jax.random.key(0)
    epoch = sum(task.epochs.batches)
    seen = 0
    for step, bucket in enumerate(buckets_of(task, 4 * epoch)):
        seen += int(draw(task.data, key, step, bucket)["length"].sum())
    assert task.tokens == pytest.approx(seen / (4 * epoch), rel=0.03)


def test_word_dropout_is_of_training_tokens_alone(task, path):
    dropping = made(path, task__word_dropout=0.3)
    bucket = len(task.bounds) - 1
    draw, plain, key = compiled(dropping.batch, 3), compiled(task.batch, 3), jax.random.key(0)
    dropped = tokens = 0
    for step in range(40):
        a = plain(task.data, key, step, bucket)
        b = draw(dropping.data, key, step, bucket)
        changed = a["inputs"] != b["inputs"]
        np.testing.assert_array_equal(b["inputs"][changed], UNKNOWN)
        np.testing.assert_array_equal(a["label"], b["label"])
        assert not changed[a["inputs"] == 0].any()
        dropped, tokens = dropped + changed.sum(), tokens + (a["inputs"] > 0).sum()
    assert dropped / tokens == pytest.approx(0.3, abs=0.05)
    again = draw(dropping.data, key, 39, bucket)
    np.testing.assert_array_equal(again["inputs"], b["inputs"])
    for split in ("validation", "test"):
        a, b = (
            compiled(t.evaluation, 1, 3, 4)(t.data, split, 0, 1, 0)["inputs"]
            for t in (task, dropping)
        )
        np.testing.assert_array_equal(a, b)


def test_metrics_against_numpy(task):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(9, 2)).astype(np.float32)
    label = np.array([0, 1, 1, 0, -1, 1, 0, 1, -1], np.int32)
    length = np.array([1, 9, 3, 10, 1, 2, 8, 4, 2], np.int32)
    sums = compiled(task.metrics)(logits, {"label": label, "length": length})
    there = label >= 0
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert sums["loss"].count == 7
    loss = -log_p[there, label[there]].sum()
    np.testing.assert_allclose(sums["loss"].total, loss, rtol=1e-5)
    right = logits.argmax(-1) == label
    assert sums["accuracy"].total == right[there].sum() and sums["accuracy"].count == 7
    by_class = sums["accuracy_by_class"]
    for i in (0, 1):
        assert by_class.count[i] == (label == i).sum()
        assert by_class.total[i] == right[label == i].sum()
    for i, (low, high) in enumerate(task.length_bins):
        inside = there & (low <= length) & (length <= high)
        assert sums["accuracy_by_length"].count[i] == inside.sum()
        assert sums["accuracy_by_length"].total[i] == right[inside].sum()
    assert task.slices["accuracy_by_class"] == ["bad", "good"]


def test_what_a_run_keeps(task, tmp_path):
    for name, text in task.artifacts().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.special == OPEN and tokenizer.vocab_size == task.vocab_size
    np.testing.assert_array_equal(tokenizer.encode("The plot"), task.tokenizer.encode("the plot"))
    known = json.loads((tmp_path / CORPUS).read_text())
    assert known["labels"] == ["bad", "good"]
    assert sum(known["texts"]["train"].values()) == 90
    (tmp_path / FILE).write_text(json.dumps({"kind": "open_word", "words": ["a"]}))
    with pytest.raises(UserError, match="not the tokenizer"):
        load_tokenizer(tmp_path)


def test_the_vocabulary_comes_from_training_alone(tmp_path):
    for split, word in (("train", "one"), ("dev", "two"), ("test", "three")):
        rows = "".join(f"all {word}\t{i % 2}\n" for i in range(4)) + "rare\t0\n"
        (tmp_path / f"{split}.tsv").write_text(rows)
    task = made(str(tmp_path / "{split}.tsv"), task__min_count=2, task__buckets=1)
    assert task.tokenizer.pieces([2, 3]) == [" all", " one"] and task.vocab_size == 4
    assert task.tokenizer.encode("all two rare").tolist() == [2, UNKNOWN, UNKNOWN]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't you?", ["Do", "n't", "you", "?"]),
        ("it’s 'good' , wo n't", ["it", "’s", "'", "good", "'", ",", "wo", "n't"]),
        ("[bold]\x1b[0m\u202e", ["[", "bold", "]", "\x1b", "[", "0m", "\u202e"]),
        ("naïve 日本 x_y", ["naïve", "日本", "x_y"]),
        (" \t\u3000", []),
        # Combining marks belong to their letters, whatever the script; joiners stay inside.
        ("मुझे हिन्दी किताबें पढ़ना पसंद", ["मुझे", "हिन्दी", "किताबें", "पढ़ना", "पसंद"]),
        ("தமிழ் மொழி என்று", ["தமிழ்", "மொழி", "என்று"]),
        ("ที่ นี่ ก็ ดี", ["ที่", "นี่", "ก็", "ดี"]),
        ("اَلسَّلَامُ عَلَيْكُمْ", ["اَلسَّلَامُ", "عَلَيْكُمْ"]),
        ("שָׁלוֹם! می\u200cخواهم", ["שָׁלוֹם", "!", "می\u200cخواهم"]),
        ("cafe\u0301 ❤\ufe0f", ["cafe\u0301", "❤\ufe0f"]),
        ("Größe-Änderung, x² isn't", ["Größe", "-", "Änderung", ",", "x²", "is", "n't"]),
    ],
)
def test_words_are_parted(text, words):
    assert open_words([]).split(text) == words


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_tokens_and_the_parts_of_the_text_go_together(path, kind):
    changes = {"task__bpe_vocab_size": 280} if kind == "bpe" else {}
    tokenizer = made(path, task__tokenizer=kind, task__length=60, **changes).tokenizer
    for text in ("A lovely film", "The Æthelred, isn’t  it?\x00", "日本", "film"):
        assert len(tokenizer.split(text)) == len(tokenizer.encode(text)) > 0
    assert len(tokenizer.encode("  ")) == 0
    joined = "".join(tokenizer.split("A lovely film")).strip()
    assert joined.lower().replace(" ", "") == "alovelyfilm"
    pieces = tokenizer.pieces([0, 1, *tokenizer.encode("lovely").tolist()])
    assert pieces[:2] == [" <pad>", " <unknown>"] and "".join(pieces[2:]).strip() == "lovely"


def test_long_texts_are_cut(path, capsys):
    task = made(path, task__length=3)
    assert max(task.bounds) == 3
    assert "cut to 3 tokens" in capsys.readouterr().err


def test_buckets_by_length():
    lengths = np.array([1] * 10 + [9] * 12 + [3] * 10)
    assert choose_lengths(lengths, 3, 10) == (1, 3, 9)
    assert choose_lengths(lengths, 3, 11) == (3, 9)


@pytest.mark.parametrize(
    ("deltas", "parts"),
    [
        ({"task__word_dropout": 1.0}, ["task.word_dropout=1.0", "must be in [0, 1)"]),
        ({"task__min_count": 0}, ["task.min_count=0"]),
        ({"task__tokenizer": "char"}, ["task.tokenizer='char'", "bpe, word"]),
        ({"task__tokenizer": "bpe", "task__bpe_vocab_size": 200}, ["task.bpe_vocab_size=200"]),
        ({"task__buckets": 0}, ["task.buckets=0"]),
        ({"task__batch_size": 91}, ["task.batch_size=91", "90 texts"]),
    ],
)
def test_what_does_not_fit_is_refused(path, deltas, parts):
    with pytest.raises(UserError) as error:
        made(path, **deltas)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)
