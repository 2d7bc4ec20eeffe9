"""Scores, one pair at a time: every entry against its paper's equation in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.implementations import dense
from research.attention.parameters import bind, collect_parameters
from research.attention.parts.masks import causal
from research.attention.parts.mechanism import Mechanism
from research.attention.parts.normalizers import softmax
from research.attention.parts.part_options import Sizes
from research.attention.parts.predicted_window import predicted_window
from research.attention.parts.relative_scores import SCORE_POSITIONS, shaw, transformer_xl
from research.attention.parts.scores import cosine, dot, scaled_dot
from research.attention.parts.tables import SCORES
from research.attention.parts.talking_heads import talking_heads
from research.options import read
from tests.parity import compare, paper

B, T, S, H, K, D, A, LENGTH, FAR = 2, 3, 5, 4, 2, 6, 5, 12, 2
# The queries are not the first positions, the keys not in order: a score goes by position.
Q_INDEX, KV_INDEX = np.array([4, 5, 9])[:, None], np.array([2, 0, 5, 7, 9])[None]


def built(part, kv_heads):
    options = read(part, {"score_width": A, "temperature": 0.3, "max_distance": FAR})
    return options.build(Sizes(8, H, kv_heads, D, LENGTH))


def unit(x):
    return x / np.linalg.norm(x)


def waves(distance, width):
    """Sinusoids of Dai et al. 2019: all sines, then all cosines."""
    angle = distance / 10000.0 ** (np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angle), np.cos(angle)])


def shaw_pair(w, q, k, h, g, i, j):
    """Shaw et al. 2018, equation 5: q . (k + a_clip(distance)) / sqrt(D)."""
    row = min(max(i - j, -FAR), FAR) + FAR
    return q @ (k + w["table"][row]) / np.sqrt(D)


def transformer_xl_pair(w, q, k, h, g, i, j):
    """Dai et al. 2019, section 3.3, the terms (a) to (d) of A^rel, over sqrt(D)."""
    place = waves(i - j, w["weight"].shape[0]) @ w["weight"][:, h]
    u, v = w["content"][h], w["place"][h]
    return (q @ k + q @ place + u @ k + v @ place) / np.sqrt(D)


# f(parameters, query, key, head, key head, query's position, key's position), by the letter.
PAIRS = {
    "dot": lambda w, q, k, h, g, i, j: q @ k,
    "scaled_dot": lambda w, q, k, h, g, i, j: q @ k / np.sqrt(D),
    "general": lambda w, q, k, h, g, i, j: q @ w["weight"][h] @ k,
    "additive": lambda w, q, k, h, g, i, j: (
        w["vector"][h] @ np.tanh(w["query"][h].T @ q + w["key"][g].T @ k)
    ),
    "concat": lambda w, q, k, h, g, i, j: (
        w["vector"][h] @ np.tanh(w["weight"][h].T @ np.concatenate([q, k]))
    ),
    "cosine": lambda w, q, k, h, g, i, j: unit(q) @ unit(k) / 0.3,
    "learned_cosine": lambda w, q, k, h, g, i, j: unit(q) @ unit(k) * np.exp(w["log_scale"][h]),
    "location": lambda w, q, k, h, g, i, j: (w["weight"][h].T @ q)[j],
    "synthesizer_dense": lambda w, q, k, h, g, i, j: (w["weight"][h].T @ np.maximum(q, 0))[j],
    "synthesizer_random": lambda w, q, k, h, g, i, j: w["table"][h, i, j],
    "shaw": shaw_pair,
    "transformer_xl": transformer_xl_pair,
}


def build(name, kv_heads=K):
    if name in SCORES:
        return built(SCORES[name], kv_heads)
    return built(SCORE_POSITIONS[name], kv_heads)(scaled_dot())


def arguments(score, kv_heads, seed=0):
    """Random parameters (by field), queries and keys, float64."""
    rng = np.random.default_rng(seed)
    params = {
        name: rng.normal(size=p.shape) for name, p in collect_parameters(score, "score").items()
    }
    return params, rng.normal(size=(B, T, H, D)), rng.normal(size=(B, S, kv_heads, D))


def looped(name, params, q, k):
    """The scores (B, H, T, S) of the equation, pair by pair."""
    params = {key.removeprefix("score_"): p for key, p in params.items()}
    out, group = np.zeros((B, H, T, S)), H // k.shape[2]
    for b, h, t, s in itertools.product(range(B), range(H), range(T), range(S)):
        g, i, j = h // group, Q_INDEX[t, 0], KV_INDEX[0, s]
        out[b, h, t, s] = PAIRS[name](params, q[b, t, h], k[b, s, g], h, g, i, j)
    return out


def computed(score, params, q, k):
    params, q, k = jax.tree.map(jnp.asarray, (params, q, k))
    return bind(score, "score", params)(q, k, Q_INDEX, KV_INDEX)


def key_of(name):
    return f"{'score' if name in SCORES else 'position'}={name}"


HOW = "loops in NumPy float64, gradients by finite differences"


def test_every_score_has_an_equation():
    assert set(PAIRS) == set(SCORES) | set(SCORE_POSITIONS)


@pytest.mark.parametrize("kv_heads", [H, K, 1])
@pytest.mark.parametrize("name", PAIRS)
def test_values_equal_the_equation(name, kv_heads):
    score = build(name, kv_heads)
    params, q, k = arguments(score, kv_heads)
    expected = looped(name, params, q, k)

    @jax.jit
    def run(params, q, k):
        single = jax.tree.map(lambda a: a.astype(jnp.float32), (params, q, k))
        half = (a.astype(jnp.bfloat16) for a in single[1:])
        exact = computed(score, params, q, k)
        return exact, computed(score, *single), computed(score, single[0], *half)

    with jax.enable_x64(True):
        exact, single, half = run(params, q, k)
        outputs = exact, expected
        compare(key_of(name), paper(key_of(name), HOW), outputs=outputs, tolerance=4e-12)
    assert single.dtype == half.dtype == jnp.float32
    np.testing.assert_allclose(single, expected, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_allclose(half, expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize("name", PAIRS)
def test_gradients_are_the_slopes_of_the_equation(name):
    score = build(name)
    given, way, weight = (
        arguments(score, K),
        arguments(score, K, 1),
        np.cos(np.arange(B * H * T * S)),
    )
    weight = weight.reshape(B, H, T, S)
    with jax.enable_x64(True):
        grads = jax.jit(jax.grad(lambda a: (computed(score, *a) * weight).sum()))(given)
    step, gradients = 1e-5, {}
    # Along a random direction in each argument by itself.
    for leaf in range(len(jax.tree.leaves(given))):
        leaves, structure = jax.tree.flatten(given)
        towards = jax.tree.leaves(way)[leaf]
        slope = 0.0
        for sign in (1, -1):
            moved = [*leaves]
            moved[leaf] = leaves[leaf] + sign * step * towards
            slope += sign * (looped(name, *structure.unflatten(moved)) * weight).sum() / (2 * step)
        found = (np.asarray(jax.tree.leaves(grads)[leaf]) * towards).sum()
        gradients[leaf] = found, slope
    compare(key_of(name), paper(key_of(name), HOW), gradients=gradients, tolerance=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_a_score_looks_at_what_it_says_it_reads(name):
    score = build(name)
    params, q, k = arguments(score, K)
    with jax.enable_x64(True):
        slope = jax.grad(lambda *a: (computed(score, *a) ** 2).sum(), (1, 2))
        slopes = jax.device_get(jax.jit(slope)(params, q, k))
        form = jax.eval_shape(
            lambda params, q, k: bind(score, "score", params).as_dot(q, k), params, q, k
        )
    read = tuple(n for n, g in zip(("query", "key"), slopes, strict=True) if np.any(g))
    assert read == score.required_projections
    assert score.has_dot_form == (form is not None)


@pytest.mark.parametrize("name", ["cosine", "learned_cosine"])
def test_cosine_of_a_zero_vector_has_a_finite_gradient(name):
    score = build(name)
    params, q, k = jax.tree.map(np.float32, arguments(score, K))
    grads = jax.jit(jax.grad(lambda a: computed(score, *a).sum()))((params, 0 * q, 0 * k))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_cosine_forgets_lengths_and_general_generalises_dot():
    _, q, k = jax.tree.map(np.float32, arguments(dot(), K))
    same = {"score_weight": np.broadcast_to(np.eye(D, dtype=np.float32), (H, D, D))}

    @jax.jit
    def run(q, k):
        grown = computed(cosine(0.5), {}, 100 * q, 0.01 * k)
        cosines = grown, computed(cosine(0.5), {}, q, k)
        return cosines, (computed(build("general"), same, q, k), computed(dot(), {}, q, k))

    for found, expected in run(q, k):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", SCORE_POSITIONS)
def test_relative_scores_do_not_change_when_both_move(name):
    score = build(name)
    params, q, k = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), arguments(score, K))

    @jax.jit
    def run(params, q_index, kv_index):
        return bind(score, "score", params)(q, k, q_index, kv_index)

    here = run(params, Q_INDEX, KV_INDEX)
    assert np.array_equal(here, run(params, Q_INDEX + 1000, KV_INDEX + 1000))
    assert not np.allclose(here, run(params, Q_INDEX + 1, KV_INDEX), atol=1e-2)
    # As it starts, position matters: the first parameters are not all zero.
    parts = collect_parameters(score, "score").items()
    draw = jax.jit(lambda key: {name: p.init(key, p.shape, "float32") for name, p in parts})
    first = draw(jax.random.key(1))
    assert not np.allclose(run(first, Q_INDEX, KV_INDEX), run(first, Q_INDEX + 1, KV_INDEX))


def test_relative_scores_share_the_scale_of_what_they_wrap():
    for wrap in (shaw(FAR, D), transformer_xl(H, D, LENGTH, 8)):
        params, q, k = arguments(wrap(dot()), K)
        with jax.enable_x64(True):
            plain, scaled = jax.jit(
                lambda *a, wrap=wrap: [computed(wrap(s), *a) for s in (dot(), scaled_dot())]
            )(params, q, k)
        np.testing.assert_allclose(plain, np.asarray(scaled) * np.sqrt(D), rtol=1e-9)
    with pytest.raises(NotImplementedError, match="needs a dot product"):
        computed(shaw(FAR, D)(build("additive")), *arguments(shaw(FAR, D)(build("additive")), K))


def softmax64(scores, allowed):
    numerator = np.where(allowed, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    return numerator / numerator.sum(-1, keepdims=True)


def test_talking_heads_mix_before_and_after_the_softmax():
    """Shazeer et al. 2020, section 3: softmax(sum_g scores_g P_l[g, h]), and the same with P_w."""
    score, normalizer = talking_heads(scaled_dot(), softmax, H)
    params, q, k = arguments(score, K)
    params |= {
        name: np.random.default_rng(2).normal(size=p.shape)
        for name, p in collect_parameters(normalizer, "normalizer").items()
    }
    assert sorted(params) == ["normalizer_weight", "score_weight"]
    allowed = KV_INDEX <= Q_INDEX
    plain = looped("scaled_dot", {}, q, k)
    mixed = np.zeros_like(plain)
    for g, h in itertools.product(range(H), range(H)):
        mixed[:, h] += plain[:, g] * params["score_weight"][g, h]
    heads, expected = softmax64(mixed, allowed), np.zeros_like(plain)
    for g, h in itertools.product(range(H), range(H)):
        expected[:, h] += heads[:, g] * params["normalizer_weight"][g, h]
    with jax.enable_x64(True):
        found = jax.jit(
            lambda params, q, k: dense.weights(
                q,
                k,
                Mechanism(score, causal(), (), normalizer).bind(params),
                q_index=Q_INDEX[:, 0],
                kv_index=KV_INDEX[0],
            )
        )(params, q, k)
    row = "talking_heads=true", paper("talking_heads=true", "loops in NumPy float64")
    compare(*row, outputs=(found, expected), tolerance=4e-13)
    # Each head starts close to itself.
    for p in (
        *collect_parameters(score, "x").values(),
        *collect_parameters(normalizer, "x").values(),
    ):
        first = np.asarray(p.init(jax.random.key(0), p.shape))
        assert (np.diagonal(first) > 0.7).all()
        assert (np.abs(first - np.eye(H)) < 0.3).all() and (first != np.eye(H)).all()


def test_predicted_window_is_that_of_luong():
    """Equations 9 and 10: p = L sigma(v . tanh(W q)), times exp(-(s - p)^2 / 2 / (size / 2)^2)."""
    size = 3
    window = predicted_window(H, D, size)
    rng = np.random.default_rng(3)
    params = {
        name: rng.normal(size=p.shape) for name, p in collect_parameters(window, "focus").items()
    }
    _, q, k = arguments(dot(), K)
    lengths, kv = np.array([5.0, 6.0, 10.0]), KV_INDEX[0]
    expected = np.zeros((B, H, T, S))
    plain = looped("scaled_dot", {}, q, k)
    for b, h, t in itertools.product(range(B), range(H), range(T)):
        hidden = np.tanh(params["focus_weight"][h].T @ q[b, t, h])
        center = lengths[t] / (1 + np.exp(-params["focus_vector"][h] @ hidden))
        near = np.abs(kv - center) <= size
        if near.any():
            row = softmax64(plain[b, h, t], near)
            expected[b, h, t] = row * np.exp(-((kv - center) ** 2) / (2 * (size / 2) ** 2))
    with jax.enable_x64(True):

        @jax.jit
        def both(params, q, plain):
            def weights(params):
                bound = bind(window, "focus", params)
                return bound.restrict(softmax, q, jnp.asarray(lengths)[None, :, None], kv)(plain)

            slopes = jax.grad(lambda p: (weights(p) * jnp.cos(kv)).sum())
            return weights(params), slopes(params)

        found, grads = both(params, q, plain)
    row = f"predicted_window={size}", paper(f"predicted_window={size}", "loops in NumPy float64")
    compare(*row, outputs=(found, expected), tolerance=1e-12)
    # The place is learned through the Gaussian.
    assert all(np.abs(g).max() > 1e-3 for g in grads.values())
