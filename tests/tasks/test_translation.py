"""Translation: what a batch holds, that an epoch is one, and what is measured."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.configuration import apply_deltas
from research.errors import UserError
from research.tasks import corpora
from research.tasks.bins import word_bins
from research.tasks.registry import make_task
from research.tasks.task import BOS, EOS, PAD
from research.tasks.text.tokenizer import load_tokenizer
from tests import small
from tests.compiled import compiled

GERMAN = "ein mann hund frau sieht läuft über die straße rot groß".split()
ENGLISH = "a man dog woman sees walks across the street red big".split()
SIZES = {"train": 203, "val": 91, "test": 80}
DELTAS = {
    "task.name": "translation",
    "task.bpe_vocab_size": 300,
    "task.length": 48,
    "task.batch_size": 8,
    "task.buckets": 3,
}


def sentences(number, seed):
    """Returns pairs of 1 to 12 words; every source is there once only."""
    generator = np.random.default_rng(seed)
    pairs = {}
    while len(pairs) < number:
        words = generator.integers(0, len(GERMAN), generator.integers(1, 13))
        source = " ".join(GERMAN[w] for w in words) + "."
        pairs[source] = " ".join(ENGLISH[w] for w in words[: 1 + len(words) * 3 // 4]) + "."
    return list(pairs.items())


def write(folder, splits):
    for split, pairs in splits.items():
        for side, language in enumerate(("de", "en")):
            lines = "".join(pair[side] + "\n" for pair in pairs)
            (folder / f"{split}.{language}").write_text(lines, encoding="utf-8")
    return str(folder / "{split}.{language}")


def made(path, **deltas):
    changes = {key.replace("__", "."): value for key, value in deltas.items()}
    config = apply_deltas(small.recall(), {**DELTAS, "task.path": path, **changes})
    return make_task(config.task)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home of its own, so that no tokenizer is cached from elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def splits():
    everything = sentences(sum(SIZES.values()), 0)
    starts = np.cumsum([0, *SIZES.values()])
    return {s: everything[starts[i] : starts[i + 1]] for i, s in enumerate(SIZES)}


@pytest.fixture(scope="module")
def path(tmp_path_factory, splits, home):
    return write(tmp_path_factory.mktemp("corpus"), splits)


@pytest.fixture(scope="module")
def task(path):
    return made(path)


@pytest.fixture(scope="module")
def bucket_of(task):
    return jax.jit(task.bucket)


@pytest.fixture(scope="module")
def batch_of(task, bucket_of):
    """Returns (seed, step) -> batch."""
    of = compiled(task.batch, 3)
    return lambda seed, step: of(task.data, jax.random.key(seed), step, int(bucket_of(step)))


@pytest.fixture(scope="module")
def epoch(task, batch_of):
    """Returns (seed, number of the epoch) -> its batches."""
    number = sum(task.epochs.batches)
    return lambda seed, i: [batch_of(seed, step) for step in range(i * number, (i + 1) * number)]


def read(task, batch):
    """Returns the pairs of a batch as text, and checks that their arrays are what they must be."""
    pairs = []
    arrays = {name: array.tolist() for name, array in batch.items()}
    for row, length in enumerate(arrays["source_length"]):
        source, inputs, targets = (arrays[name][row] for name in ("source", "inputs", "targets"))
        number = sum(t >= 0 for t in targets)
        assert source[length - 1] == EOS and set(source[length:]) <= {PAD}
        assert set(targets[number:]) <= {-1}
        if not number:
            assert length == 1 and inputs == [BOS] + [PAD] * (len(inputs) - 1)
            continue
        assert targets[number - 1] == EOS
        assert inputs[:number] == [BOS, *targets[: number - 1]]
        assert set(inputs[number:]) <= {PAD}
        pair = [task.tokenizer.decode(side) for side in (source[: length - 1], targets[:number])]
        assert arrays["source_words"][row] == len(pair[0].split())
        pairs.append(tuple(pair))
    return pairs


def test_an_epoch_has_every_pair_once_at_most(task, epoch, splits):
    found = [pair for batch in epoch(0, 0) for pair in read(task, batch)]
    assert len(found) == len(set(found)) == 8 * sum(task.epochs.batches)
    assert set(found) <= set(splits["train"])
    # Only what fills no batch is missing.
    assert len(found) > SIZES["train"] - 8 * len(task.pairs)


def test_epochs_together_have_every_pair(task, epoch, splits):
    found = {pair for n in range(4) for batch in epoch(0, n) for pair in read(task, batch)}
    assert found == set(splits["train"])


def test_epochs_are_ordered_anew(task, epoch):
    shapes = [[b["source"].shape for b in epoch(0, n)] for n in range(2)]
    assert shapes[0] != shapes[1] and sorted(shapes[0]) == sorted(shapes[1])
    first = [[read(task, b)[0] for b in epoch(0, n)] for n in range(2)]
    assert set(first[0]) != set(first[1])


def test_batches_are_a_function_of_seed_and_step(task, batch_of, path):
    one, other = batch_of(3, 9), batch_of(4, 9)
    again = made(path)
    bucket = [source for source, _ in task.bounds].index(one["source"].shape[1])
    alike = jax.jit(lambda s: again.batch(again.data, jax.random.key(3), s, bucket))
    assert int(jax.jit(again.bucket)(9)) == bucket
    jax.tree.map(np.testing.assert_array_equal, one, alike(9))
    assert other["source"].shape == one["source"].shape
    assert (other["source"] != one["source"]).any()


def test_members_take_the_same_branch_with_data_of_their_own(task, batch_of):
    keys = jax.vmap(jax.random.key)(jnp.arange(2))

    @jax.jit
    def lengths(step):
        branches = [
            jax.vmap(lambda k, b=b: task.batch(task.data, k, step, b)["source_length"])
            for b in range(len(task.pairs))
        ]
        return jax.lax.switch(task.bucket(step), branches, keys)

    for step in range(6):
        one, other = lengths(step).tolist()
        assert one == batch_of(0, step)["source_length"].tolist()
        assert other == batch_of(1, step)["source_length"].tolist()


def test_buckets_come_as_often_as_they_say(task):
    number = sum(task.epochs.batches)
    found = jax.jit(jax.vmap(task.bucket))(jnp.arange(2 * number))
    for part in (found[:number], found[number:]):
        assert np.bincount(part).tolist() == list(task.epochs.batches)
    np.testing.assert_allclose(np.array(task.epochs.batches) / number, task.frequencies)
    # Not one bucket after the other.
    assert (np.diff(found[:number]) != 0).sum() > len(task.pairs)


def test_tokens_and_padding_are_those_of_the_batches(task, epoch):
    tokens = positions = 0
    for number in range(8):
        for batch in epoch(1, number):
            tokens += int(batch["source_length"].sum() + (batch["targets"] >= 0).sum())
            positions += batch["source"].size + batch["targets"].size
    assert 1 - tokens / positions == pytest.approx(task.padding, rel=0.01)
    assert tokens / 8 / sum(task.epochs.batches) == pytest.approx(task.tokens, rel=0.005)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_has_the_whole_split_once(task, splits, split):
    assert task.splits == task.decoded == ("validation", "test")
    batches, evaluation = task.evaluation_batches(split, 2), compiled(task.evaluation, 1, 3, 4)
    found = [
        evaluation(task.data, split, i, n, bucket)
        for bucket, n in enumerate(batches)
        for i in range(n)
    ]
    pairs = [pair for batch in found for pair in read(task, batch)]
    assert sorted(pairs) == sorted(splits[split.replace("validation", "val")])
    # Rows that fill a batch up count for nothing.
    count = jax.jit(lambda b: task.metrics(jnp.zeros((*b["targets"].shape, 300)), b)["loss"].count)
    expected = sum(len(task.tokenizer.encode(target)) + 1 for _, target in pairs)
    assert sum(float(count(batch)) for batch in found) == expected


def random_logits(task, batch, seed=0):
    shape = (*batch["targets"].shape, task.vocab_size)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_metrics_against_those_of_optax(path):
    task = made(path, task__label_smoothing=0.1)
    batch = compiled(task.evaluation, 1, 3, 4)(task.data, "test", 0, 1, 0)
    logits = random_logits(task, batch)
    targets = np.asarray(batch["targets"])
    asked = targets >= 0
    sums = compiled(task.metrics)(logits, batch)
    one_hot = (targets[..., None] == np.arange(task.vocab_size)).astype(np.float32)

    @compiled
    def losses(logits):
        smoothed = optax.smooth_labels(one_hot, 0.1)
        return [optax.softmax_cross_entropy(logits, labels) for labels in (one_hot, smoothed)]

    loss, smooth = (each[asked].sum() for each in losses(logits))
    np.testing.assert_allclose(sums["loss"].total, loss, rtol=1e-5)
    np.testing.assert_allclose(sums["objective"].total, smooth, rtol=1e-5)
    assert sums["accuracy"].total == (logits.argmax(-1) == targets)[asked].sum()
    assert sums["objective"].count == sums["loss"].count == sums["accuracy"].count == asked.sum()
    assert float(sums["objective"].total) != float(sums["loss"].total)


def test_without_smoothing_the_loss_is_minimised(task):
    batch = compiled(task.evaluation, 1, 3, 4)(task.data, "test", 0, 1, 0)
    logits = random_logits(task, batch)
    assert "objective" not in jax.eval_shape(task.metrics, logits, batch)


def test_accuracy_by_source_length_counted_by_hand(task):
    batch = compiled(task.evaluation, 1, 3, 4)(task.data, "validation", 1, 1, 0)
    logits = random_logits(task, batch)
    right = logits.argmax(-1) == np.asarray(batch["targets"])
    found = compiled(task.metrics)(logits, batch)["accuracy_by_source_length"]
    assert len(found.total) == len(task.slices["accuracy_by_source_length"])
    for i, (low, high) in enumerate(task.word_bins):
        rows = [low <= len(source.split()) <= high for source, _ in read(task, batch)]
        asked = np.asarray(batch["targets"])[rows] >= 0
        assert found.count[i] == asked.sum()
        assert found.total[i] == (right[rows] & asked).sum()


def test_ranges_of_words_hold_enough_sentences():
    few, many = np.repeat([3, 8, 14, 33], [19, 1, 40, 5]), np.repeat([1, 7, 12, 21], 50)
    assert word_bins([few, many]) == [(1, 10), (11, 33)]
    assert word_bins([many]) == [(1, 5), (6, 10), (11, 15), (16, 21)]
    assert word_bins([np.array([4, 7])]) == [(1, 7)]
    assert word_bins([np.zeros(30, int), np.zeros(0, int)]) == [(1, 1)]


def test_sources_are_in_the_order_of_the_split(task, splits):
    found = task.sources("test")
    for row, length, (source, _) in zip(*found.values(), splits["test"], strict=True):
        assert row.tolist()[length - 1 :] == [EOS] + [PAD] * (len(row) - length)
        assert task.tokenizer.decode(row[: length - 1].tolist()) == source


def test_scores_of_right_and_wrong_translations(task, splits):
    references = [target for _, target in splits["test"]]
    tokens = [task.tokenizer.encode(r).tolist() for r in references]
    right = task.score("test", tokens)
    assert right.metrics == {"bleu": pytest.approx(100), "chrf": 100, "exact_match": 1}
    assert tuple(right.metrics) == task.scores
    assert right.files["test.hypotheses.txt"] == "".join(r + "\n" for r in references)
    assert right.files["test.references.txt"] == right.files["test.hypotheses.txt"]
    assert "tok:13a" in json.loads(right.files["sacrebleu.json"])["bleu"]
    assert task.signatures == json.loads(right.files["sacrebleu.json"])
    # All wrong where the source is short.
    (_, high), *others = task.word_bins
    assert others
    long = [len(source.split()) > high for source, _ in splits["test"]]
    mixed = task.score("test", [t if keep else [] for t, keep in zip(tokens, long, strict=True)])
    assert mixed.metrics["exact_match"] == pytest.approx(np.mean(long))
    assert mixed.slices["exact_match_by_source_length"] == [0.0] + [1.0] * len(others)
    for name, values in mixed.slices.items():
        assert len(values) == len(task.slices[name]) and values[0] < 1


def test_chinese_is_scored_by_characters_and_cut_by_them(tmp_path):
    lines = {"zh": "我喜欢这只黑色的小猫。", "en": "I like this cat."}
    for split, number in (("train", 30), ("val", 30)):
        for language, line in lines.items():
            text = "".join(f"{i} {line}\n" for i in range(number))
            (tmp_path / f"{split}.{language}").write_text(text, encoding="utf-8")
    path = str(tmp_path / "{split}.{language}")
    names = {"task__source_language": "en", "task__target_language": "zh"}
    into = made(path, task__length=64, **names)
    spoilt = [r.replace("黑", "白") for r in into.references["validation"]]
    scored = into.score("validation", [into.tokenizer.encode(t).tolist() for t in spoilt])
    assert 60 < scored.metrics["bleu"] < 95 and "tok:zh" in into.signatures["bleu"]
    plain = made(path, task__length=64, task__bleu_tokenizer="13a", **names)
    assert "tok:13a" in plain.signatures["bleu"]
    names = {"task__source_language": "zh", "task__target_language": "en"}
    assert made(path, task__length=64, **names).word_bins[-1][1] >= 12


def test_a_translation_is_one_line_whatever_the_model_writes(task):
    odd = [task.tokenizer.encode("a\nb\u2028c\r\nd").tolist()] + [[]] * (SIZES["test"] - 1)
    assert task.score("test", odd).files["test.hypotheses.txt"].split("\n")[0] == "a b c d"


def test_long_pairs_are_left_out_of_training_and_cut_elsewhere(path, splits, capsys):
    task = made(path, task__length=12)
    sizes = {
        split: np.array([[len(task.tokenizer.encode(s)) + 1 for s in pair] for pair in pairs])
        for split, pairs in splits.items()
    }
    long = {split: (found > 12).sum(0) for split, found in sizes.items()}
    kept = int((sizes["train"] <= 12).all(1).sum())
    assert 0 < kept < SIZES["train"] and sum(task.pairs) == kept
    assert max(max(b) for b in task.bounds) <= 12
    known = json.loads(task.artifacts()["corpus.json"])
    assert known["left_out_too_long"] == SIZES["train"] - kept
    assert known["cut"]["test"] == dict(zip(("source", "target"), long["test"], strict=True))
    error = capsys.readouterr().err
    assert f"{SIZES['train'] - kept} of more than 12 tokens" in error
    assert f"{long['val'][0] + long['test'][0]} sources" in error and error.count("\n") == 1
    # A source that is cut ends all the same; a target that is cut does not.
    sources = task.sources("test")
    assert sources["source"].shape[1] == 12
    rows = np.arange(SIZES["test"])
    assert (sources["source"][rows, sources["source_length"] - 1] == EOS).all()
    assert task.encoded["test"]["target"].shape[1] == 12
    ends = (task.encoded["test"]["target"] == EOS).sum(1)
    assert (ends == (sizes["test"][:, 1] <= 12)).all()


def test_a_run_keeps_tokenizer_and_facts(task, tmp_path):
    for name, content in task.artifacts().items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    again = load_tokenizer(tmp_path)
    assert again.vocab_size == task.vocab_size
    assert again.encode("ein Hund").tolist() == task.tokenizer.encode("ein Hund").tolist()
    known = json.loads((tmp_path / "corpus.json").read_text())
    assert known["pairs"] == {"train": 203, "validation": 91, "test": 80}
    assert len(task.files) == 6 and known["padding"] == pytest.approx(task.padding)
    assert [b["batches"] for b in known["buckets"]] == list(task.epochs.batches)


def test_languages_can_be_turned_round(path, splits):
    task = made(path, task__source_language="en", task__target_language="de")
    assert task.references["test"] == [source for source, _ in splits["test"]]


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        ({"task__length": 1}, "task.length=1 must be at least 2"),
        ({"task__buckets": 0}, "task.buckets=0 must be at least 1"),
        ({"task__label_smoothing": 1.0}, r"task.label_smoothing=1.0 must be in \[0, 1\)"),
        ({"task__bpe_vocab_size": 258}, "task.bpe_vocab_size=258 must be at least 259"),
        ({"task__batch_size": 204}, "task.batch_size=204 is too large: .* has 203 pairs"),
        ({"task__length": 2}, "task.batch_size=8 is too large: .* has 0 pairs of at most"),
        ({"task__target_language": "de"}, "are both 'de'"),
        ({"task__source_language": "fr"}, "train.fr is missing|no split for validation"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(path, deltas, message):
    with pytest.raises(UserError, match=message) as error:
        made(path, **deltas)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("length", "buckets"), [(64, 7), (40, 6)])
@pytest.mark.slow
def test_padding_of_multi30k_if_it_is_there(length, buckets):
    file = corpora.SENTENCE_PAIRS["multi30k"]["train.de"]
    if not (corpora.data_directory() / file.path).is_file():
        pytest.skip("Multi30k is not under DATA_DIR")
    task = made(
        "multi30k",
        task__bpe_vocab_size=8000,
        task__batch_size=64,
        task__length=length,
        task__buckets=buckets,
    )
    assert task.vocab_size == 8000 and len(task.pairs) == buckets
    assert task.padding < 0.15
    assert sum(task.pairs) > 28_900
