"""The optimizer against AdamW written out in numpy and against PyTorch's; schedules by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.attention.parameters import matrix_axes, table_axes, vector_axes
from research.errors import UserError
from research.training.optimizer import make_optimizer, read_optimizer
from tests import small

STEPS = 20
# Names and shapes as the model has them: a stacked matrix, a stacked norm, a bias of two heads.
SHAPES = {
    "embedding": (6, 4),
    "head": (4, 6),
    "layers": {
        "mixer": {"query": (2, 4, 2, 2), "query_bias": (2, 2, 2), "gate": (2, 4, 4)},
        "feedforward": {"in": (2, 4, 8), "in_bias": (2, 8)},
        "norm1": {"scale": (2, 4)},
    },
    "norm": {"scale": (4,), "bias": (4,)},
}
AXES = {
    "embedding": table_axes("vocab", "width"),
    "head": table_axes("width", "vocab"),
    "layers": {
        "mixer": {
            "query": matrix_axes("width", "heads", "head_width").stacked(),
            "query_bias": vector_axes("heads", "head_width").stacked(),
            "gate": matrix_axes("width", "width").stacked(),
        },
        "feedforward": {
            "in": matrix_axes("width", "feedforward").stacked(),
            "in_bias": vector_axes("feedforward").stacked(),
        },
        "norm1": {"scale": vector_axes("width").stacked()},
    },
    "norm": {"scale": vector_axes("width"), "bias": vector_axes("width")},
}
DECAYED = ["['embedding']", "['head']", "['query']", "['gate']", "['in']"]


def options(**optimizer):
    return read_optimizer(small.recall(**{f"optimizer__{k}": v for k, v in optimizer.items()}))


def drawn(seed, scale=1.0):
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: (generator.normal(size=shape) * scale).astype(np.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def trained(config, gradients, learning_rate, weight_decay):
    params = drawn(0)
    transform = make_optimizer(
        config, STEPS, jnp.float32(learning_rate), jnp.float32(weight_decay), AXES
    )
    state = transform.init(params)

    @jax.jit
    def step(params, state, gradient):
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = step(params, state, gradient)
    return params


GRADIENTS = [drawn(1 + i, scale=0.05 * (1 + 5 * (i % 3 == 0))) for i in range(STEPS)]


def norm(tree):
    return math.sqrt(sum(float(np.square(leaf, dtype=np.float64).sum()) for leaf in leaves(tree)))


def leaves(tree):
    return jax.tree.leaves(tree)


def fractions(name, warmup, final):
    """The schedules of configs/base.py, step by step."""
    values = []
    for done in range(1, STEPS + 1):
        ramp = min(done / warmup, 1)
        left = min(max((done - warmup) / (STEPS - warmup), 0), 1)
        values.append(
            ramp
            * {
                "constant": 1.0,
                "linear": 1 - (1 - final) * left,
                "cosine": final + (1 - final) * (1 + math.cos(math.pi * left)) / 2,
                "rsqrt": math.sqrt(warmup / max(done, warmup)),
            }[name]
        )
    return values


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "rsqrt"])
def test_schedule_by_hand(name):
    config = options(schedule=name, warmup_steps=5, final_fraction=0.2)
    found = [float(config.fraction(STEPS)(jnp.float32(i))) for i in range(STEPS)]
    np.testing.assert_allclose(found, fractions(name, 5, 0.2), rtol=1e-5)
    np.testing.assert_allclose(found[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
    last = {"constant": 1.0, "cosine": 0.2, "linear": 0.2, "rsqrt": 0.5}
    assert found[-1] == pytest.approx(last[name], rel=1e-5)
    assert all(0 < value <= 1 for value in found)


@pytest.mark.parametrize("shape", ["linear", "cosine", "sqrt"])
def test_wsd_by_hand(shape):
    """The last quarter of the 16 steps after the warm-up, as 1 - sqrt(x) and others fall."""
    config = options(
        schedule="wsd", warmup_steps=4, decay_fraction=0.25, decay_shape=shape, final_fraction=0.1
    )
    found = [float(config.fraction(STEPS)(jnp.float32(i))) for i in range(STEPS)]
    np.testing.assert_allclose(found[:4], [0.25, 0.5, 0.75, 1], rtol=1e-6)
    np.testing.assert_allclose(found[4:16], 1, rtol=1e-6)
    x = np.arange(1, 5) / 4
    left = {"linear": 1 - x, "cosine": (1 + np.cos(np.pi * x)) / 2, "sqrt": 1 - np.sqrt(x)}[shape]
    np.testing.assert_allclose(found[16:], 0.1 + 0.9 * left, rtol=1e-5, atol=1e-6)


def test_wsd_that_always_falls_is_the_linear_schedule():
    whole = {"warmup_steps": 5, "final_fraction": 0.2}
    one = options(schedule="wsd", decay_fraction=1.0, decay_shape="linear", **whole)
    two = options(schedule="linear", **whole)
    for i in range(STEPS):
        step = jnp.float32(i)
        assert float(one.fraction(STEPS)(step)) == pytest.approx(float(two.fraction(STEPS)(step)))


def test_no_warmup_starts_at_the_peak_and_one_step_is_enough():
    config = options(schedule="constant", warmup_steps=0)
    assert float(config.fraction(STEPS)(jnp.float32(0))) == 1.0
    for name in ("constant", "cosine", "linear", "rsqrt"):
        value = float(options(schedule=name, warmup_steps=100).fraction(1)(jnp.float32(0)))
        assert value == pytest.approx(0.01)


def test_twenty_steps_by_hand():
    config = options(warmup_steps=5, final_fraction=0.2, clip_norm=1.0, beta1=0.8, beta2=0.95)
    params = [np.array(p, np.float64) for p in leaves(drawn(0))]
    decayed = [
        any(jax.tree_util.keystr(path).endswith(name) for name in DECAYED)
        for path, _ in jax.tree_util.tree_leaves_with_path(drawn(0))
    ]
    assert sum(decayed) == len(DECAYED)
    m, v = [[np.zeros_like(p) for p in params] for _ in range(2)]
    clipped = 0
    for i, (gradient, fraction) in enumerate(
        zip(GRADIENTS, fractions("cosine", 5, 0.2), strict=True), 1
    ):
        factor = min(1.0, 1.0 / norm(gradient))
        clipped += factor < 1
        for j, g in enumerate(leaves(gradient)):
            g = np.array(g, np.float64) * factor
            m[j] = 0.8 * m[j] + 0.2 * g
            v[j] = 0.95 * v[j] + 0.05 * g * g
            direction = (m[j] / (1 - 0.8**i)) / (np.sqrt(v[j] / (1 - 0.95**i)) + 1e-8)
            direction += 0.3 * params[j] * decayed[j]
            params[j] = params[j] - 0.05 * fraction * direction
    assert 0 < clipped < STEPS, "some gradients are clipped, some are not"
    for mine, wanted in zip(leaves(trained(config, GRADIENTS, 0.05, 0.3)), params, strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=2e-4, atol=2e-5)


def test_twenty_steps_equal_pytorch():
    torch = pytest.importorskip("torch")
    config = options(warmup_steps=5, final_fraction=0.2, clip_norm=1.0, beta2=0.95)
    parameters = [torch.tensor(p, requires_grad=True) for p in leaves(drawn(0))]
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(drawn(0))]
    groups = {True: [], False: []}
    for path, parameter in zip(paths, parameters, strict=True):
        groups[any(path.endswith(name) for name in DECAYED)].append(parameter)
    adam = torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": 0.3},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=0.05,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    rates = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda i: fractions("cosine", 5, 0.2)[min(i, STEPS - 1)]
    )
    for gradient in GRADIENTS:
        for parameter, g in zip(parameters, leaves(gradient), strict=True):
            parameter.grad = torch.tensor(g)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        rates.step()
    for mine, theirs in zip(leaves(trained(config, GRADIENTS, 0.05, 0.3)), parameters, strict=True):
        np.testing.assert_allclose(mine, theirs.detach(), rtol=2e-4, atol=2e-5)


def test_clipping_can_be_off():
    big = [jax.tree.map(lambda g: g * 1e3, GRADIENTS[0])]
    one = trained(options(clip_norm=0.0, epsilon=1.0), big, 0.05, 0.0)
    two = trained(options(clip_norm=1.0, epsilon=1.0), big, 0.05, 0.0)
    assert norm(jax.tree.map(np.subtract, one, two)) > 1e-3


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", "adam", "Did you mean 'adamw'?"),
        ("schedule", "cosin", "Did you mean 'cosine'?"),
        ("learning_rate", 0.0, "optimizer.learning_rate=0.0 must be positive"),
        ("epsilon", -1.0, "must be positive"),
        ("weight_decay", -0.1, "must be at least 0"),
        ("clip_norm", -1.0, "must be at least 0"),
        ("warmup_steps", -1, "must be at least 0"),
        ("beta1", 1.0, "must be in [0, 1)"),
        ("beta2", -0.1, "must be in [0, 1)"),
        ("final_fraction", 1.1, "must be from 0 to 1"),
        ("accumulate", 0, "must be at least 1"),
        ("decay_fraction", 0.0, "must be positive"),
        ("decay_shape", "square", "Allowed: cosine, linear, sqrt"),
    ],
)
def test_what_makes_no_sense_is_named(key, value, message):
    own = {"schedule": "wsd"} if key.startswith("decay_") else {}
    with pytest.raises(UserError) as error:
        options(**own, **{key: value})
    assert f"optimizer.{key}={value!r}" in str(error.value)
    assert message in str(error.value)
