"""One compiled program for a population: equal to its members alone, failures kept apart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.configuration import apply_deltas
from research.training.program import make_members, make_program
from research.training.step import make_step
from tests import small

recall = functools.partial(small.recall, model__num_layers=1)
STEPS = 12
MEMBERS = [
    {"seed": 0},
    {"seed": 1, "optimizer.learning_rate": 3e-3},
    {"seed": 0, "optimizer.weight_decay": 0.5},
    {"seed": 7, "model.init_scale": 2.0, "optimizer.learning_rate": 2e-2},
]


def trained(configs, steps=STEPS):
    """Returns the state and the summed metrics after `steps` steps."""
    program, members = make_program(configs[0]), make_members(configs)
    start, stop = jnp.int32(0), jnp.int32(steps)
    return program.train(program.init(members), members, program.task.data, start, stop)


def lane(tree, i):
    return jax.tree.map(lambda a: np.asarray(a)[i], tree)


def close(a, b, **tolerance):
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        np.testing.assert_allclose(x, y, err_msg=jax.tree_util.keystr(path), **tolerance)


def equal(a, b):
    close(a, b, rtol=0, atol=0)


@pytest.fixture(scope="module")
def population():
    configs = [apply_deltas(recall(), deltas) for deltas in MEMBERS]
    return configs, *trained(configs)


def test_a_population_equals_its_members_alone(population):
    configs, state, sums = population
    for i, config in enumerate(configs):
        alone, alone_sums = trained([config])
        # One more batch axis may change the order of additions, nothing else.
        close(lane(state.params, i), lane(alone.params, 0), rtol=1e-3, atol=1e-5)
        close(lane(sums, i), lane(alone_sums, 0), rtol=1e-3, atol=1e-4)


def test_members_differ_where_their_configs_do(population):
    _, state, sums = population
    table = np.asarray(state.params["embedding"])
    for i in range(4):
        for j in range(i):
            assert np.abs(table[i] - table[j]).max() > 1e-4
    # Equal seeds see equal data and start equal; the decay is all that differs.
    first = make_program(population[0][0]).init(make_members(population[0])).params["embedding"]
    np.testing.assert_array_equal(first[0], first[2])
    assert (np.asarray(first[0]) != np.asarray(first[1])).all()
    # The largest gradient comes from somewhere: the scale of the initial values is applied.
    twice, once = (
        trained([population[0][3]], 0)[0],
        trained([apply_deltas(population[0][3], {"model.init_scale": 1.0})], 0)[0],
    )
    np.testing.assert_allclose(
        twice.params["embedding"], 2 * np.asarray(once.params["embedding"]), rtol=1e-6
    )
    np.testing.assert_array_equal(twice.params["norm"]["scale"], once.params["norm"]["scale"])


def test_a_member_that_diverges_is_frozen_and_disturbs_nobody(population):
    configs, state, _ = population
    wild = [*configs[:1], apply_deltas(configs[1], {"optimizer.learning_rate": 1e30}), *configs[2:]]
    found, sums = trained(wild)
    assert found.diverged_at.tolist()[0] == found.diverged_at.tolist()[2] == -1
    died = int(found.diverged_at[1])
    assert 0 < died < STEPS
    for i in (0, 2, 3):
        equal(lane(found.params, i), lane(state.params, i))
    for leaf in jax.tree.leaves((lane(found.params, 1), lane(found.optimizer, 1))):
        assert np.isfinite(leaf).all(), "frozen at its last finite parameters"
    # From then on nothing changes.
    earlier, _ = trained(wild, died)
    equal(lane(earlier.params, 1), lane(found.params, 1))
    later, _ = trained(wild, STEPS + 3)
    assert int(later.diverged_at[1]) == died
    equal(lane(later.params, 1), lane(found.params, 1))


def test_cutting_training_into_pieces_changes_nothing():
    config = recall()
    program, members = make_program(config), make_members([config])
    whole, whole_sums = trained([config])
    state, total = program.init(members), None
    for start, stop in ((0, 1), (1, 6), (6, 6), (6, 11), (11, 12)):
        state, sums = program.train(
            state, members, program.task.data, jnp.int32(start), jnp.int32(stop)
        )
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    equal(state, whole)
    close(total, whole_sums, rtol=1e-5)


@pytest.mark.parametrize("parts", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_accumulation_equals_the_whole_batch(parts):
    """With a masked loss of which the parts have different counts."""
    config = recall(task__num_pairs=(1, 4), task__batch_size=8, model__init_scale=3.0)
    split = apply_deltas(config, {"optimizer.accumulate": parts})
    batch = jax.jit(make_program(config).task.batch)((), jax.random.key(1))
    counts = (np.asarray(batch["targets"]) >= 0).reshape(parts, -1).sum(1)
    assert len(set(counts.tolist())) > 1, "otherwise a mean of means would do"
    # A first step of Adam has unit size whatever the gradient; this epsilon lets its scale show.
    deltas = {"optimizer.epsilon": 1.0, "optimizer.clip_norm": 0.0, "optimizer.learning_rate": 1.0}
    found = [trained([apply_deltas(c, deltas)], 3) for c in (config, split)]
    close(found[1][0].params, found[0][0].params, rtol=1e-3, atol=1e-6)
    close(found[1][1], found[0][1], rtol=1e-4)
    start = trained([apply_deltas(config, deltas)], 0)[0].params
    moved = np.abs(np.asarray(found[0][0].params["embedding"]) - np.asarray(start["embedding"]))
    assert moved.max() > 1e-3


def test_the_gradient_is_that_of_the_mean_over_targets():
    """Against finite differences of the loss, through one step of the optimizer."""
    config = recall(
        optimizer__beta1=0.0,
        optimizer__beta2=0.0,
        optimizer__epsilon=1e3,
        optimizer__clip_norm=0.0,
        optimizer__weight_decay=0.0,
        optimizer__warmup_steps=0,
        optimizer__schedule="constant",
        optimizer__learning_rate=1e3,
        model__init_scale=3.0,
    )
    program, members = make_program(config), make_members([config])
    state = program.init(members)
    step = jax.jit(make_step(config, program.task, program.model))
    single = jax.tree.map(lambda a: a[0], (state, members))
    new, sums = step(*single, (), jnp.int32(0))
    # g / (|g| + 1000) * 1000 is nearly g.
    before, after = single[0].params["embedding"], new.params["embedding"]
    direction = np.asarray(before - after, np.float64)

    def loss(table):
        params = {**single[0].params, "embedding": table}
        found = step(single[0]._replace(params=params), single[1], (), jnp.int32(0))[1]["loss"]
        return float(found.total / found.count)

    size = 0.02 / np.linalg.norm(direction)
    up, down = (loss(before + s * size * direction.astype(np.float32)) for s in (1, -1))
    slope = (up - down) / (2 * size)
    np.testing.assert_allclose(slope, (direction**2).sum(), rtol=0.03)
    assert sums["gradient_norm"].total > np.linalg.norm(direction) * 0.99


def test_the_best_parameters_are_kept_per_member(population):
    configs, state, _ = population
    program = make_program(configs[0])
    kept = program.keep_best(jax.tree.map(jnp.copy, state), jnp.array([0.5, 0.2, 0.3, jnp.nan]), 4)
    assert kept.best.step.tolist() == [4, 4, 4, 0]
    equal(lane(kept.best.params, 1), lane(state.params, 1))
    moved = kept._replace(params=jax.tree.map(lambda p: p + 1, kept.params))
    again = program.keep_best(moved, jnp.array([0.4, 0.6, 0.3, 0.1]), 8)
    # Accuracy: higher is better; a tie keeps the earlier one, NaN is never better.
    assert again.best.step.tolist() == [4, 8, 4, 8]
    np.testing.assert_allclose(again.best.value, [0.5, 0.6, 0.3, 0.1])
    equal(lane(again.best.params, 0), lane(state.params, 0))
    equal(lane(again.best.params, 1), lane(jax.tree.map(lambda p: p + 1, state.params), 1))


def test_lower_is_better_for_a_loss(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("To be, or not to be, that is the question.\n" * 20)
    config = small.text(path)
    program = make_program(config)
    state = program.init(make_members([config]))
    state = program.keep_best(state, jnp.array([3.0]), 1)
    state = program.keep_best(state, jnp.array([4.0]), 2)
    assert state.best.step.tolist() == [1]
    assert program.keep_best(state, jnp.array([2.0]), 3).best.step.tolist() == [3]


def test_dropout_is_on_in_training_and_off_in_evaluation():
    config = recall(model__dropout=0.5)
    program, members = make_program(config), make_members([config])
    plain = make_program(recall())
    state = program.init(members)
    params, data = jax.tree.map(jnp.copy, state.params), program.task.data
    equal(program.evaluate["test"](params, data), plain.evaluate["test"](params, data))
    one = trained([config], 1)[1]["loss"].total
    assert (np.asarray(one) != np.asarray(trained([recall()], 1)[1]["loss"].total)).all()
    np.testing.assert_array_equal(one, trained([config], 1)[1]["loss"].total)


def test_the_text_task_trains(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("abcdefgh" * 100)
    config = small.text(path, optimizer__learning_rate=0.03, model__width=16)
    _, first = trained([config], 1)
    state, _ = trained([config], 120)
    program = make_program(config)
    found = program.evaluate["validation"](state.params, program.task.data).sums["loss"]
    # The text is a cycle: all there is to know is the next letter.
    assert float(found.total[0] / found.count[0]) < 0.2 < float(first["loss"].total[0] / 64)
