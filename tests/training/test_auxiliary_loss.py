"""Losses of mixers: how they reach the optimizer and the log, whatever lies around the layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.configuration import apply_deltas, load_config
from research.errors import UserError
from research.interpret.capture import record, stacked
from research.training.program import make_members, make_program
from research.training.step import make_gradients
from research.training.validation import check_config
from tests import small
from tests.attention.cases import close
from tests.conftest import ROOT

INDEXED = {
    "model__index_top": 3,
    "model__index_heads": 2,
    "model__pattern": ("position=rope", "index_top=0"),
    "task__num_pairs": (3,),
}


def config(**deltas):
    """One layer of two has an indexer."""
    return small.recall(**INDEXED | deltas)


def start(of):
    program, members = make_program(of), make_members([of])
    params = jax.tree.map(lambda a: 3 * a[0], program.init(members).params)
    return program, params, program.task.batch((), jax.random.key(0), 0)


@functools.cache
def gradients(**deltas):
    """The gradient on one batch, {path: array}, and the sums of metrics."""
    of = config(**deltas)
    program, params, batch = start(of)
    run = jax.jit(make_gradients(of, program.task, program.model))
    grads, sums, *_ = run(params, batch, jax.random.key(1))
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    return {jax.tree_util.keystr(path): np.asarray(a) for path, a in leaves}, sums


def test_the_loss_of_a_layer_is_what_its_mixer_says():
    program, params, batch = start(config())
    first = jax.tree.map(lambda a: a[0], params["layers"]["0"])
    x = params["embedding"][batch["inputs"]]
    x *= jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5) * first["norm1"]["scale"]
    expected = program.model.config.mixers[0].losses(first["mixer"], x)["indexer_loss"]
    found, count = gradients()[1]["indexer_loss"]
    np.testing.assert_allclose(found / count, expected, rtol=1e-5)
    assert expected > 1e-4
    assert count == (batch["targets"] >= 0).sum()


def test_the_coefficient_scales_the_indexers_gradient_and_no_other():
    (one, sums), (three, same) = gradients(), gradients(optimizer__auxiliary_loss=3.0)
    for path, gradient in one.items():
        scale = 3 if "selection" in path else 1
        assert np.abs(gradient).max() > 0, path
        close(three[path], scale * gradient)
    assert any("selection" in path for path in one)
    assert {k: v.total for k, v in same.items()} == {k: v.total for k, v in sums.items()}


@pytest.mark.parametrize("deltas", [{"model__remat": True}, {"optimizer__accumulate": 2}])
def test_recomputed_layers_and_parts_of_a_batch_add_up_to_the_same(deltas):
    (grads, sums), (others, own) = gradients(), gradients(**deltas)
    for path, gradient in grads.items():
        close(others[path], gradient, 1e-4)
    np.testing.assert_allclose(own["indexer_loss"].total, sums["indexer_loss"].total, rtol=1e-4)


def test_a_population_trains_its_indexers_and_logs_their_loss():
    configs = [config(seed=seed, train__steps=5) for seed in (0, 1)]
    program = check_config(configs[0], 2)
    members = make_members(configs)
    state = program.init(members)
    before = jax.tree.map(np.asarray, state.params)["layers"]["0"]["mixer"]
    state, sums = program.train(state, members, program.data, np.int32(0), np.int32(5))
    after = state.params["layers"]["0"]["mixer"]
    total, count = sums["indexer_loss"]
    assert total.shape == (2,) and np.isfinite(total).all() and (total > 0).all()
    assert (count == sums["loss"].count).all() and total[0] != total[1]
    for name in before:
        if name.startswith("selection"):
            assert (jnp.abs(after[name] - before[name]).max((1, 2)) > 0).all(), name
    evaluated = program.evaluate["validation"](state.params, program.data)
    assert "indexer_loss" not in evaluated.sums


def test_an_encoder_has_the_loss_too():
    encoder = "mask=full, index_top=3"
    of = small.transduction(model__name="encoder_decoder", model__encoder=encoder)
    program, params, batch = start(of)
    run = jax.jit(make_gradients(of, program.task, program.model))
    grads, sums, *_ = run(params, batch, jax.random.key(1))
    assert sums["indexer_loss"].total > 0
    mixers = [leaf for leaf in jax.tree_util.tree_leaves_with_path(grads) if "sel" in str(leaf[0])]
    assert mixers and all(np.abs(leaf).max() > 0 for _, leaf in mixers)


def test_a_coefficient_of_nothing_is_refused():
    check_config(small.recall())
    with pytest.raises(UserError, match=r"optimizer.auxiliary_loss=0.5: no part .* Leave it 1.0"):
        check_config(small.recall(optimizer__auxiliary_loss=0.5))
    check_config(config(optimizer__auxiliary_loss=0.5))


@pytest.mark.slow
def test_training_on_recall_selects_the_keys_that_hold_the_answer():
    """Six keys of up to 32 are selected; the one with the value that was asked for comes to be."""
    changes = {
        "task.length": 32,
        "task.num_pairs": (1, 2, 4),
        "model.num_heads": 4,
        "model.head_width": 32,
        "model.position": "rope",
        "model.rope_fraction": 0.5,
        "model.index_top": 6,
        "model.index_heads": 8,
        "model.index_width": 16,
        "optimizer.learning_rate": 2e-3,
    }
    of = apply_deltas(load_config(str(ROOT / "configs" / "recall.py")), changes)
    program, members = make_program(of), make_members([of])
    batch = program.task.evaluation((), "validation", 0, 4)
    inputs, targets = (np.asarray(batch[name]) for name in ("inputs", "targets"))
    run = jax.jit(lambda params: record(program.model, params, batch, ("weights",))[1])

    def found(params):
        """How often the last layer selects the place of the value, of places not too early."""
        seen = stacked(run(jax.tree.map(lambda a: a[0], params)), "weights")[-1, :, 0] > 0
        asked = [(b, t) for b, t in np.argwhere(targets >= 0) if t >= 8]
        held = [(b, t, np.flatnonzero(inputs[b, :t] == targets[b, t])) for b, t in asked]
        return np.mean([seen[b, t, places[0]] for b, t, places in held if len(places)])

    state = program.init(members)
    before = found(state.params)
    state, _ = program.train(state, members, program.data, np.int32(0), np.int32(300))
    state, sums = program.train(state, members, program.data, np.int32(300), np.int32(400))
    total, count = sums["accuracy"]
    assert total[0] / count[0] > 0.9
    assert before < 0.7
    assert found(state.params) > 0.9
