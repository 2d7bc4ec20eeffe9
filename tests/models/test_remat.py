"""Recomputed layers: the same gradients, and what is kept of a layer is what was asked for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.cloud.estimate import residuals, trace_backward
from research.configuration import apply_deltas
from research.errors import UserError
from research.models.block import KEPT
from research.training.program import cached_task, model_of, task_id
from research.training.schema import resolve, run_id
from research.training.step import batch_shapes
from tests import small

LAYERS, BATCH, LENGTH, WIDTH, HEADS, BLOCK = 3, 4, 16, 8, 2, 4
BLOCKWISE = {"model__implementation": "blockwise", "model__block_size": BLOCK}
CONFIG = functools.partial(small.recall, model__num_layers=LAYERS, **BLOCKWISE)


def made(**deltas):
    config = CONFIG(**deltas)
    task = cached_task(task_id(config))
    return model_of(config, task), task


@functools.cache
def gradients(keeps):
    deltas = {"model__remat": True, "model__remat_keeps": keeps} if keeps else {}
    model, task = made(**deltas)
    batch = task.batch(task.data, jax.random.key(0), 0)
    params = model.init(jax.random.key(0), batch, method="forward")["params"]

    def loss(params):
        outputs = model.apply({"params": params}, batch, method="forward")
        return task.metrics(outputs, batch)["loss"].total

    return params, jax.make_jaxpr(jax.grad(loss))(params), jax.jit(jax.grad(loss))(params)


def count(jaxpr, name):
    """Equations of a primitive, those of inner jaxprs included."""
    inner = (v for e in jaxpr.eqns for v in jax.tree.leaves(e.params, is_leaf=is_jaxpr))
    own = sum(e.primitive.name == name for e in jaxpr.eqns)
    return own + sum(count(getattr(v, "jaxpr", v), name) for v in inner if is_jaxpr(v))


def is_jaxpr(value):
    return hasattr(getattr(value, "jaxpr", value), "eqns")


@pytest.mark.parametrize("keeps", KEPT)
def test_gradients_are_those_of_layers_that_are_kept(keeps):
    for one, other in zip(
        jax.tree.leaves(gradients(keeps)[2]), jax.tree.leaves(gradients("")[2]), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_what_is_kept_is_not_computed_again():
    products = {keeps: count(gradients(keeps)[1].jaxpr, "dot_general") for keeps in ("", *KEPT)}
    # query, key, value, out, in and out of the feed-forward layer; the last is in no gradient.
    assert products["nothing"] - products["dots"] == 5
    # The forward loops over blocks, of scores and of values, are gone.
    exponentials = {k: count(gradients(k)[1].jaxpr, "exp") for k in KEPT}
    assert exponentials["attention_out"] < exponentials["nothing"]
    assert products[""] < products["dots"] < products["nothing"]
    assert products["attention_out"] < products["nothing"]


def test_bytes_that_are_kept_by_hand():
    def bytes_of(**deltas):
        model, task = made(**deltas)
        params = jax.eval_shape(lambda: gradients("")[0])
        return residuals(trace_backward(model, task, params, batch_shapes(task)))

    found = {k: bytes_of(model__remat=True, model__remat_keeps=k) for k in KEPT}
    rows = LAYERS * BATCH * LENGTH * jnp.dtype("float32").itemsize
    # Of each head and position a vector, and a logarithm.
    assert found["attention_out"] - found["nothing"] == rows * (WIDTH + HEADS)
    # Query, key, value, what attention adds to the stream, and the hidden feed-forward layer.
    assert found["dots"] - found["nothing"] == rows * (4 * WIDTH + 16)
    assert found["nothing"] < min(found.values()) + 1 and max(found.values()) < bytes_of()


def test_ids_of_recomputed_layers_stay():
    before = run_id(CONFIG(model__remat=True))
    assert run_id(CONFIG(model__remat=True, model__remat_keeps="nothing")) == before
    assert run_id(CONFIG(model__remat=True, model__remat_keeps="dots")) != before
    with pytest.raises(UserError, match="model.remat=False does not read it"):
        resolve(apply_deltas(CONFIG(), {"model.remat_keeps": "dots"}))
