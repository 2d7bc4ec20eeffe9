"""Associative recall against its definition, read off the arrays by plain Python."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.tasks.registry import make_task
from research.tasks.synthetic.recall import EVALUATION_SEED, Recall
from research.training.records.metrics import mean_metrics
from research.training.step import random_stream
from tests import small
from tests.compiled import compiled

SHAPES = {
    "varied": Recall(
        length=64, vocab_size=48, batch_size=64, num_pairs=(1, 2, 4, 8), gap_power=0.01
    ),
    "one number": Recall(length=32, vocab_size=20, batch_size=64, num_pairs=(4,), gap_power=0.5),
    # As many pairs as fit: every slot after them is a query, every key and value is used.
    "full": Recall(length=32, vocab_size=18, batch_size=64, num_pairs=(8,), gap_power=0.1),
    "asked often": Recall(
        length=64, vocab_size=32, batch_size=64, num_pairs=(1, 2, 6), gap_power=0.2, queries=3
    ),
    "odd numbers": Recall(length=50, vocab_size=26, batch_size=64, num_pairs=(7, 3), gap_power=2.0),
}


@pytest.fixture(scope="module")
def batches():
    return {name: compiled(task.batch)((), jax.random.key(1)) for name, task in SHAPES.items()}


MEASURED = {name: compiled(task.metrics) for name, task in SHAPES.items()}


def rows(batch):
    return [{name: array[i] for name, array in batch.items()} for i in range(len(batch["pairs"]))]


def check_sequence(row, task):
    """Asserts the definition of the task for one sequence."""
    tokens, targets, gaps = row["inputs"].tolist(), row["targets"].tolist(), row["gaps"].tolist()
    n, half = task.num_pairs[row["pairs"]], task.vocab_size // 2
    assert len(tokens) == len(targets) == len(gaps) == task.length
    keys, values = tokens[0 : 2 * n : 2], tokens[1 : 2 * n : 2]
    assert len(set(keys)) == n and all(1 <= k < half for k in keys)
    assert len(set(values)) == n and all(half <= v < task.vocab_size for v in values)
    value_of, shown_at = (
        dict(zip(keys, values, strict=True)),
        {k: 2 * i for i, k in enumerate(keys)},
    )
    asked = []
    for position in range(task.length):
        token = tokens[position]
        if position < 2 * n:
            assert targets[position] == -1 and gaps[position] == 0
        elif token == 0:
            assert targets[position] == -1 and gaps[position] == 0
        else:
            assert targets[position] == value_of[token]
            assert gaps[position] == position - shown_at[token]
            asked.append(token)
    assert sorted(asked) == sorted(keys * task.queries), "every key is asked equally often"


@pytest.mark.parametrize("name", SHAPES)
def test_sequences_obey_the_definition(batches, name):
    for row in rows(batches[name]):
        check_sequence(row, SHAPES[name])


@pytest.mark.parametrize("name", ["varied", "odd numbers"])
def test_numbers_of_pairs_are_drawn_uniformly(name):
    task = SHAPES[name]
    keys = jax.random.split(jax.random.key(3), 32)
    drawn = np.asarray(jax.jit(jax.vmap(lambda k: task.batch((), k)["pairs"]))(keys)).ravel()
    counts = np.bincount(drawn, minlength=len(task.num_pairs))
    expected = drawn.size / len(task.num_pairs)
    # Chi-square far beyond any chance (the seed is fixed, so this cannot flicker).
    assert ((counts - expected) ** 2 / expected).sum() < 20


def test_training_begins_with_shorter_sequences():
    sizes = {"vocab_size": 20, "num_pairs": (1, 2), "gap_power": 0.2}
    task = Recall(length=64, batch_size=4, queries=4, shorter=(16, 32), shorter_steps=10, **sizes)
    assert [int(task.bucket(step)) for step in (0, 9, 10, 19, 20, 99)] == [1, 1, 2, 2, 0, 0]
    assert task.frequencies_in(40) == [0.5, 0.25, 0.25]
    assert task.frequencies_in(15) == [0, 10 / 15, 5 / 15]
    for bucket, (length, rows_, queries) in enumerate([(64, 4, 4), (16, 16, 1), (32, 8, 2)]):
        drawn = compiled(task.batch, 3)((), jax.random.key(1), 3, bucket)
        assert drawn["inputs"].shape == (rows_, length)
        same = Recall(length=length, batch_size=rows_, queries=queries, **sizes)
        for row in rows(jax.device_get(drawn)):
            check_sequence(row, same)
    # Evaluation is at the full length alone.
    assert compiled(task.evaluation, 1, 3)((), "test", 0, 1)["inputs"].shape == (4, 64)


def test_lengths_that_are_not_shorter_are_left_out():
    options = {"length": 64, "batch_size": 4, "num_pairs": (2,), "shorter_steps": 5}
    options["shorter"] = (16, 32, 64, 128)
    task = make_task(small.recall(**{f"task__{key}": value for key, value in options.items()}).task)
    assert task.lengths == (64, 16, 32)


@pytest.mark.parametrize(
    "deltas, message",
    [
        ({"shorter": (16,)}, "task.shorter=(16,) and task.shorter_steps=0: give both or neither."),
        ({"shorter": (32, 16), "shorter_steps": 5}, "each longer than the one before"),
        ({"shorter": (12,), "shorter_steps": 5}, "task.shorter=12 is too short for 4 pairs"),
        ({"shorter": (18,), "shorter_steps": 5}, "task.shorter=18 must divide task.length=64."),
        ({"length": 64, "queries": 20}, "task.length=64 is too short for 4 pairs"),
    ],
)
def test_a_curriculum_that_cannot_be_is_refused(deltas, message):
    given = {"length": 64, "batch_size": 32, "num_pairs": (4,)} | deltas
    with pytest.raises(UserError, match=re.escape(message)):
        make_task(small.recall(**{f"task__{key}": value for key, value in given.items()}).task)


def test_first_gap_follows_the_power_law():
    """With one pair its slot s is drawn with p(s) ~ (s + 1)^(a - 1), exactly."""
    task = Recall(length=32, vocab_size=16, batch_size=256, num_pairs=(1,), gap_power=0.3)
    keys = jax.random.split(jax.random.key(0), 40)
    gaps = np.asarray(jax.jit(jax.vmap(lambda k: task.batch((), k)["gaps"].max(-1)))(keys)).ravel()
    slots = (gaps - 2) // 2
    p = (np.arange(15) + 1.0) ** (0.3 - 1)
    expected = p / p.sum() * slots.size
    counts = np.bincount(slots, minlength=15)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert len(counts) == 15 and chi_square < 45, chi_square  # 14 degrees: p < 1e-4 beyond
    # The check sees a wrong exponent.
    wrong = (np.arange(15) + 1.0) ** (0.1 - 1)
    wrong *= slots.size / wrong.sum()
    assert ((counts - wrong) ** 2 / wrong).sum() > 100


def test_slots_of_several_pairs_are_drawn_without_replacement():
    """Three pairs: the chance of each ordered triple of slots is a product of shrinking draws."""
    task = Recall(length=14, vocab_size=16, batch_size=256, num_pairs=(3,), gap_power=0.4)
    keys = jax.random.split(jax.random.key(5), 60)

    @jax.jit
    def orders(keys):
        batch = jax.vmap(lambda k: task.batch((), k))(keys)
        place = jnp.where(batch["targets"] >= 0, (jnp.arange(14) - 6) // 2, -1)
        shown = batch["inputs"][..., 0:6:2]
        asked = batch["inputs"][..., None, :] == shown[..., :, None]
        return jnp.where(asked, place[..., None, :], -1).max(-1)

    drawn = np.asarray(orders(keys)).reshape(-1, 3)
    weight = (np.arange(4) + 1.0) ** (0.4 - 1)
    chi_square, cells = 0.0, 0
    for a in range(4):
        for b in set(range(4)) - {a}:
            for c in set(range(4)) - {a, b}:
                p = weight[a] / weight.sum()
                p *= weight[b] / (weight.sum() - weight[a])
                p *= weight[c] / (weight.sum() - weight[a] - weight[b])
                count = (drawn == [a, b, c]).all(-1).sum()
                chi_square += (count - p * len(drawn)) ** 2 / (p * len(drawn))
                cells += 1
    assert cells == 24 and chi_square < 60, chi_square  # 23 degrees


def test_keys_and_values_are_uniform_and_independent(batches):
    task = SHAPES["one number"]
    keys = jax.random.split(jax.random.key(7), 100)
    tokens = np.asarray(jax.jit(jax.vmap(lambda k: task.batch((), k)["inputs"]))(keys))
    tokens = tokens.reshape(-1, task.length)
    pairs = np.zeros((9, 10))
    for slot in range(4):
        np.add.at(pairs, (tokens[:, 2 * slot] - 1, tokens[:, 2 * slot + 1] - 10), 1)
    expected = pairs.sum() / pairs.size
    assert ((pairs - expected) ** 2 / expected).sum() < 160  # 89 degrees


def test_a_batch_depends_on_seed_and_step_alone():
    task = SHAPES["varied"]

    @compiled
    def drawn(seed, step):
        return task.batch((), jax.random.fold_in(random_stream(seed, 1), step))["inputs"]

    def at(seed, step):
        return drawn(np.uint32(seed), step).tobytes()

    seen = {at(seed, step) for seed in range(3) for step in range(5)}
    assert len(seen) == 15
    assert at(2, 4) == at(2, 4)
    # The task keeps no state: another instance gives the same.
    again = Recall(length=64, vocab_size=48, batch_size=64, num_pairs=(1, 2, 4, 8), gap_power=0.01)
    assert task == again and again.data == ()


def test_evaluation_streams_are_fixed_and_disjoint_from_training():
    task = SHAPES["one number"]  # sequences of one pair could come twice by chance
    held_out = compiled(task.evaluation, 1, 3)

    @jax.jit
    def trained(seed):
        keys = jax.vmap(lambda step: jax.random.fold_in(random_stream(seed, 1), step))(
            jnp.arange(8)
        )
        return jax.vmap(lambda key: task.batch((), key)["inputs"])(keys).reshape(-1, task.length)

    def lines(array):
        return {row.tobytes() for row in np.asarray(array)}

    # Seeds that equal the constants of the evaluation streams are no way in either.
    seeds = [*range(4), *EVALUATION_SEED.values()]
    training = set.union(*(lines(trained(np.uint32(seed))) for seed in seeds))
    assert len(training) == 6 * 8 * 64
    found = {
        split: [lines(held_out((), split, i, 4)["inputs"]) for i in range(4)]
        for split in task.splits
    }
    every = [batch for batches in found.values() for batch in batches]
    assert len(set.union(*every)) == sum(map(len, every)), "batches and splits do not overlap"
    assert not set.union(*every) & training
    assert found["test"][1] == lines(held_out((), "test", 1, 4)["inputs"])


def oracle(batch, vocab_size, confidence=50.0):
    """Logits of who reads the definition: looks the key up among the pairs."""
    tokens, size = batch["inputs"], batch["inputs"].shape
    logits = np.zeros((*size, vocab_size), np.float32)
    for b in range(size[0]):
        value_of, length = {}, size[1]
        for t in range(length):
            token = tokens[b, t]
            if token and token in value_of:
                logits[b, t, value_of[token]] = confidence
            elif 0 < token < vocab_size // 2 and t + 1 < length:
                value_of[token] = tokens[b, t + 1]
    return logits


@pytest.mark.parametrize("name", SHAPES)
def test_an_oracle_scores_one(batches, name):
    task, batch = SHAPES[name], batches[name]
    sums = MEASURED[name](oracle(batch, task.vocab_size), batch)
    found = mean_metrics(jax.tree.map(lambda a: np.asarray(a)[None], sums), 0)
    assert found["accuracy"] == found["accuracy_most_pairs"] == 1.0
    assert found["loss"] < 1e-6
    assert {x for x in found["accuracy_by_gap"] if x == x} == {1.0}
    assert found["accuracy_by_pairs"] == [1.0] * len(task.num_pairs)


def test_guessing_among_the_shown_values_scores_one_over_n(batches):
    task, batch = SHAPES["varied"], batches["varied"]
    logits = np.full((*batch["inputs"].shape, task.vocab_size), -1e4, np.float32)
    for b in range(len(logits)):
        n = task.num_pairs[batch["pairs"][b]]
        logits[b][:, batch["inputs"][b, 1 : 2 * n : 2]] = 0.0
    sums = MEASURED["varied"](logits, batch)
    numbers = np.array(task.num_pairs)[batch["pairs"]]
    # Uniform over n values costs log n nats for each of n queries.
    np.testing.assert_allclose(sums["loss"].total, (numbers * np.log(numbers)).sum(), rtol=1e-5)
    generator = np.random.default_rng(0)
    right = 0
    for _ in range(20):
        noise = generator.gumbel(size=logits.shape).astype(np.float32)
        guess = MEASURED["varied"](logits + noise, batch)["accuracy_by_pairs"]
        right += guess.total / guess.count / 20
    np.testing.assert_allclose(right, 1 / np.array(task.num_pairs), atol=0.05)


@pytest.mark.parametrize("name", SHAPES)
def test_slices_sum_to_the_whole(batches, name):
    task, batch = SHAPES[name], batches[name]
    noise = np.random.default_rng(0).normal(size=(*batch["inputs"].shape, task.vocab_size))
    logits = 0.2 * oracle(batch, task.vocab_size) / 10 + noise.astype(np.float32)
    sums = MEASURED[name](logits, batch)
    whole = sums["accuracy"]
    assert 0 < whole.total < whole.count == (batch["targets"] >= 0).sum()
    for name in ("accuracy_by_gap", "accuracy_by_pairs"):
        np.testing.assert_allclose(sums[name].total.sum(), whole.total)
        np.testing.assert_allclose(sums[name].count.sum(), whole.count)
        assert len(task.slices[name]) == len(sums[name].total)
    hardest = np.argmax(task.num_pairs)
    assert sums["accuracy_most_pairs"].total == sums["accuracy_by_pairs"].total[hardest]
    assert sums["accuracy_most_pairs"].count == sums["accuracy_by_pairs"].count[hardest]


def test_gap_bins_hold_what_their_labels_say(batches):
    task, batch = SHAPES["varied"], batches["varied"]
    sums = MEASURED["varied"](oracle(batch, task.vocab_size), batch)
    gaps = batch["gaps"][batch["targets"] >= 0]
    for label, count in zip(
        task.slices["accuracy_by_gap"], sums["accuracy_by_gap"].count, strict=True
    ):
        low, _, high = label.partition("-")
        assert count == ((gaps >= int(low)) & (gaps <= int(high or low))).sum(), label


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        ({"task__length": 15}, "task.length=15 must be even"),
        ({"task__length": 10}, "task.length=10 is too short for 3 pairs"),
        ({"task__vocab_size": 15}, "task.vocab_size=15 must be even and at least 8"),
        ({"task__vocab_size": 6}, "task.vocab_size=6 must be even and at least 8"),
        ({"task__num_pairs": (0, 2)}, "task.num_pairs=(0, 2)"),
        ({"task__batch_size": 0}, "task.batch_size=0 must be at least 1"),
        (
            {"task__length": 2**31},
            "task.length=2147483648 must be at most 1073741824",
        ),
        (
            {"task__eval_lengths": (16, 2**63)},
            "9223372036854775808) must be at most 1073741824",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_named(deltas, message):
    with pytest.raises(UserError) as error:
        make_task(small.recall(**deltas).task)
    assert message in str(error.value)


def test_smallest_sizes_that_fit_do():
    config = small.recall(task__length=12, task__vocab_size=8, task__num_pairs=(3,)).task
    task = make_task(config)
    batch = compiled(task.batch)((), jax.random.key(0))
    for row in rows(batch):
        check_sequence(row, task)
