"""Alignments and the mixers that read through them, step by step and as a whole."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.implementations import dense
from research.attention.mixers.mixer import init_params, state_bytes
from research.attention.mixers.sequential.alignments import (
    ContentAlignment,
    Coverage,
    LocationAware,
    weighted_sum,
)
from research.attention.mixers.sequential.monotonic import Monotonic, MonotonicChunkwise
from research.attention.mixers.sequential.stepwise import Stepwise, make_alignment
from research.attention.parameters import Constant, Parameter, vector_axes
from research.attention.parts.additive_scores import Additive, AdditiveScore, ConcatScore
from research.attention.parts.biases import alibi
from research.attention.parts.location_scores import LocationScore
from research.attention.parts.masks import causal, padding
from research.attention.parts.mechanism import Mechanism
from research.attention.parts.normalizers import SinkSoftmax, Smoothed, Softmax
from research.attention.parts.part_options import Sizes
from research.attention.parts.predicted_window import predicted_window
from research.attention.parts.relative_scores import shaw
from research.attention.parts.scores import GeneralScore, dot, scaled_dot
from research.attention.parts.sparse_masks import local
from research.attention.spec import make_mixer, mixer_spec
from research.options import OptionError
from tests.parity import compare, paper

B, T, S, H, K, D, A, M = 2, 5, 7, 4, 2, 6, 3, 8
SIZES = (H, K, D, A)
HEADS = Sizes(M, H, K, D, max_length=S)

CONTENTS = {
    "scaled dot": ContentAlignment(),
    "general": ContentAlignment(Mechanism(GeneralScore().build(HEADS))),
    "additive": ContentAlignment(Mechanism(AdditiveScore(score_width=A).build(HEADS))),
    "concat": ContentAlignment(Mechanism(ConcatScore(score_width=A).build(HEADS))),
    "location": ContentAlignment(Mechanism(LocationScore().build(HEADS))),
    "local-m": ContentAlignment(Mechanism(dot(), local(1))),
    "local-p": ContentAlignment(Mechanism(focus=predicted_window(H, D, 2))),
    "everything": ContentAlignment(
        Mechanism(
            shaw(3, D)(scaled_dot()),
            local(4),
            (alibi(H),),
            SinkSoftmax(sink=Parameter((H,), Constant(0.0), vector_axes("heads"))),
            predicted_window(H, D, 3),
        )
    ),
}
STATEFUL = {
    "location-aware": LocationAware(*SIZES, filter_length=3, num_filters=2),
    "smoothed": LocationAware(*SIZES, filter_length=5, num_filters=2, normalizer=Smoothed()),
    "sharpened": LocationAware(*SIZES, filter_length=1, normalizer=Softmax(2.0)),
    "coverage": Coverage(*SIZES),
    "monotonic": Monotonic(*SIZES),
    "monotonic that waits": Monotonic(*SIZES, waits=True),
    "chunkwise": MonotonicChunkwise(*SIZES, chunk=3, waits=True),
}
# One of each kind, to compile little.
KINDS = {
    "additive": CONTENTS["additive"],
    **{n: STATEFUL[n] for n in ("location-aware", "coverage", "monotonic that waits", "chunkwise")},
}
kinds = pytest.mark.parametrize("alignment", KINDS.values(), ids=KINDS.keys())
# The simplest and the one with the most parts; test_mixers.py asks the same of those between, as
# `make test-slow` does of all.
ends = pytest.mark.parametrize(
    "alignment",
    [
        pytest.param(a, id=n, marks=() if n in ("additive", "chunkwise") else pytest.mark.slow)
        for n, a in KINDS.items()
    ],
)


def drawn(described, seed=0, scale=0.7):
    """Parameters that tell everything apart."""
    rng = np.random.default_rng(seed)
    return {name: np.float32(scale * rng.normal(size=p.shape)) for name, p in described.items()}


def vectors(seed=1):
    """Queries (T, B, 1, H, D), keys (B, S, K, D) and values, the last of another width."""
    rng = np.random.default_rng(seed)
    shapes = (T, B, 1, H, D), (B, S, K, D), (B, S, K, D + 1)
    return [np.float32(rng.normal(size=s)) for s in shapes]


def steps(alignment, params, q, k, mask=None):
    """The weights (T, B, H, S) of one query after the other."""
    memory, index = alignment.precompute_keys(params, k), jnp.arange(k.shape[1])

    def step(state, query):
        at, q = query
        weights, state = alignment.step(params, q, memory, at[None], index, mask, state)
        return state, weights

    first = alignment.init_state(k.shape[0], k.shape[1], k.dtype)
    return jax.lax.scan(step, first, (jnp.arange(len(q)), q))[1]


compiled = jax.jit(steps, static_argnums=0)


@pytest.mark.parametrize("alignment", CONTENTS.values(), ids=CONTENTS.keys())
def test_content_is_attention_one_query_at_a_time(alignment):
    params, (q, k, v) = drawn(alignment.parameters()), vectors()
    lengths = np.array([[S], [5]])

    @jax.jit
    def both(params, q, k, v):
        valid, together = padding(jnp.arange(S) < lengths), jnp.moveaxis(q[:, :, 0], 0, 1)
        mechanism = alignment.mechanism.bind(params, valid)
        mechanism = mechanism.with_predicted_window(together, np.arange(T), np.arange(S), valid)
        expected = dense.weights(together, k, mechanism)
        found = steps(alignment, params, q, k, valid)
        outs = (
            jax.lax.map(lambda w: weighted_sum(w, v)[:, 0], found),
            dense.attend(together, k, v, mechanism),
        )
        return (found, jnp.moveaxis(expected, 2, 0)), (jnp.moveaxis(outs[0], 0, 1), outs[1])

    (found, expected), outs = both(params, q, k, v)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(*outs, rtol=1e-4, atol=1e-5)
    assert np.abs(found).max() > 0.1


def test_local_m_and_local_p_see_their_windows():
    q, k, _ = vectors()
    weights = compiled(CONTENTS["local-m"], {}, q, k)
    far = np.abs(np.arange(T)[:, None] - np.arange(S)) > 1
    assert not np.moveaxis(np.asarray(weights), 0, 2)[..., far].any()
    # Where a window is predicted depends on how many keys there are without the padding.
    alignment = CONTENTS["local-p"]
    params = drawn(alignment.parameters())
    valid = jnp.asarray(np.broadcast_to(np.arange(S) < 4, (B, S)))
    padded = np.asarray(compiled(alignment, params, q, k, padding(valid)))
    np.testing.assert_allclose(padded[..., :4], compiled(alignment, params, q, k[:, :4]), atol=1e-6)
    assert not padded[..., 4:].any()


@pytest.mark.parametrize("name", ["location-aware", "smoothed", "sharpened"])
def test_location_aware_equals_the_papers_equations(name):
    """Chorowski et al. 2015, equations 8 and 9, and 2.3 for the normalizers, in float64."""
    alignment = STATEFUL[name]
    params, (q, k, _) = drawn(alignment.parameters()), vectors()
    w = {key: np.float64(p) for key, p in params.items()}
    valid = np.arange(S) < np.array([[S], [5]])
    found = np.asarray(compiled(alignment, params, q, k, padding(jnp.asarray(valid))))
    q, k, taps = np.float64(q), np.float64(k), alignment.filter_length
    squash = (lambda e: 1 / (1 + np.exp(-e))) if name == "smoothed" else np.exp
    expected = np.zeros(found.shape)
    for b, h in itertools.product(range(B), range(H)):
        previous = np.zeros(S)
        for i in range(T):
            e = np.zeros(S)
            for s in range(S):
                f = np.zeros(alignment.num_filters)
                for n in range(taps):
                    if 0 <= s + n - taps // 2 < S:
                        f += w["filters"][h, n] * previous[s + n - taps // 2]
                hidden = q[i, b, 0, h] @ w["query"][h] + k[b, s, h // 2] @ w["key"][h // 2]
                hidden += f @ w["location"][h] + w["bias"][h]
                e[s] = w["vector"][h] @ np.tanh(hidden)
            a = squash(2.0 * e if name == "sharpened" else e) * valid[b]
            previous = a / a.sum()
            np.testing.assert_allclose(found[i, b, h], previous, rtol=2e-5, atol=1e-7)
            expected[i, b, h] = previous
    row = "mixer=location_aware", paper("mixer=location_aware", "loops in NumPy float64")
    compare(*row, outputs=(found, expected))


def test_coverage_equals_the_papers_equations():
    """See et al. 2017, equations 10 and 11, in float64."""
    alignment = Coverage(*SIZES, normalizer=Softmax(2.0))
    params, (q, k, _) = drawn(alignment.parameters()), vectors()
    w = {key: np.float64(p) for key, p in params.items()}
    valid = np.arange(S) < np.array([[S], [5]])
    found = np.asarray(compiled(alignment, params, q, k, padding(jnp.asarray(valid))))
    q, k, expected = np.float64(q), np.float64(k), np.zeros(found.shape)
    for b, h in itertools.product(range(B), range(H)):
        covered = np.zeros(S)
        for i in range(T):
            hidden = q[i, b, 0, h] @ w["query"][h] + k[b, :, h // 2] @ w["key"][h // 2]
            hidden += covered[:, None] * w["coverage"][h] + w["bias"][h]
            a = np.exp(2.0 * np.tanh(hidden) @ w["vector"][h]) * valid[b]
            covered += a / a.sum()
            np.testing.assert_allclose(found[i, b, h], a / a.sum(), rtol=2e-5, atol=1e-7)
            expected[i, b, h] = a / a.sum()
    row = "mixer=coverage", paper("mixer=coverage", "loops in NumPy float64")
    compare(*row, outputs=(found, expected))


def test_keys_share_of_an_energy_is_remembered():
    """What is looked at once for all queries is not looked at for each."""
    _, k, _ = vectors()
    for name, heads in (("additive", K), ("concat", H)):
        params = drawn(CONTENTS[name].parameters())
        memory = jax.eval_shape(CONTENTS[name].precompute_keys, params, k)
        assert memory["hidden"].shape == (B, S, heads, A)
        assert memory.keys() == {"hidden"}


def test_location_aware_depends_on_the_weights_before():
    alignment = STATEFUL["location-aware"]
    params, (q, k, _) = drawn(alignment.parameters()), vectors()
    weights = np.asarray(compiled(alignment, params, np.stack([q[0]] * T), k))
    assert np.abs(weights[1] - weights[0]).max() > 1e-2
    blind = {**params, "location": np.zeros_like(params["location"])}
    weights = np.asarray(compiled(alignment, blind, np.stack([q[0]] * T), k))
    np.testing.assert_allclose(weights[1], weights[0], rtol=1e-5)


@kinds
def test_what_padding_holds_changes_nothing(alignment):
    params, (q, k, _) = drawn(alignment.parameters()), vectors()
    valid = np.arange(S) < np.array([[S], [4]])
    mask = padding(jnp.asarray(valid))
    weights = np.asarray(compiled(alignment, params, q, k, mask))
    other = np.where(valid[..., None, None], k, np.float32(1e3))
    assert np.array_equal(weights, compiled(alignment, params, q, other, mask))
    short = np.asarray(compiled(alignment, params, q, k[:, :4]))
    np.testing.assert_allclose(weights[:, 1, :, :4], short[:, 1], atol=1e-6)
    assert not weights[:, 1, :, 4:].any()


@ends
def test_populations_and_gradients(alignment):
    params, (q, k, _) = drawn(alignment.parameters()), vectors()

    def loss(params, q, k):
        weights = steps(alignment, params, q, k)
        return (weights * jnp.cos(jnp.arange(weights.size)).reshape(weights.shape)).sum()

    # A population of four, the last two moved along a direction to compare the gradient with a
    # difference. (A smaller step rounds more than it gains.)
    way, step = drawn(alignment.parameters(), 5), 1e-2
    population = jax.tree.map(
        lambda p, w: np.stack([p, 0.5 * p, p + step * w, p - step * w]).astype(np.float32),
        params,
        way,
    )
    gradient = jax.value_and_grad(loss, (0, 1, 2))
    run = jax.jit(jax.vmap(gradient, (0, None, None)))
    values, grads = jax.device_get(run(population, q, k))
    for leaf in jax.tree.leaves(grads):
        assert np.isfinite(leaf).all() and np.abs(leaf[0]).max() > 1e-5
    slope = sum((grads[0][n][0] * way[n]).sum() for n in way)
    np.testing.assert_allclose(slope, (values[2] - values[3]) / (2 * step), rtol=2e-2, atol=2e-3)
    for member in (0, 1):
        one = {name: p[member] for name, p in population.items()}
        weights = np.asarray(compiled(alignment, one, q, k))
        alone = (weights * np.cos(np.arange(weights.size)).reshape(weights.shape)).sum()
        np.testing.assert_allclose(values[member], alone, rtol=1e-4, atol=1e-5)
    assert abs(values[1] - values[0]) > 1e-4


def mixer_of(alignment, **options):
    return Stepwise(M, H, K, D, alignment, **options)


def sequence(length=9):
    return np.float32(np.random.default_rng(3).normal(size=(B, length, M)))


@ends
def test_chunks_equal_the_whole(alignment):
    mixer, x = mixer_of(alignment, use_bias=True), sequence()

    @jax.jit
    def run(params, x):
        # The state may have been made for more than comes.
        state, fed = mixer.init_state(B, 12, x.dtype), []
        structure = jax.eval_shape(lambda: state)
        for start, size in ((0, 4), (4, 1), (5, 4)):
            state, y = mixer.extend(params, state, x[:, start : start + size])
            assert jax.eval_shape(lambda s=state: s) == structure
            fed.append(y)
        return jnp.concatenate(fed, 1), mixer(params, x)

    found, expected = run(drawn(mixer.parameters()), x)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(expected).max() > 0.1
    assert state_bytes(mixer, B, 12, "bfloat16") < state_bytes(mixer, B, 12, "float32")


@ends
def test_outputs_see_exactly_the_past(alignment):
    mixer, x = mixer_of(alignment), sequence(6)
    params = jax.tree.map(jnp.asarray, drawn(mixer.parameters()))
    weight = np.float32(np.random.default_rng(0).normal(size=(6, B, M)))

    @jax.jit
    def influence(x):
        _, back = jax.vjp(lambda x: jnp.moveaxis(mixer(params, x), 1, 0), x)
        one = jnp.eye(6)[..., None, None]
        return jnp.abs(jax.lax.map(lambda at: back(at * weight)[0], one)).max((1, 3))

    found = np.asarray(influence(x))
    past = np.tri(6, dtype=bool)
    assert not found[~past].any()
    assert found[past].min() > 1e-4 * found.max()


@ends
def test_padding_of_a_sequence_changes_nothing(alignment):
    mixer, x = mixer_of(alignment), sequence(6)
    params = jax.tree.map(jnp.asarray, drawn(mixer.parameters()))
    masked = jax.jit(lambda x, valid: mixer(params, x, mask=padding(valid)))

    def forward(x, valid, noise):
        return np.asarray(masked(np.where(valid[..., None], x, np.float32(noise)), valid))

    valid = np.arange(6) < np.array([[6], [4]])
    y = forward(x, valid, 1)
    assert np.array_equal(y[1, :4], forward(x, valid, 50)[1, :4])
    plain = np.asarray(jax.jit(mixer)(params, x))
    np.testing.assert_allclose(y[0], plain[0], atol=1e-5)
    np.testing.assert_allclose(y[1, :4], plain[1, :4], atol=1e-5)
    # Padding in front: no query reads it.
    late = np.arange(6) >= np.array([[0], [2]])
    assert np.array_equal(forward(x, late, 1)[1, 2:], forward(x, late, 50)[1, 2:])


@ends
def test_bfloat16_is_near_float32(alignment):
    mixer, x = mixer_of(alignment), sequence()

    @jax.jit
    def run(params, x):
        narrow = x.astype(jnp.bfloat16)
        state, first = mixer.extend(params, mixer.init_state(B, 9, jnp.bfloat16), narrow[:, :4])
        return mixer(params, x), mixer(params, narrow), first, state["alignment"]

    found = run(drawn(mixer.parameters(), scale=0.4), x)
    exact, low, first, kept = jax.device_get(found)
    assert low.dtype == first.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(kept))
    for narrow, expected in ((low, exact), (first, exact[:, :4])):
        error = np.sqrt(np.mean((np.asarray(narrow, np.float32) - expected) ** 2))
        assert error < 0.05 * exact.std()


def test_stepwise_content_is_causal_attention():
    """Against the whole-sequence reference: the same projections and parameters."""
    mixer, x = mixer_of(CONTENTS["additive"]), sequence()

    @jax.jit
    def run(params, x):
        q, k, v = (jnp.einsum("btm,mhd->bthd", x, params[n]) for n in ("query", "key", "value"))
        learned = (params[f"alignment_score_{n}"] for n in ("query", "key", "vector"))
        parts = Mechanism(Additive(*learned), causal())
        expected = jnp.einsum("bthd,hdm->btm", dense.attend(q, k, v, parts), params["out"])
        weights = mixer.attention_trace(params, x).weights, dense.weights(q, k, parts)
        return (mixer(params, x), expected), weights

    outs, weights = run(drawn(mixer.parameters()), x)
    np.testing.assert_allclose(*outs, atol=1e-5)
    np.testing.assert_allclose(*weights, atol=1e-6)


def test_heads_read_the_values_that_they_share():
    weights = np.float32(np.random.default_rng(0).uniform(size=(B, H, S)))
    v = vectors()[2]
    expected = np.zeros((B, 1, H, D + 1))
    for b, h, s in itertools.product(range(B), range(H), range(S)):
        expected[b, 0, h] += float(weights[b, h, s]) * np.float64(v[b, s, h // (H // K)])
    np.testing.assert_allclose(jax.jit(weighted_sum)(weights, v), expected, rtol=1e-5, atol=1e-6)


@kinds
def test_mixers_are_static_and_described(alignment):
    mixer = mixer_of(alignment, init_stddev=0.05)
    assert hash(mixer) == hash(mixer_of(dataclasses.replace(alignment), init_stddev=0.05))
    described = mixer.parameters()
    params = jax.eval_shape(lambda: init_params(mixer, jax.random.key(0)))
    for name, p in described.items():
        assert params[name].shape == p.shape and params[name].dtype == jnp.float32
        assert len(p.axes.names) == len(p.shape)
    assert described["query"].init.stddev == 0.05


def test_filters_have_a_middle():
    with pytest.raises(ValueError, match="filter_length = 4; it must be odd"):
        LocationAware(*SIZES, filter_length=4)


def test_options_choose_the_alignment():
    def made(mixer, **extra):
        return make_mixer(width=M, num_heads=H, max_length=S, mixer=mixer, **extra)

    found = made("location_aware", normalizer="smoothed", score_width=A, filter_length=5)
    assert found.alignment == LocationAware(H, H, M // H, A, filter_length=5, normalizer=Smoothed())
    assert made("location_aware", sharpening=2.0).alignment.normalizer == Softmax(2.0)
    assert made("coverage", score_width=A).alignment == Coverage(H, H, M // H, A)
    assert made("monotonic").alignment == Monotonic(H, H, 2, 2, waits=True)
    assert made("monotonic_chunkwise", chunk=3).alignment.chunk == 3
    assert made("monotonic", use_bias=True, head_width=5).parameters()["out"].shape == (H, 5, M)
    with pytest.raises(OptionError, match="filter_length = 4: must be odd"):
        made("location_aware", filter_length=4)
    # What a decoder reads with does not wait: its memory is all there.
    spec = mixer_spec(width=M, num_heads=H, max_length=S, mixer="monotonic")
    assert make_alignment(spec.options, spec.context) == Monotonic(H, H, 2, 2)
    spec = mixer_spec(width=M, num_heads=H, max_length=S, mask="full", predicted_window=2)
    assert make_alignment(spec.options, spec.context).mechanism.focus.size == 2
