"""muP: what is chosen at one width holds at others, by its coordinate check.

After some steps, activations and logits have the same size at all widths, up to a factor. Without
it, at one learning rate, they grow with the width (Yang et al. 2022, figure 5).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.parts.scores import scaled_dot
from research.errors import UserError
from research.models.registry import make_model
from research.training.optimizer import make_optimizer, read_optimizer
from research.training.program import make_program
from research.training.step import Member, make_init, make_step, width_ratio
from research.training.validation import check_config
from tests import small

BASE, STEPS = 64, 5


def config(width, base, **deltas):
    return small.recall(
        model__width=width,
        model__feedforward=2 * width,
        model__num_layers=1,
        model__num_heads=4,
        model__base_width=base,
        optimizer__learning_rate=0.02,
        optimizer__warmup_steps=0,
        optimizer__schedule="constant",
        optimizer__clip_norm=0.0,
        task__batch_size=8,
        **deltas,
    )


def sizes(width, base):
    """Returns root mean squares after some steps: of the residual stream, and of the logits."""
    described = config(width, base)
    program = make_program(described)
    task, model = program.task, program.model
    init = make_init(described, task, model)
    step = make_step(described, task, model)
    member = Member(jnp.uint32(0), jnp.float32(0.02), jnp.float32(0.0), jnp.float32(1.0))

    @jax.jit
    def run(data):
        state = jax.lax.fori_loop(
            0, STEPS, lambda i, state: step(state, member, data, i)[0], init(member)
        )
        seen = []

        def look(call, args, kwargs, context):
            if context.module.name == "norm":
                seen.append(args[0])
            return call(*args, **kwargs)

        batch = task.batch(data, jax.random.key(0), 0)
        with nn.intercept_methods(look):
            logits = model.apply({"params": state.params}, batch, method="forward")
        return [jnp.sqrt(jnp.mean(jnp.square(x))) for x in (seen[0], logits)]

    return [float(x) for x in run(task.data)]


def growth(widths, base):
    found = np.array([sizes(width, base) for width in widths])
    return found.max(0) / found.min(0)


def test_sizes_keep_still_with_it_and_grow_without():
    assert (growth((64, 256), BASE) < 1.5).all()
    assert (growth((64, 256), 0) > 2).all()


@pytest.mark.slow
def test_sizes_keep_still_up_to_1024():
    widths = (64, 128, 256, 512, 1024)
    assert (growth(widths, BASE) < 1.6).all()
    assert (growth(widths, 0) > 5).all()


def test_the_base_width_is_itself():
    """A model at its base width is the model without muP, bit for bit."""

    @functools.cache
    def logits(base):
        model = make_model(config(BASE, base).model, 16, 12)
        tokens = jnp.arange(12)[None]
        params = model.init(jax.random.key(0), tokens)["params"]
        return model.apply({"params": params}, tokens)[0]

    np.testing.assert_allclose(logits(0), logits(BASE), rtol=1e-6, atol=1e-7)
    assert width_ratio(config(BASE, BASE)) == width_ratio(config(BASE, 0)) == 1


def test_rates_and_initial_sizes_by_hand():
    """Table 8: hidden matrices at a quarter of the rate and half of the initial size."""
    tokens = jnp.arange(12)[None]
    wide, plain = (make_model(config(4 * BASE, base).model, 16, 12) for base in (BASE, 0))
    params, without = (m.init(jax.random.key(0), tokens)["params"] for m in (wide, plain))
    ratio = {
        jax.tree_util.keystr(path): float(np.std(a) / np.std(b))
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(without), strict=True
        )
        if "scale" not in jax.tree_util.keystr(path)
    }
    described = config(4 * BASE, BASE)
    transform = make_optimizer(
        read_optimizer(described), 10, 1.0, 0.0, wide.parameter_axes(params), width_ratio(described)
    )
    ones = jax.tree.map(jnp.ones_like, params)
    updates = transform.update(ones, transform.init(params), params)[0]
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        name = jax.tree_util.keystr(path)
        hidden = "mixer" in name or "feedforward" in name
        np.testing.assert_allclose(update, -0.25 if hidden else -1.0, rtol=1e-5, err_msg=name)
        if name in ratio:
            assert ratio[name] == pytest.approx(0.5 if hidden else 1.0, rel=1e-4), name


def test_scores_are_divided_by_the_width_of_heads():
    q, k = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 3, 1, 64)), jnp.float32)
    index = np.arange(3)[:, None], np.arange(3)[None, :]
    found = scaled_dot(16.0)(q, k, *index)
    np.testing.assert_allclose(found[0, 0], 4 * q[0, :, 0] @ k[0, :, 0].T / 64, rtol=1e-4)
    same = scaled_dot(64.0)(q, k, *index)
    np.testing.assert_allclose(same, scaled_dot()(q, k, *index), rtol=1e-5)


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        (
            {"optimizer__name": "sgd"},
            "model.base_width=64: muP has no rule here for optimizer.name='sgd'; it has for adamw, "
            "lion, schedule_free. Use 0.",
        ),
        (
            {"model__mixer": "linear", "model__position": "none"},
            "model.base_width=64: muP has no rule here for mixer 'linear' with score 'scaled_dot'; "
            "it has for mixer 'softmax' with scaled_dot, cosine, learned_cosine. Use 0.",
        ),
        ({"model__score": "dot"}, "with score 'dot'"),
        ({"model__base_width": -1}, "model.base_width=-1 must be at least 0."),
    ],
)
def test_what_has_no_rule_is_refused(deltas, message):
    with pytest.raises(UserError) as error:
        check_config(small.recall(**{"model__base_width": BASE} | deltas))
    assert message in str(error.value)
