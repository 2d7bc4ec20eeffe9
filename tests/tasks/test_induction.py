"""Induction against its definition, and against what can be known without reading the tokens."""

import jax
import numpy as np
import pytest

from research.errors import UserError
from research.tasks.registry import make_task
from research.tasks.synthetic.induction import EVALUATION_SEED, Induction
from research.training.records.metrics import mean_metrics
from tests import small
from tests.compiled import compiled

SHAPES = {
    "varied": Induction(length=40, vocab_size=48, batch_size=512, segment=(3, 12)),
    "one length": Induction(length=24, vocab_size=24, batch_size=256, segment=(5, 5)),
    "shortest": Induction(length=9, vocab_size=20, batch_size=64, segment=(2, 4)),
}


@pytest.fixture(scope="module")
def batches():
    return {name: compiled(task.batch)((), jax.random.key(1)) for name, task in SHAPES.items()}


def occurrences(row):
    """Returns (start of the first, start of the second, length), found by search."""
    tokens = row["inputs"].tolist()
    second = [t for t, token in enumerate(tokens) if token in tokens[:t]]
    start, n = second[0], len(second)
    assert second == list(range(start, start + n)), "what comes again is one segment"
    first = tokens.index(tokens[start])
    assert tokens[first : first + n] == tokens[start : start + n]
    return first, start, n


def rows(batch):
    return [{k: a[i] for k, a in batch.items()} for i in range(len(batch["inputs"]))]


@pytest.mark.parametrize("name", SHAPES)
def test_every_answer_is_determined_by_what_came_before(batches, name):
    task = SHAPES[name]
    for row in rows(batches[name]):
        tokens, targets = row["inputs"].tolist(), row["targets"].tolist()
        first, start, n = occurrences(row)
        assert first + n <= start and task.segment[0] <= n <= task.segment[1]
        assert all(0 <= token < task.vocab_size for token in tokens)
        for t, target in enumerate(targets):
            if not start <= t < start + n - 1:
                assert target == -1 and row["distances"][t] == row["places"][t] == 0
                continue
            (before,) = (s for s in range(t) if tokens[s] == tokens[t])
            assert target == tokens[before + 1] == tokens[t + 1]
            assert before + 1 < t, "it is read before it is asked"
            assert row["distances"][t] == t - before
            assert row["places"][t] == t - start + 1


def test_offsets_and_lengths_vary(batches):
    found = np.array([occurrences(row) for row in rows(batches["varied"])])
    first, second, n = found.T
    counts = np.bincount(n, minlength=13)[3:]
    assert ((counts - 51.2) ** 2 / 51.2).sum() < 30  # uniform lengths, 9 degrees of freedom
    assert len(set(first)) > 20 and len(set(second)) > 20
    one = np.array([b - a for a, b, _ in map(occurrences, rows(batches["one length"]))])
    counts = np.bincount(one, minlength=20)[5:]
    # Every distance from the length of the segment to the most that fits, each as often.
    assert one.min() == 5 and one.max() == 19
    assert ((counts - 256 / 15) ** 2 / (256 / 15)).sum() < 40  # 14 degrees


MEASURED = {name: compiled(task.metrics) for name, task in SHAPES.items()}


def scored(name, batch, guesses):
    """Returns the metrics of one guess to each position, (B, T) tokens."""
    logits = 50.0 * (guesses[..., None] == np.arange(SHAPES[name].vocab_size))
    sums = MEASURED[name](logits.astype(np.float32), batch)
    return mean_metrics(jax.tree.map(lambda a: a[None], sums), 0)


@pytest.mark.parametrize("name", SHAPES)
def test_an_induction_head_scores_one(batches, name):
    task, batch = SHAPES[name], batches[name]
    guesses = np.zeros_like(batch["inputs"])
    for row, guess in zip(batch["inputs"].tolist(), guesses, strict=True):
        successor = {}
        for t, token in enumerate(row):
            guess[t] = successor.get(token, 0)
            if t:
                successor[row[t - 1]] = token
    found = scored(name, batch, guesses)
    assert found["accuracy"] == 1.0 and found["loss"] < 1e-6
    for metric in task.slices:
        assert {x for x in found[metric] if x == x} == {1.0}


def test_no_fixed_distance_and_no_fixed_token_scores_well(batches):
    task, batch = SHAPES["varied"], batches["varied"]
    by_distance = [
        scored("varied", batch, np.roll(batch["inputs"], shift, axis=1))["accuracy"]
        for shift in range(task.length - 1)  # the last one reads the token that follows
    ]
    # At least 17 distances fit every length; weighting by targets favours none by much.
    assert max(by_distance) < 0.1
    asked = batch["targets"][batch["targets"] >= 0]
    by_token = np.bincount(asked, minlength=task.vocab_size) / len(asked)
    assert by_token.max() < 2 / task.vocab_size
    # Nor does the token itself tell its successor, over sequences.
    pairs = np.zeros((task.vocab_size,) * 2)
    np.add.at(pairs, (batch["inputs"][batch["targets"] >= 0], asked), 1)
    assert pairs.max(1).sum() / pairs.sum() < 0.1


def test_slices_sum_to_the_whole(batches):
    task, batch = SHAPES["varied"], batches["varied"]
    logits = np.random.default_rng(0).normal(size=(*batch["inputs"].shape, task.vocab_size))
    sums = MEASURED["varied"](logits.astype(np.float32), batch)
    whole = sums["accuracy"]
    assert 0 < whole.total < whole.count == (batch["targets"] >= 0).sum()
    for metric, labels in task.slices.items():
        np.testing.assert_allclose(sums[metric].total.sum(), whole.total)
        np.testing.assert_allclose(sums[metric].count.sum(), whole.count)
        field = batch["distances" if "distance" in metric else "places"]
        asked = field[batch["targets"] >= 0]
        for label, count in zip(labels, sums[metric].count, strict=True):
            low, _, high = label.partition("-")
            assert count == ((asked >= int(low)) & (asked <= int(high or low))).sum()


def test_batches_depend_on_key_and_step_and_evaluation_is_apart():
    task = SHAPES["one length"]
    batch, evaluation = compiled(task.batch), compiled(task.evaluation, 1, 3)
    seen = {
        batch((), jax.random.key(seed), step)["inputs"].tobytes()
        for seed in (0, 1, *EVALUATION_SEED.values())
        for step in range(3)
    }
    for split in task.splits:
        for index in range(2):
            held_out = evaluation((), split, index, 2)["inputs"]
            again = evaluation((), split, index, 2)["inputs"]
            np.testing.assert_array_equal(held_out, again)
            seen.add(held_out.tobytes())
    # The streams of evaluation are those of no seed: training folds the seed once more.
    assert len(seen) == 12


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        ({"task__segment": (1, 4)}, "task.segment=(1, 4): give the least and the most"),
        ({"task__segment": (5, 4)}, "task.segment=(5, 4)"),
        ({"task__segment": (4,)}, "task.segment=(4,)"),
        ({"task__segment": (2, 9)}, "task.length=16 is too short for 9 tokens twice; at least 18"),
        ({"task__vocab_size": 15}, "task.vocab_size=15 must be at least task.length=16"),
    ],
)
def test_sizes_that_do_not_fit_are_named(deltas, message):
    sizes = {"task__segment": (2, 8)} | deltas
    with pytest.raises(UserError) as error:
        make_task(small.induction(**sizes).task)
    assert message in str(error.value)
