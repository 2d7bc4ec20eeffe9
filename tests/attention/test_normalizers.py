"""Normalizers against their equations in float64, and what all of them promise about masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.parameters import bind, collect_parameters
from research.attention.parts.normalizers import NORMALIZERS, Softmax, softmax
from research.attention.parts.part_options import Sizes
from research.options import read
from tests.parity import compare, of, paper

SHAPE = B, H, T, S = 2, 3, 4, 7
SIZES = Sizes(8 * H, H, H, 8, max_length=9)
LEARNED = np.array([-0.5, 0.3, 1.2])


def built(name, learned=LEARNED, dtype="float32"):
    """The registered normalizer with an array in place of what it learns."""
    part = read(NORMALIZERS[name], {"sharpening": 1.7}).build(SIZES)
    params = collect_parameters(part, "normalizer")
    return bind(part, "normalizer", {key: jnp.asarray(learned, dtype) for key in params})


def sigma(s):
    return 1 / (1 + np.exp(-s))


def share(x, mask, more=0.0):
    x = np.where(mask, x, 0)
    return x / np.maximum(x.sum(-1, keepdims=True) + more, 1e-300)


def on_simplex(s, mask, power):
    """max(s - tau, 0)**power with the tau that makes rows sum to 1, by bisection."""
    s = np.where(mask, s, -np.inf)
    top = s.max(-1, keepdims=True)
    low, high = top - 1, top
    for _ in range(100):
        middle = (low + high) / 2
        enough = (np.maximum(s - middle, 0) ** power).sum(-1, keepdims=True) >= 1
        low, high = np.where(enough, middle, low), np.where(enough, high, middle)
    return np.maximum(s - low, 0) ** power


SINK = LEARNED[:, None, None]
EQUATIONS = {
    "softmax": lambda s, m: share(np.exp(1.7 * s), m),
    "softmax_plus_one": lambda s, m: share(np.exp(s), m, 1.0),
    "softmax_sink": lambda s, m: share(np.exp(s), m, np.exp(SINK)),
    "smoothed": lambda s, m: share(sigma(s), m),
    "sigmoid": lambda s, m: np.where(m, sigma(s + SINK), 0),
    "squared_relu": lambda s, m: np.where(m, np.maximum(s, 0) ** 2 / 9, 0),
    "softpick": lambda s, m: (
        np.where(m, np.maximum(np.exp(s) - 1, 0), 0)
        / (np.where(m, np.abs(np.exp(s) - 1), 0).sum(-1, keepdims=True) + 1e-6)
    ),
    "sparsemax": lambda s, m: on_simplex(s, m, 1),
    "entmax15": lambda s, m: on_simplex(s / 2, m, 2),
}
SUM_TO_ONE = ("softmax", "smoothed", "sparsemax", "entmax15")

rng = np.random.default_rng(0)
SCORES = 2 * rng.normal(size=SHAPE)
MASK = (rng.random((B, 1, T, S)) < 0.7) | (np.arange(S) == 2)


def test_every_registered_normalizer_has_an_equation():
    assert set(EQUATIONS) == set(NORMALIZERS)


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("masked", [False, True])
def test_normalizers_are_their_equations(name, masked):
    mask = MASK if masked else np.ones(SHAPE, bool)
    expected = EQUATIONS[name](SCORES, mask)
    run = jax.jit(lambda s: built(name)(s, jnp.asarray(mask) if masked else None))
    weights = run(jnp.asarray(SCORES, jnp.float32))
    assert weights.dtype == jnp.float32
    mechanism = f"normalizer={name}"
    outputs = weights, expected
    compare(mechanism, paper(mechanism, "in NumPy float64"), outputs=outputs, tolerance=1e-6)
    if name in SUM_TO_ONE:
        np.testing.assert_allclose(np.sum(weights, -1), 1, atol=1e-5)
    if name in ("sparsemax", "entmax15"):
        assert np.array_equal(np.asarray(weights) == 0, expected == 0)
        assert (expected == 0).any()


@pytest.mark.parametrize("name", NORMALIZERS)
def test_gradients_are_finite_differences(name):
    with jax.enable_x64(True):
        direction, turn = rng.normal(size=SHAPE), jnp.asarray(rng.normal(size=SHAPE))
        mask = jnp.asarray(MASK)

        def value(scores, learned):
            return jnp.sum(built(name, learned, "float64")(scores, mask) * turn)

        run = jax.jit(jax.value_and_grad(value, (0, 1)))

        def along(step):
            return run(SCORES + step * direction, LEARNED + step * SINK[:, 0, 0])[0]

        grads = jax.device_get(run(SCORES, LEARNED)[1])
        assert grads[0].dtype == np.float64
        slope = np.sum(grads[0] * direction) + np.sum(grads[1] * SINK[:, 0, 0])
        assert abs(slope) > 0.01
        np.testing.assert_allclose(slope, (along(1e-5) - along(-1e-5)) / 2e-5, rtol=1e-6)
        # Forbidden scores have no influence at all.
        assert not np.asarray(grads[0])[~np.broadcast_to(MASK, SHAPE)].any()


@pytest.mark.parametrize("name", NORMALIZERS)
def test_rows_with_nothing_allowed(name):
    """Zero weights and zero, finite gradients, even where scores are extreme."""
    mask = np.array(np.broadcast_to(MASK, SHAPE))
    mask[0, 1], mask[1, :, 2] = False, False
    scores = jnp.asarray(np.where(mask, SCORES, 1e4 * SCORES), jnp.float32)

    def value(scores, learned):
        weights = built(name, learned)(scores, jnp.asarray(mask))
        return jnp.sum(weights * jnp.cos(jnp.arange(S))), weights

    (grad, dlearned), weights = jax.jit(jax.grad(value, (0, 1), has_aux=True))(
        scores, jnp.asarray(LEARNED, jnp.float32)
    )
    assert not np.asarray(weights)[~mask].any()
    assert not np.asarray(grad)[~mask].any()
    assert np.isfinite(weights).all() and np.isfinite(grad).all() and np.isfinite(dlearned).all()
    assert np.asarray(grad)[mask].any()


@functools.partial(jax.jit, static_argnums=0)
def weighed(name, scores):
    """The weights, and the gradient of the sum of their squares."""

    def squares(scores):
        weights = built(name)(scores, jnp.asarray(MASK))
        return jnp.sum(weights**2), weights

    return jax.grad(squares, has_aux=True)(scores)[::-1]


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("size", [80.0, 3e4])
def test_large_scores_do_not_overflow(name, size):
    scores = np.float32(size * SCORES)
    weights, grad = weighed(name, scores)
    assert np.isfinite(weights).all() and np.isfinite(grad).all()
    if name in SUM_TO_ONE:
        np.testing.assert_allclose(np.sum(weights, -1), 1, rtol=1e-5)
    # Far below zero as well: what is divided by must not underflow.
    low, _ = weighed(name, scores - np.float32(10 * size))
    assert np.isfinite(low).all()
    if name in SUM_TO_ONE:
        np.testing.assert_allclose(np.sum(low, -1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_low_precision_and_vmap(name):
    low = SCORES.astype(jnp.bfloat16)
    run = jax.jit(lambda s, x: built(name, x)(s, jnp.asarray(MASK)))
    expected = run(low.astype(np.float32), np.float32(LEARNED))
    assert np.array_equal(run(low, np.float32(LEARNED)), expected)
    members = np.stack([low, -low]).astype(np.float32)
    learned = np.float32([LEARNED, 2 * LEARNED])
    both = jax.jit(jax.vmap(run))(members, learned)
    for i in range(2):
        np.testing.assert_allclose(both[i], run(members[i], learned[i]), atol=1e-6)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_what_a_normalizer_says_of_itself(name):
    part = read(NORMALIZERS[name], {"sharpening": 1.7}).build(SIZES)
    assert part.name == name
    assert part == read(NORMALIZERS[name], {"sharpening": 1.7}).build(SIZES)
    hash(part)
    learned = collect_parameters(part, "normalizer")
    initial = {k: p.init(jax.random.key(0), p.shape, "float32") for k, p in learned.items()}
    if name == "sigmoid":
        np.testing.assert_allclose(initial["normalizer_bias"], [-np.log(9)] * H, rtol=1e-6)
    elif name == "softmax_sink":
        np.testing.assert_array_equal(initial["normalizer_sink"], np.zeros(H))
        assert bind(part, "normalizer", initial).extra_logit.shape == (H,)
    else:
        assert not initial
        extra = {"softmax_plus_one": 0.0, "softpick": np.log(1e-6)}
        assert part.extra_logit == extra.get(name)


def test_softmax_is_the_default():
    assert softmax.name == "softmax"
    assert softmax == Softmax(1.0) != Softmax(2.0)
    torch = pytest.importorskip("torch")
    expected = torch.softmax(torch.tensor(SCORES), -1)
    outputs = softmax(jnp.asarray(SCORES, jnp.float32)), expected
    compare("normalizer=softmax", of(torch, "softmax"), outputs=outputs, tolerance=1e-6)


@pytest.mark.parametrize("size", [0.01, 1.0, 60.0])
def test_softpick_is_its_shifted_equation_with_gradients(size):
    """Zuhri et al. 2025 shift scores by their maximum, which PyTorch differentiates."""
    torch = pytest.importorskip("torch")
    x = torch.tensor(size * SCORES, dtype=torch.float32, requires_grad=True)
    top = x.max(-1, keepdim=True).values
    shifted = torch.exp(x - top) - torch.exp(-top)
    expected = torch.relu(shifted) / (shifted.abs().sum(-1, keepdim=True) + 1e-6)
    expected.square().sum().backward()

    def squares(scores):
        weights = built("softpick")(scores)
        return jnp.sum(weights**2), weights

    grad, weights = jax.jit(jax.grad(squares, has_aux=True))(jnp.asarray(x.detach().numpy()))
    compare(
        "normalizer=softpick",
        paper("normalizer=softpick", "in PyTorch"),
        outputs=(weights, expected),
        gradients={"scores": (grad, x.grad)},
    )
