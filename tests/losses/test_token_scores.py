"""Scores of targets in chunks of positions: what whole logits give, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.losses.token_scores import token_scores
from research.models.registry import make_model
from research.tasks.task import cross_entropy, log_normalizer, mean_logit
from research.training.program import make_program
from research.training.step import Member, make_gradients
from tests import small

B, T, M, V = 2, 7, 5, 11
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(B, T, M)).astype(np.float32)
W = RANDOM.normal(size=(M, V)).astype(np.float32)
TARGETS = RANDOM.integers(-1, V, (B, T)).astype(np.int32)


def total(outputs):
    asked = TARGETS >= 0
    loss = cross_entropy(outputs, jnp.maximum(TARGETS, 0)) * asked
    return loss.sum() + 0.1 * jnp.square(log_normalizer(outputs)).sum() + mean_logit(outputs).sum()


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_values_and_gradients_are_those_of_whole_logits(chunk):
    def whole(x, w):
        return total(x @ w)

    def chunked(x, w):
        return total(token_scores(lambda part: part @ w, x, TARGETS, chunk))

    (a, da), (b, db) = (jax.jit(jax.value_and_grad(f, (0, 1)))(X, W) for f in (whole, chunked))
    np.testing.assert_allclose(a, b, rtol=1e-6)
    for one, other in zip(da, db, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_scores_by_optax():
    found = token_scores(lambda part: part @ W, X, TARGETS, 3)
    logits, asked = X @ W, TARGETS >= 0
    wanted = optax.softmax_cross_entropy_with_integer_labels(logits, np.maximum(TARGETS, 0))
    np.testing.assert_allclose(found.loss[asked], wanted[asked], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.predicted, logits.argmax(-1))
    np.testing.assert_allclose(found.mean, logits.mean(-1), rtol=1e-5, atol=1e-6)


def test_whole_logits_are_in_no_program():
    """Of 3 positions at most, forward and backward."""

    def chunked(x, w):
        return total(token_scores(lambda part: part @ w, x, TARGETS, 3))

    compiled = jax.jit(jax.grad(chunked, (0, 1))).lower(X, W).compile()
    text = compiled.as_text()
    assert f"[{B},3,{V}]" in text or f"[{B * 3},{V}]" in text
    for shape in (f"[{B},{T},{V}]", f"[{B * T},{V}]", f"[3,{B},3,{V}]", f"[{B},9,{V}]"):
        assert shape not in text


def gradients_of(config):
    program = make_program(config)
    member = Member(np.uint32(0), *(np.float32(one) for one in (0.1, 0.0, 1.0)))
    task = program.task
    batch = task.batch(task.data, jax.random.key(0), 0)
    state = program.init(jax.tree.map(lambda a: a[None], member))
    params = jax.tree.map(lambda a: a[0] * 3, state.params)
    run = jax.jit(make_gradients(config, task, program.model))
    return run(params, batch, jax.random.key(1))[:2]


MODELS = {
    "decoder": (small.recall, {"model__num_layers": 1, "model__output_cap": 3.0}),
    "encoder_decoder": (small.transduction, {"model__name": "encoder_decoder"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_learn_the_same_in_chunks(name):
    make, deltas = MODELS[name]
    deltas = deltas | {"optimizer__z_loss": 0.01}
    grads, sums = gradients_of(make(**deltas))
    chunked, own_sums = gradients_of(make(**deltas, model__loss_chunk=3))
    # Of the largest gradient: those of keys nearly cancel.
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(grads))
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        other = dict(jax.tree_util.tree_leaves_with_path(chunked))[path]
        np.testing.assert_allclose(leaf / scale, other / scale, atol=3e-6, err_msg=str(path))
    for key, value in sums.items():
        np.testing.assert_allclose(value.total, own_sums[key].total, rtol=1e-5, err_msg=key)


def test_z_loss_is_added_and_not_reported():
    plain, sums = gradients_of(small.recall(model__num_layers=1))
    pulled, own_sums = gradients_of(small.recall(model__num_layers=1, optimizer__z_loss=0.5))
    np.testing.assert_allclose(sums["loss"].total, own_sums["loss"].total, rtol=1e-6)

    config = small.recall(model__num_layers=1)
    program = make_program(config)
    task = program.task
    batch = task.batch(task.data, jax.random.key(0), 0)
    member = Member(*(np.array([one], np.float32) for one in (0, 0.1, 0.0, 1.0)))
    member = member._replace(seed=np.zeros(1, np.uint32))
    params = jax.tree.map(lambda a: a[0] * 3, program.init(member).params)

    def by_hand(params):
        logits = program.model.apply({"params": params}, batch, method="forward")
        z = jax.nn.logsumexp(logits, -1)
        return 0.5 * jnp.sum(z**2 * (batch["targets"] >= 0))

    added = jax.jit(jax.grad(by_hand))(params)
    scale = np.abs(added["embedding"]).max()
    found = (pulled["embedding"] - plain["embedding"]) / scale
    np.testing.assert_allclose(found, added["embedding"] / scale, atol=1e-4)
    assert scale > 0.1


def test_the_cap_bounds_logits_and_keeps_small_ones():
    models = [make_model(small.recall(model__output_cap=cap).model, 16, 12) for cap in (0.0, 0.5)]
    tokens = jnp.arange(12)[None]
    params = models[0].init(jax.random.key(0), tokens)["params"]
    free, capped = (model.apply({"params": params}, tokens)[0] for model in models)
    np.testing.assert_allclose(capped, 0.5 * np.tanh(free / 0.5), rtol=1e-5, atol=1e-6)
