"""Linformer: its equation, what its mixtures may see, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.errors import Unsupported
from research.attention.mixers.linformer import Linformer, attend_projected
from research.attention.parts.masks import causal, full, padding
from tests.parity import compare, paper

B, T, M, H, D, R = 2, 9, 6, 3, 4, 5


def close(actual, expected, tolerance):
    a, e = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * np.abs(e).max(initial=0.1))


def layer(use_bias=False):
    mixer = Linformer(width=M, num_heads=H, head_width=D, max_length=T, rank=R, use_bias=use_bias)
    rng = np.random.default_rng(0)
    params = {n: jnp.float32(0.7 * rng.normal(size=p.shape)) for n, p in mixer.parameters().items()}
    return mixer, params, jnp.float32(rng.normal(size=(B, T, M)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def published(params, x, valid=None):
    """softmax(Q (E K)^T / sqrt(D)) F V, head by head in float64."""
    p = {name: np.asarray(a, np.float64) for name, a in params.items()}
    x, out = np.asarray(x, np.float64), np.zeros(x.shape)
    length = x.shape[1]
    for b in range(x.shape[0]):
        for h in range(H):
            q, k, v = (
                x[b] @ p[name][:, h] + (p[f"{name}_bias"][h] if f"{name}_bias" in p else 0)
                for name in ("query", "key", "value")
            )
            if valid is not None:
                k, v = k * valid[b][:, None], v * valid[b][:, None]
            mixed = p["key_mixture"][:, :length] @ k
            weights = softmax(q @ mixed.T / np.sqrt(D))
            out[b] += weights @ (p["value_mixture"][:, :length] @ v) @ p["out"][h]
    return out + p.get("out_bias", 0)


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("length", [T, 6])
def test_layer_is_the_equation(use_bias, length):
    mixer, params, x = layer(use_bias=use_bias)
    row = "mixer=linformer", paper("mixer=linformer", "in NumPy float64")
    outputs = jax.jit(mixer)(params, x[:, :length]), published(params, x[:, :length])
    compare(*row, outputs=outputs)
    with jax.enable_x64(True):
        wide = {name: np.float64(p) for name, p in params.items()}
        y = jax.jit(mixer)(wide, np.float64(x[:, :length]))
        assert y.dtype == np.float64
        close(y, published(params, x[:, :length]), 1e-12)


def test_identity_mixtures_are_softmax_attention():
    """With as many mixtures as positions, each of one position, against jax.nn."""
    q, k, v = jax.random.normal(jax.random.key(0), (3, B, T, H, D))
    found = jax.jit(attend_projected)(q, k, v, np.eye(T), np.eye(T))
    close(found, jax.nn.dot_product_attention(q, k, v), 1e-5)


def test_padding():
    mixer, params, x = layer(use_bias=True)
    valid = np.arange(T) < np.array([[T], [6]])
    run = jax.jit(lambda x, valid: mixer(params, x, mask=padding(valid)))
    found = np.asarray(run(x, valid))
    close(found, published(params, x, valid), 1e-5)
    # What stands in the padding does not matter; padding at the end is a shorter sequence.
    assert np.array_equal(found[1, :6], run(x.at[1, 6:].set(1e3), valid)[1, :6])
    close(found[1, :6], jax.jit(mixer)(params, x[1:, :6])[0], 1e-5)
    twice = jax.jit(lambda x, one, two: mixer(params, x, mask=padding(one) & full() & padding(two)))
    both = twice(x, valid, valid[::-1])
    close(both, published(params, x, valid & valid[::-1]), 1e-5)
    full_and_none = jax.jit(lambda: (mixer(params, x, mask=full()), mixer(params, x)))
    close(*full_and_none(), 1e-6)


def test_every_output_sees_every_position():
    mixer, params, x = layer()
    grads = jax.jit(jax.jacobian(lambda x: mixer(params, x).sum(-1)))(x)
    influence = np.abs(np.asarray(grads)).max(-1)
    assert influence[0, :, 0].min() > 0 and influence[0, :, 1].max() == 0


def test_what_it_refuses():
    mixer, params, x = layer()
    with pytest.raises(Unsupported, match="mask other than padding; 'softmax' can"):
        mixer(params, x, mask=causal())
    with pytest.raises(Unsupported, match="mask other than padding; 'softmax' can"):
        mixer(params, x, mask=padding(jnp.ones((B, T), bool)) & causal())
    with pytest.raises(Unsupported, match="max_length = 9 positions and got 10"):
        mixer(params, jnp.zeros((B, 10, M)))
    for refuse in (
        lambda: mixer.init_state(B, T, "float32"),
        lambda: mixer.extend(params, None, x),
    ):
        with pytest.raises(Unsupported, match="looks ahead, so it cannot be decoded"):
            refuse()


def test_populations_and_descriptions():
    mixer, params, x = layer(use_bias=True)
    half = {name: 0.5 * p for name, p in params.items()}
    stacked = {name: jnp.stack([p, half[name]]) for name, p in params.items()}
    both, alone = jax.jit(jax.vmap(mixer, (0, None)))(stacked, x), jax.jit(mixer)
    close(both, np.stack([alone(params, x), alone(half, x)]), 1e-5)
    again = Linformer(**vars(mixer))
    assert mixer == again and hash(mixer) == hash(again)
    assert mixer.parameters() == again.parameters()
    for parameter in mixer.parameters().values():
        assert len(parameter.axes.names) == len(parameter.shape)


def test_low_precision():
    mixer, params, x = layer()
    y, exact = jax.jit(mixer)(params, x.astype(jnp.bfloat16)), np.asarray(mixer(params, x))
    assert y.dtype == jnp.bfloat16
    assert np.sqrt(np.mean((np.asarray(y, np.float32) - exact) ** 2)) < 0.05 * exact.std()


def test_mixtures_start_as_large_as_what_they_mix():
    mixture = Linformer(64, 4, 16, 400, 100).parameters()["key_mixture"]
    drawn = mixture.init(jax.random.key(0), mixture.shape, "float32")
    x = jax.random.normal(jax.random.key(1), (400, 64))
    assert float(jnp.std(drawn @ x)) == pytest.approx(1, rel=0.05)
