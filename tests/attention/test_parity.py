"""Parity with code that is not ours, and with formulas written another way."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.implementations import dense
from research.attention.implementations.attend import IMPLEMENTATIONS, attend
from research.attention.mixers.linear import decay, features
from research.attention.mixers.linear import kernelized as linear
from research.attention.mixers.linear.convolution import (
    SHORT,
    convolve,
    convolve_fft,
    convolve_shifted,
)
from research.attention.mixers.self_attention import SelfAttention
from research.attention.parts import biases, masks, scores
from research.attention.parts.mechanism import Mechanism
from research.attention.parts.positions import rope, sinusoidal
from tests.attention.cases import close, drawn, numbers, qkv, weighted
from tests.parity import compare, of, paper

T, S = 13, 19
# Implementations that run where the tests do. Those for split sequences are blockwise here, which
# test_mixers.py checks.
HERE = [
    n
    for n, found in IMPLEMENTATIONS.items()
    if "cpu" in found.platforms and not found.shards_sequence
]


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("implementation", HERE)
@pytest.mark.parametrize("causal", [False, True])
def test_jax_nn(implementation, causal, kv_heads):
    q, k, v = qkv(T, T, 4, kv_heads, value_width=8)
    mask = masks.causal() if causal else masks.full()

    def ours(q, k, v):
        return attend(q, k, v, Mechanism(mask=mask), implementation=implementation, block_size=8)

    def theirs(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal)

    @jax.jit
    def both(*arrays):
        return [
            jax.grad(lambda *a, f=f: (weighted(f(*a)), f(*a)), (0, 1, 2), has_aux=True)(*arrays)
            for f in (ours, theirs)
        ]

    (gradients, out), (expected, wanted) = both(q, k, v)
    name = "causal" if causal else "full"
    compare(
        f"mixer=softmax, mask={name}, implementation={implementation}",
        of(jax, "jax.nn.dot_product_attention"),
        outputs=(out, wanted),
        gradients=dict(zip("qkv", zip(gradients, expected, strict=True), strict=True)),
    )


@pytest.mark.parametrize("implementation", HERE)
def test_torch(implementation):
    torch = pytest.importorskip("torch")
    q, k, v = qkv(T, S, 4, 2)
    visible = masks.window(6)(np.arange(S - T, S)[:, None], np.arange(S)[None])
    tensors = [torch.tensor(np.asarray(x)).requires_grad_() for x in (q, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in tensors),
        attn_mask=torch.tensor(np.asarray(visible)),
        enable_gqa=True,
    ).transpose(1, 2)
    out.square().sum().backward()

    def loss(q, k, v):
        options = {"q_index": np.arange(S - T, S), "block_size": 8}
        y = attend(
            q, k, v, Mechanism(mask=masks.window(6)), implementation=implementation, **options
        )
        return jnp.sum(y * y), y

    grads, y = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    compare(
        "mask=window, num_kv_heads=2",
        of(torch, "scaled_dot_product_attention"),
        outputs=(y, out),
        gradients={n: (g, x.grad) for n, g, x in zip("qkv", grads, tensors, strict=True)},
    )


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_weights_and_scores_by_loops():
    q, k, _ = qkv(T, S, 4, 2)
    nq, nk = np.asarray(q), np.asarray(k)
    raw = np.zeros((2, 4, T, S))
    for b, h, t, s in np.ndindex(raw.shape):
        raw[b, h, t, s] = nq[b, t, h] @ nk[b, s, h // 2]
    lengths = np.linalg.norm(nq, axis=-1).transpose(0, 2, 1)[..., None]
    lengths = lengths * np.repeat(np.linalg.norm(nk, axis=-1), 2, -1).transpose(0, 2, 1)[:, :, None]

    @jax.jit
    def run(q, k):
        return (
            dense.weights(q, k, Mechanism(scores.dot())),
            dense.weights(q, k),
            dense.weights(q, k, Mechanism(scores.cosine(0.2))),
            dense.weights(q, k, Mechanism(biases=(biases.softcap(1.5),))),
        )

    capped = 1.5 * np.tanh(raw / math.sqrt(8) / 1.5)
    rows = (raw, raw / math.sqrt(8), raw / lengths / 0.2, capped)
    close(run(q, k), tuple(map(softmax, rows)))
    with pytest.raises(ValueError, match="temperature = 0.0"):
        scores.cosine(0.0)
    with pytest.raises(ValueError, match="cap = -1.0"):
        biases.softcap(-1.0)


def test_attention_of_normalized_queries_and_keys_by_loops():
    """RMSNorm of each head's query and key, with gains, then attention, in float64."""
    layer = SelfAttention(6, 4, 2, 3, qk_norm="rms", norm_epsilon=1e-2)
    params, x = numbers(layer), np.random.default_rng(3).normal(size=(2, T, 6))
    q, k, v = (np.einsum("btm,mhd->bthd", x, params[n]) for n in ("query", "key", "value"))
    for name, vectors in (("query", q), ("key", k)):
        for at in np.ndindex(vectors.shape[:3]):
            size = math.sqrt(sum(vectors[at] ** 2) / 3 + 1e-2)
            vectors[at] = vectors[at] / size * params[f"{name}_scale"]
    out = np.zeros(q.shape)
    for b, t, h in np.ndindex(out.shape[:3]):
        seen = slice(t + 1)
        out[b, t, h] = softmax(k[b, seen, h // 2] @ q[b, t, h] / math.sqrt(3)) @ v[b, seen, h // 2]
    expected = np.einsum("bthd,hdm->btm", out, params["out"])
    close(jax.jit(layer.__call__)(drawn(layer), jnp.asarray(x, jnp.float32)), expected, 1e-5)


def test_alibi_slopes_are_those_published():
    # Section 3 of the paper gives those for 8 and 16 heads; 12 are those of the authors' code.
    assert biases.alibi(8).slopes == tuple(2.0**-n for n in range(1, 9))
    assert biases.alibi(16).slopes == pytest.approx([2.0 ** (-n / 2) for n in range(1, 17)])
    twelve = [2.0**-n for n in range(1, 9)] + [2.0 ** -(n + 0.5) for n in range(4)]
    assert biases.alibi(12).slopes == pytest.approx(twelve)
    with pytest.raises(ValueError, match="num_heads = 0"):
        biases.alibi(0)


def test_alibi_by_loops():
    q, k, _ = qkv(T, S, 3, 3)
    penalty = np.zeros((3, T, S))
    for h, t, s in np.ndindex(penalty.shape):
        penalty[h, t, s] = [2**-4, 2**-8, 2**-2][h] * abs(t + S - T - s)
    mechanism = Mechanism(biases=(biases.alibi(3),))

    @jax.jit
    def run(q, k):
        raw = scores.grouped_dot(*scores.scaled_dot().as_dot(q, k))
        return raw, dense.weights(q, k, mechanism, q_index=np.arange(S - T, S))

    raw, weights = run(q, k)
    close(weights, softmax(np.asarray(raw) - penalty))


def test_rope_is_a_rotation_of_complex_numbers():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, T, 3, 10)), jnp.float32)
    positions = np.arange(T) * 7 + 2
    pairs = np.asarray(x)[..., :5] + 1j * np.asarray(x)[..., 5:]
    for i in range(5):
        pairs[..., i] *= np.exp(1j * positions * 500.0 ** (-2 * i / 10))[None, :, None]
    close(
        jax.jit(lambda x: rope(x, positions, 500.0))(x),
        np.concatenate([pairs.real, pairs.imag], -1),
    )
    with pytest.raises(ValueError, match="head width = 9"):
        rope(x[..., :9], positions)


def test_rope_scores_depend_on_distance_only():
    q, k, _ = qkv(T, T, 4, 4)
    here, there = np.arange(T), np.arange(T) + 29

    @jax.jit
    def run(q, k, q_index, k_index):
        return scores.grouped_dot(rope(q, q_index), rope(k, k_index))

    plain = np.asarray(run(q, k, here, here))
    close(run(q, k, there, there), plain)
    # A shift of the queries alone does change them.
    assert np.abs(run(q, k, there, here) - plain).max() > 0.1


def test_sinusoidal_table():
    expected = np.zeros((5, 6))
    for t in range(5):
        for i in range(3):
            angle = t / 10000 ** (2 * i / 6)
            expected[t, 2 * i : 2 * i + 2] = math.sin(angle), math.cos(angle)
    row = "position=sinusoidal", paper("position=sinusoidal", "loops in float64")
    compare(*row, outputs=(sinusoidal(5, 6), expected), tolerance=1e-6)


@pytest.mark.parametrize(("length", "taps"), [(9, 1), (9, 4), (9, 9), (9, 14), (40, 33)])
def test_convolution_is_numpys(length, taps):
    draw = np.random.default_rng(0)
    x, h = (np.float32(draw.normal(size=shape)) for shape in ((2, length, 3), (taps, 3)))
    expected = np.zeros(x.shape)
    for b in range(2):
        for m in range(3):
            expected[b, :, m] = np.convolve(x[b, :, m], h[:, m])[:length]
    ways = (convolve, convolve_shifted, convolve_fft)
    for found in jax.jit(lambda x, h: [way(x, h) for way in ways])(x, h):
        close(found, expected, 1e-5)
    assert SHORT < 33  # so that both ways were taken by ``convolve``


# The sums over no keys.
EMPTY = tuple(jnp.asarray(np.zeros(shape, np.float32)) for shape in ((2, 4, 8, 6), (2, 4, 8)))


def test_linear_attention_is_its_equation():
    """Equation 8 of the paper, with equation 7 as features, by loops in float64."""
    q, k, v = qkv(T, T, 4, 4)
    pq, pk = (np.where(x > 0, x + 1, np.exp(x)).astype(np.float64) for x in (q, k))
    expected = np.zeros(v.shape)
    for b, t, h in np.ndindex(2, T, 4):
        weight = pk[b, : t + 1, h] @ pq[b, t, h]
        expected[b, t, h] = weight @ np.asarray(v)[b, : t + 1, h] / weight.sum()
    elu = features.Elu()

    @jax.jit
    def run(q, k, v):
        arrays = (elu.queries(q), elu.keys(k), v, EMPTY, elu.epsilon)
        return [linear.normalized(form, *arrays)[1] for form in decay.FORMS.values()]

    for found in run(q, k, v):
        close(found, expected)


@functools.cache
def linear_form(form, **options):
    """Outputs, states and gradients from a state that is not empty."""
    elu = features.Elu()

    def loss(*a):
        state, out = linear.normalized(form, *a, elu.epsilon, **options)
        return weighted(out) + sum(weighted(x) for x in state), (state, out)

    @jax.jit
    def run(q, k, v):
        arrays = (elu.queries(q), elu.keys(k), v)
        reverse = (x[:, ::-1] for x in arrays)
        before = linear.normalized(decay.parallel, *reverse, EMPTY, elu.epsilon)[0]
        return jax.grad(loss, (0, 1, 2, 3), has_aux=True)(*arrays, before)

    return run(*qkv(T, T, 4, 4))


@pytest.mark.parametrize("chunk", [1, 4, 5, 13, 64])
def test_forms_of_linear_attention_agree(chunk):
    expected = linear_form(decay.parallel)
    close(linear_form(decay.chunkwise, chunk=chunk), expected)
    if chunk == 1:
        close(linear_form(decay.recurrent), expected)
