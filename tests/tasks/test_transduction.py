"""Transduction against its rules, read off the arrays by plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from research.errors import UserError
from research.interpret.alignment_measures import alignment_scores
from research.tasks.registry import make_task
from research.tasks.synthetic.transduction import KINDS, substitution
from research.tasks.task import BOS, EOS, PAD, WORDS
from research.training.records.metrics import mean_metrics
from tests.compiled import compiled

VOCAB = 11


def config(**changes):
    """A small `config.task`."""
    values = {
        "name": "transduction",
        "kind": "reverse",
        "vocab_size": VOCAB,
        "min_length": 2,
        "train_length": 6,
        "test_lengths": (3, 5, 9),
        "test_sequences": 4,
        "test_of_seed": False,
        "length": 12,
        "batch_size": 8,
    }
    return ConfigDict(values | changes)


@pytest.fixture(scope="module")
def tasks():
    return {kind: make_task(config(kind=kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def tests_of(tasks):
    """The whole test of each kind, batch after batch, as evaluation gives it."""
    return {kind: whole_test(task) for kind, task in tasks.items()}


def whole_test(task):
    (total,) = task.evaluation_batches("test", 1)
    run = compiled(lambda i: task.evaluation(task.data, "test", i, total))
    batches = [run(i) for i in range(total)]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


def rows(batch):
    return [{name: array[i] for name, array in batch.items()} for i in range(len(batch["source"]))]


def expected_order(kind, n, words=()):
    """Source positions in the order of the target, from the words of the rule."""
    if kind == "copy":
        return list(range(n))
    if kind in ("reverse", "substitute"):
        return list(reversed(range(n)))
    order = []
    for start in range(0, n, 5):
        clause = list(range(start, min(start + 5, n)))
        if kind == "verbs_last":
            verbs = [i for i in clause if (words[i] - WORDS) % 3 == 0]
            clause = [i for i in clause if i not in verbs] + verbs
        elif len(clause) > 1:
            clause.append(clause.pop(1))
        order += clause
    return order


def check_pair(row, kind, longest):
    """Asserts the rule of a kind and the padding for one pair."""
    n = int(row["source_length"]) - 1
    source, inputs, targets = (row[k].tolist() for k in ("source", "inputs", "targets"))
    assert len(source) == len(inputs) == len(targets) == len(row["alignment"]) == longest + 1
    words, rest = source[:n], longest - n
    assert all(WORDS <= w < VOCAB for w in words)
    assert source[n:] == [EOS] + [PAD] * rest
    order = expected_order(kind, n, words)
    table = np.arange(VOCAB) if kind in ("copy", "reverse") else substitution(VOCAB)
    target = [int(table[words[i]]) for i in order]
    assert targets == [*target, EOS] + [-1] * rest
    assert inputs == [BOS, *target] + [PAD] * rest
    assert row["alignment"].tolist() == [*order, -1] + [-1] * rest


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_obey_the_rule(tasks, tests_of, kind):
    task = tasks[kind]
    batch = compiled(task.batch)((), jax.random.key(0), 3)
    for row in rows(batch):
        check_pair(row, kind, 6)
    assert {name: array.dtype for name, array in batch.items()} == dict.fromkeys(batch, np.int32)
    for row in rows(tests_of[kind])[:12]:
        check_pair(row, kind, 9)


def test_reordering_by_hand():
    assert expected_order("reorder", 8) == [0, 2, 3, 4, 1, 5, 7, 6]
    assert expected_order("reorder", 6) == [0, 2, 3, 4, 1, 5]


def test_substitution_is_a_fixed_permutation_of_the_words():
    table = substitution(50)
    assert table[:WORDS].tolist() == [PAD, BOS, EOS]
    assert sorted(table.tolist()) == list(range(50))
    assert (table[WORDS:] != np.arange(WORDS, 50)).mean() > 0.8
    # It is a part of published results: another one would be another task.
    assert substitution(VOCAB).tolist() == TABLE


TABLE = [0, 1, 2, 8, 9, 3, 6, 4, 7, 5, 10]


def test_lengths_and_words_of_training_are_uniform(tasks):
    task = tasks["copy"]
    batches = jax.jit(jax.vmap(lambda step: task.batch((), jax.random.key(1), step)))(
        jnp.arange(400)
    )
    for values, first, number in (
        (np.asarray(batches["source_length"]).ravel() - 1, 2, 5),
        (np.asarray(batches["source"])[..., 0].ravel(), WORDS, VOCAB - WORDS),
    ):
        counts = np.bincount(values - first, minlength=number)
        assert len(counts) == number
        expected = values.size / number
        # Chi-square far beyond any chance (the seed is fixed, so this cannot flicker).
        assert ((counts - expected) ** 2 / expected).sum() < 25
    lengths = np.asarray(batches["source_length"])
    assert task.tokens == pytest.approx(2 * lengths.sum(1).mean(), rel=0.02)


def test_batches_follow_from_key_and_step_alone(tasks):
    task = tasks["copy"]

    run = jax.jit(task.batch)

    def source(seed, step):
        return np.asarray(run((), jax.random.key(seed), step)["source"])

    assert (source(0, 1) == source(0, 1)).all()
    assert (source(0, 1) != source(0, 2)).any() and (source(0, 1) != source(1, 1)).any()


def test_the_test_has_equal_numbers_of_each_length_and_then_rows_that_count_nothing(tests_of):
    test = tests_of["reverse"]
    assert test["source"].shape == (16, 10)  # 12 sequences in two batches of 8
    lengths = test["source_length"] - 1
    assert np.unique(lengths[:12], return_counts=True)[1].tolist() == [4, 4, 4]
    assert sorted(set(lengths[:12])) == [3, 5, 9]
    assert (test["targets"][12:] == -1).all() and (test["alignment"][12:] == -1).all()
    assert (test["source"][12:] == [EOS] + [PAD] * 9).all()
    assert len({tuple(row) for row in test["source"][:12]}) == 12
    # All kinds translate the same sources.
    assert all((other["source"] == test["source"]).all() for other in tests_of.values())


def test_validation_has_the_lengths_of_training_alone(tasks):
    task = tasks["reverse"]
    assert task.evaluation_batches("validation", 7) == (7,)
    run = compiled(lambda i: task.evaluation((), "validation", i, 5))
    batches = [run(i) for i in range(5)]
    lengths = np.concatenate([b["source_length"] for b in batches]) - 1
    assert np.bincount(lengths).tolist() == [0, 0, 8, 8, 8, 8, 8]
    assert batches[0]["source"].shape == (8, 7)
    for row in rows(batches[1]):
        check_pair(row, "reverse", 6)


def logits_of(targets):
    return 20.0 * (targets[..., None] == np.arange(VOCAB)).astype(np.float32)


def measured(task, logits, batch):
    sums = compiled(task.metrics)(logits, batch)
    return sums, mean_metrics(jax.tree.map(lambda a: a[None], sums), 0)


def test_right_logits_are_perfect_and_filler_counts_nothing(tasks, tests_of):
    task, test = tasks["reverse"], tests_of["reverse"]
    sums, found = measured(task, logits_of(test["targets"]), test)
    assert found["accuracy"] == found["accuracy_training_lengths"] == 1.0
    assert found["accuracy_by_length"] == [1.0, 1.0, 1.0] and found["loss"] < 1e-6
    assert sums["accuracy_by_length"].count.tolist() == [4 * 4, 4 * 6, 4 * 10]
    assert sums["accuracy"].count == sums["loss"].count == 4 * (4 + 6 + 10)
    assert sums["accuracy_training_lengths"].count == 4 * (4 + 6)


def test_mistakes_are_counted_where_they_are(tasks, tests_of):
    task, test = tasks["reverse"], tests_of["reverse"]
    wrong = test["targets"].copy()
    longest = np.flatnonzero(test["source_length"] == 10)
    wrong[longest[0], :5] = PAD  # five of the 40 targets of length 9
    wrong[12:] = 7  # of rows that count for nothing
    _, found = measured(task, logits_of(wrong), test)
    assert found["accuracy_by_length"] == [1.0, 1.0, pytest.approx(35 / 40)]
    assert found["accuracy"] == pytest.approx(75 / 80)
    assert found["accuracy_training_lengths"] == 1.0
    _, guess = measured(task, np.zeros((*test["targets"].shape, VOCAB), np.float32), test)
    assert guess["loss"] == pytest.approx(np.log(VOCAB), rel=1e-5)


def references(task):
    """Right hypotheses, from the sources alone."""
    sources = task.sources("test")
    assert sources["source"].shape == (12, 10) and isinstance(sources["source"], np.ndarray)
    return [
        row[: n - 1][::-1].tolist()
        for row, n in zip(sources["source"], sources["source_length"], strict=True)
    ]


def test_decoded_sequences_are_scored(tasks):
    task = tasks["reverse"]
    right = references(task)
    scored = task.score("test", right)
    assert set(scored.metrics) == set(task.scores)
    assert set(scored.metrics.values()) == {1.0}
    assert all(values == [1.0, 1.0, 1.0] for values in scored.slices.values())
    assert set(scored.slices) < set(task.slices)
    assert all(labels == ["3", "5", "9"] for labels in task.slices.values())
    # Sequences 0, 1, 2 have 3, 5, 9 words: one is cut, one goes on, one says a word too soon.
    changed = [right[0][:1], [*right[1], 5], [5, *right[2][:-1]], *right[3:]]
    same = sum(a == b for a, b in zip(changed[2], right[2], strict=True))
    found = task.score("test", changed)
    assert found.slices["exact_match_by_length"] == [3 / 4, 3 / 4, 3 / 4]
    assert found.metrics["exact_match"] == pytest.approx(9 / 12)
    assert found.metrics["exact_match_training_lengths"] == pytest.approx(6 / 8)
    by_length = [10 / 12, 1.0, (27 + same) / 36]
    assert found.slices["token_accuracy_by_length"] == pytest.approx(by_length)
    assert found.metrics["token_accuracy"] == pytest.approx((10 + 20 + 27 + same) / 68)
    assert found.metrics["token_accuracy_training_lengths"] == pytest.approx(30 / 32)
    with pytest.raises(ValueError):
        task.score("test", right[:-1])


def test_sequences_with_nothing_decoded_score_zero(tasks):
    found = tasks["copy"].score("test", [[]] * 12)
    assert set(found.metrics.values()) == {0.0}


def test_the_decoded_test_is_the_evaluated_one(tasks, tests_of):
    sources = tasks["reorder"].sources("test")
    assert (sources["source"] == tests_of["reorder"]["source"][:12]).all()


scores_of = jax.jit(alignment_scores)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_on_the_known_positions_have_no_alignment_error(tasks, kind):
    batch = jax.device_get(tasks[kind].alignments("test"))
    right = batch["alignment"][..., None] == np.arange(batch["source"].shape[1])
    weights = np.stack([right, np.flip(right, -1)], 1).astype(np.float32)
    scores = jax.device_get(scores_of(weights, batch))
    errors = scores["alignment_error"].total / scores["alignment_error"].count
    assert errors[0] == 0 and errors[1] == 1
    assert (scores["alignment_error"].count == 2 * (batch["targets"] > EOS).sum()).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "revers"}, "task.kind='revers' is unknown. Did you mean 'reverse'?"),
        ({"vocab_size": 4}, "task.vocab_size=4 must be at least 5"),
        ({"min_length": 0}, "task.min_length=0 must be at least 1"),
        ({"train_length": 1}, "task.train_length=1 must be at least task.min_length=2"),
        ({"test_lengths": ()}, "task.test_lengths=()"),
        ({"test_lengths": (0, 3)}, "task.test_lengths=(0, 3)"),
        ({"test_lengths": (5, 3)}, "task.test_lengths=(5, 3)"),
        ({"test_lengths": (3, 3)}, "task.test_lengths=(3, 3)"),
        ({"length": 9}, "task.length=9 is too short for 9 words and their end token; at least 10"),
        ({"test_lengths": (3,), "length": 6}, "task.length=6 is too short for 6 words"),
        ({"test_sequences": 0}, "task.test_sequences=0 must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes, message):
    with pytest.raises(UserError) as error:
        make_task(config(**changes))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_smallest_sizes_that_fit_do():
    task = make_task(
        config(vocab_size=5, min_length=1, train_length=1, test_lengths=(1,), length=2)
    )
    batch = compiled(task.batch)((), jax.random.key(0))
    assert batch["source"].shape == (8, 2)
    assert (batch["inputs"][:, 1] == batch["targets"][:, 0]).all()
    assert (batch["targets"][:, 0] == batch["source"][:, 0]).all()
