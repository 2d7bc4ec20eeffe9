"""Monotonic alignments against loops, enumeration and simulation of the process they expect."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.mixers.sequential.monotonic import (
    Monotonic,
    MonotonicChunkwise,
    chunk_alignment,
    expected_alignment,
    pass_probability,
)
from research.attention.parts.masks import causal, padding
from tests.parity import compare, paper

B, H, S, D, A = 2, 4, 7, 3, 5


def equation_9(p: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """alpha_j = p_j sum_{k <= j} previous_k prod_{k <= l < j} (1 - p_l), as it stands, float64."""
    p, previous = np.asarray(p, np.float64), np.asarray(previous, np.float64)
    alpha = np.zeros_like(p)
    for j in range(p.shape[-1]):
        for k in range(j + 1):
            alpha[..., j] += previous[..., k] * np.prod(1 - p[..., k:j], axis=-1)
    return p * alpha


def stops_at(z: np.ndarray, start: int) -> int:
    """The hard process: the first key from ``start`` on with z = 1; the length if there is none."""
    return next((j for j in range(start, len(z)) if z[j]), len(z))


def start(length: int) -> np.ndarray:
    return np.eye(length, dtype=np.float32)[0]


def uniform(seed: int, *shape: int) -> np.ndarray:
    return np.float32(np.random.default_rng(seed).uniform(size=shape))


@jax.jit
def moved(p, alpha):
    """Where the reader is after a query, and what it lost."""
    return expected_alignment(p, alpha), pass_probability(p, alpha)


def test_expected_alignment_equals_its_equation():
    alpha, expected = np.broadcast_to(start(S), (B, H, S)), np.eye(S)[0]
    for row in uniform(0, 9, B, H, S):
        alpha, expected = np.asarray(moved(row, alpha)[0]), equation_9(row, expected)
        # Relative: there is nothing that cancels, however small it is.
        np.testing.assert_allclose(alpha, expected, rtol=2e-5)
        assert (alpha.sum(-1) < 1).all()


def test_expected_alignment_equals_enumeration_of_every_outcome():
    queries, keys = 3, 4
    p = np.random.default_rng(0).uniform(size=(queries, keys))
    expected, lost = np.zeros((queries, keys)), np.zeros(queries)
    for outcome in itertools.product((0, 1), repeat=queries * keys):
        z = np.reshape(outcome, (queries, keys))
        probability, at = np.prod(np.where(z, p, 1 - p)), 0
        for i in range(queries):
            at = stops_at(z[i], at)
            if at < keys:
                expected[i, at] += probability
            else:
                lost[i] += probability
    alpha, gone = start(keys), 0.0
    for i in range(queries):
        alpha, lost_here = moved(np.float32(p[i]), alpha)
        gone += lost_here
        np.testing.assert_allclose(alpha, expected[i], rtol=1e-5)
        np.testing.assert_allclose(gone, lost[i], rtol=1e-5)


def test_expected_alignment_equals_simulation():
    count = 200_000
    p = np.random.default_rng(1).uniform(size=(4, S)).astype(np.float32)
    draws = np.random.default_rng(2).uniform(size=(4, count, S)) < p[:, None]
    at, alpha = np.zeros(count, np.int32), start(S)
    for row, z in zip(p, draws, strict=True):
        # The process itself: the reader goes on from where it is to the first key with z = 1.
        stops = z & (np.arange(S) >= at[:, None])
        at = np.where(stops.any(-1), stops.argmax(-1), S)
        alpha = np.asarray(moved(row, alpha)[0])
        found = np.bincount(at, minlength=S + 1)[:S] / count
        # Five standard deviations of a mean of that many.
        assert (np.abs(found - alpha) < 5 * np.sqrt(alpha / count) + 1e-6).all()


def test_reader_never_moves_back_and_loses_only_what_is_unspent():
    alpha = start(S)
    for row in uniform(4, 20, S) * np.float32(0.8):
        before, (alpha, lost) = alpha, jax.device_get(moved(row, alpha))
        # Probability of being at or before each key.
        assert (np.cumsum(alpha) <= np.cumsum(before) + 1e-6).all()
        np.testing.assert_allclose(alpha.sum() + lost, before.sum(), rtol=1e-5)


def test_gradients_are_exact_where_p_is_zero_or_one():
    # alpha is linear in each p_l by itself, so that a difference over any step is the derivative.
    p = np.array([0, 0.3, 1, 1, 0, 0.6, 1.0])
    previous = np.array([0, 0.2, 0, 0.5, 0, 0, 0.3])
    with jax.enable_x64(True):
        jacobians = jax.jit(jax.jacobian(expected_alignment, (0, 1)))(p, previous)
    jacobians = jax.device_get(jacobians)
    for found, argument in zip(jacobians, (0, 1), strict=True):
        for n in range(S):
            more, less = [p.copy(), previous.copy()], [p.copy(), previous.copy()]
            more[argument][n] += 0.5
            less[argument][n] -= 0.5
            np.testing.assert_allclose(
                found[:, n], equation_9(*more) - equation_9(*less), atol=1e-14
            )


@pytest.mark.parametrize("p", [1e-4, 0.5, 0.999])
def test_long_memories_do_not_underflow(p):
    # The product of all 1 - p is 0 in float32 for the larger two.
    length = 3000
    places = np.zeros(length, np.float32)
    places[[1500, 2900]] = 0.5
    alpha = np.asarray(moved(np.full(length, p, np.float32), places)[0])
    j = np.arange(length)
    expected = 0.5 * np.where(j >= 1500, p * (1.0 - p) ** np.maximum(j - 1500, 0), 0)
    expected += 0.5 * np.where(j >= 2900, p * (1.0 - p) ** np.maximum(j - 2900, 0), 0)
    seen = expected > 1e-30
    np.testing.assert_allclose(alpha[seen], expected[seen], rtol=5e-3 if p > 0.9 else 1e-3)


def chunk_equation(alpha, u, chunk, allowed):
    """beta_j = sum_{k=j}^{j+w-1} alpha_k exp(u_j) / sum_{l=k-w+1}^{k} exp(u_l), float64."""
    alpha, u = np.asarray(alpha, np.float64), np.asarray(u, np.float64)
    length, beta = len(u), np.zeros(len(u))
    for j in range(length):
        for k in range(j, min(j + chunk, length)):
            window = [n for n in range(max(0, k - chunk + 1), k + 1) if allowed[n]]
            if allowed[j] and alpha[k]:
                beta[j] += alpha[k] / sum(np.exp(u[n] - u[j]) for n in window)
    return beta


@pytest.mark.parametrize("chunk", [1, 2, 3, S, S + 4])
@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_chunks_equal_their_equation(chunk, spread):
    rng = np.random.default_rng(5)
    allowed = rng.uniform(size=(B, 1, S)) < 0.8
    # Scores this far apart underflow a sum that all windows share.
    u = (rng.normal(size=(B, H, S)) * spread).astype(np.float32)
    alpha = np.where(allowed, rng.uniform(size=(B, H, S)), 0).astype(np.float32)
    beta = np.asarray(jax.jit(chunk_alignment, static_argnums=2)(alpha, u, chunk, allowed))
    for b, h in itertools.product(range(B), range(H)):
        expected = chunk_equation(alpha[b, h], u[b, h], chunk, allowed[b, 0])
        np.testing.assert_allclose(beta[b, h], expected, rtol=1e-4, atol=1e-30)
    np.testing.assert_allclose(beta.sum(-1), alpha.sum(-1), rtol=1e-5)
    if chunk == 1:
        assert np.array_equal(beta, alpha)


def test_chunk_gradients_are_finite_and_exact():
    rng = np.random.default_rng(6)
    alpha, u, way = rng.uniform(size=(3, 1, 1, S))
    allowed = np.array([True, True, False, True, True, True, False])
    alpha = alpha * allowed
    weights = np.arange(1, S + 1)

    def reference(u):
        return chunk_equation(alpha[0, 0], u[0, 0], 3, allowed) @ weights

    with jax.enable_x64(True):
        fixed = jnp.asarray(alpha), jnp.asarray(allowed)

        def loss(u):
            return (chunk_alignment(fixed[0], u, 3, fixed[1])[0, 0] * weights).sum()

        slope = np.asarray(jax.jit(jax.grad(loss))(u))
    expected = (reference(u + 1e-5 * way) - reference(u - 1e-5 * way)) / 2e-5
    np.testing.assert_allclose((slope * way).sum(), expected, rtol=1e-8)
    assert not slope[..., ~allowed].any()


def problem(kind, **options):
    """An alignment, parameters that tell heads apart, a query for each of 5 steps, and keys."""
    alignment = kind(H, 2, D, A, **options)
    draw = np.random.default_rng(7)
    params = {n: np.float32(draw.normal(size=p.shape)) for n, p in alignment.parameters().items()}
    shapes = (5, B, 1, H, D), (B, S, 2, D)
    return alignment, params, *(np.float32(draw.normal(size=shape)) for shape in shapes)


def run(alignment, params, q, k, mask=None):
    """Weights (steps, B, H, S) and the states after every step."""
    index = jnp.arange(k.shape[1])

    def step(state, query):
        at, q = query
        weights, state = alignment.step(params, q, memory, at[None], index, mask, state)
        return state, (weights, state)

    memory = alignment.precompute_keys(params, k)
    first = alignment.init_state(k.shape[0], k.shape[1], k.dtype)
    return jax.lax.scan(step, first, (jnp.arange(len(q)), q))[1]


compiled = jax.jit(run, static_argnums=0)


def run_compiled(*arguments):
    """The same as numpy arrays."""
    return jax.device_get(compiled(*arguments))


def energy(params, prefix, q, k, h):
    """W q + U k + b through v . tanh, for one pair, by the letter; key head 0 is of heads 0, 1."""
    w, u, b, v = (np.float64(params[prefix + n]) for n in ("query", "key", "bias", "vector"))
    return v[h], np.tanh(q @ w[h] + k @ u[h // 2] + b[h])


@pytest.mark.parametrize("chunk", [0, 3])
def test_steps_equal_the_papers_equations(chunk):
    options = {"chunk": chunk} if chunk else {}
    kind = MonotonicChunkwise if chunk else Monotonic
    alignment, params, q, k = problem(kind, **options)
    valid = np.arange(S) < np.array([[S], [5]])
    found, _ = run_compiled(alignment, params, q, k, padding(jnp.asarray(valid)))
    expected = np.zeros(found.shape)
    for b, h in itertools.product(range(B), range(H)):
        alpha = np.eye(S)[0]
        for i in range(len(q)):
            p, u = np.zeros(S), np.zeros(S)
            for s in range(S):
                pair = np.float64(q[i, b, 0, h]), np.float64(k[b, s, h // 2])
                v, hidden = energy(params, "", *pair, h)
                e = params["scale"][h] * v @ hidden / np.linalg.norm(v) + params["offset"][h]
                p[s] = valid[b, s] / (1 + np.exp(-np.float64(e)))
                if chunk:
                    u[s] = np.dot(*energy(params, "chunk_", *pair, h))
            alpha = equation_9(p, alpha)
            row = chunk_equation(alpha, u, chunk, valid[b]) if chunk else alpha
            np.testing.assert_allclose(found[i, b, h], row, rtol=1e-4, atol=1e-12)
            expected[i, b, h] = row
    key = "mixer=monotonic_chunkwise" if chunk else "mixer=monotonic"
    compare(key, paper(key, "loops in NumPy float64"), outputs=(found, expected))


def test_first_probabilities_are_those_of_the_offset():
    heads = 32
    alignment = Monotonic(heads, heads, 8, 16, offset=-4.0)
    parts = alignment.parameters().items()
    params = jax.jit(lambda key: {n: p.init(key, p.shape) for n, p in parts})(jax.random.key(0))
    # |g / |v| v . tanh| is at most 1 with g = 1 / sqrt(A), so that p is near sigma(-4).
    rng = np.random.default_rng(0)
    k = np.float32(rng.normal(size=(1, 50, heads, 8)))
    q = np.float32(rng.normal(size=(1, 1, 1, heads, 8)))
    weights = run_compiled(alignment, params, q, k)[0][0, 0]
    p = weights[:, 0]
    assert (p > 1 / (1 + np.exp(5))).all() and (p < 1 / (1 + np.exp(3))).all()
    # A memory of 50 is then still mostly ahead: most of the probability is nowhere.
    assert 0.1 < weights.sum(-1).mean() < 0.9


@pytest.mark.parametrize("kind", [Monotonic, MonotonicChunkwise])
def test_what_waits_goes_on_where_the_query_could_see_no_further(kind):
    alignment, params, q, k = problem(kind, waits=True)
    weights, states = run_compiled(alignment, params, q, k, causal())
    np.testing.assert_allclose(states.sum(-1), 1, rtol=1e-5)
    paper, _ = run_compiled(kind(H, 2, D, A), params, q, k, causal())
    # The first query reads the same. Later ones read no less than where nothing waits.
    np.testing.assert_array_equal(weights[0], paper[0])
    assert (weights.sum(-1) >= paper.sum(-1) - 1e-6).all()
    assert (weights.sum(-1)[1:] > paper.sum(-1)[1:] + 1e-3).any()
    assert (weights.sum(-1) < 1).all()
    for i in range(len(q)):
        assert not np.asarray(weights[i, ..., i + 1 :]).any()
        assert not np.asarray(states[i, ..., i + 1 :]).any()


def test_a_reader_that_waits_does_not_go_back_to_what_a_query_sees():
    alignment, params, q, k = problem(Monotonic, waits=True)
    at_three = np.broadcast_to(np.eye(S, dtype=np.float32)[3], (B, H, S))

    @jax.jit
    def step(params, q, k, state):
        memory, index = alignment.precompute_keys(params, k), np.arange(S)
        first = padding(jnp.asarray(np.broadcast_to(np.arange(S) < 2, (B, S))))
        return alignment.step(params, q, memory, np.array([0]), index, first, state)

    weights, state = step(params, q[0], k, at_three)
    assert not np.asarray(weights).any()
    assert np.array_equal(state, at_three)


@pytest.mark.parametrize("valid", [[0, 0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
@pytest.mark.parametrize("waits", [False, True])
def test_padding_changes_nothing(valid, waits):
    alignment, params, q, k = problem(Monotonic, waits=waits)
    valid = np.array(valid, bool)
    padded = run_compiled(
        alignment, params, q, k, padding(jnp.asarray(np.broadcast_to(valid, (B, S))))
    )[0]
    # Leaving the padded keys out is the same, wherever they are: the reader passes them.
    without = run_compiled(alignment, params, q, k[:, valid])[0]
    np.testing.assert_allclose(padded[..., valid], without, rtol=1e-5, atol=1e-12)
    assert not np.asarray(padded[..., ~valid]).any()


@pytest.mark.parametrize("kind", [Monotonic, MonotonicChunkwise])
def test_gradients_reach_every_parameter_and_stay_finite(kind):
    alignment, params, q, k = problem(kind)
    q, k = jnp.asarray(q), jnp.asarray(k)

    def loss(params, scale):
        weights = run(alignment, {**params, "scale": scale}, q, k)[0]
        return (weights * jnp.cos(jnp.arange(weights.size)).reshape(weights.shape)).sum()

    gradient = jax.jit(jax.grad(loss))
    for scale in (1.0, 1e3):  # with the second every p is 0 or 1 in float32
        grads = gradient(params, np.full(H, scale, np.float32))
        assert all(np.isfinite(g).all() for g in grads.values())
        if scale == 1.0:
            assert all(np.abs(g).max() > 0 for name, g in grads.items() if name != "scale")
    zero = jax.tree.map(np.zeros_like, params)
    assert all(np.isfinite(g).all() for g in gradient(zero, np.ones(H, np.float32)).values())


def test_chunk_is_at_least_one():
    with pytest.raises(ValueError, match="chunk = 0; it must be at least 1"):
        MonotonicChunkwise(1, 1, 1, 1, chunk=0)
