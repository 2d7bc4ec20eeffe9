"""Gated convolution: three forms of one causal convolution, and the layer around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.errors import Unsupported
from research.attention.mixers.linear.convolution import FORMS, SHORT, GatedConvolution, convolve
from research.attention.parts.masks import causal
from tests.parity import compare, paper

B, T, M = 2, 23, 3
# Taps that are few, that are many enough for the Fourier transform, and more than there are tokens.
TAPS = [1, 4, SHORT + 3, T + 5]
RUNS = [("parallel", {}), ("recurrent", {}), *(("chunkwise", {"chunk": c}) for c in (1, 5, 23, 0))]


def close(actual, expected, tolerance):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * np.abs(e).max(initial=0.1))


def direct(x, taps, past):
    """numpy's convolution of everything, of which the last T outputs are kept."""
    seen, out = np.concatenate([past, x], axis=1), np.zeros(x.shape)
    for b, m in np.ndindex(x.shape[0], x.shape[2]):
        whole = np.convolve(seen[b, :, m], taps[: past.shape[1] + 1, m])
        out[b, :, m] = whole[past.shape[1] :][: x.shape[1]]
    return seen[:, x.shape[1] :], out


@pytest.mark.parametrize("count", [3, 90])
def test_segments_are_convolved_apart(count):
    """In every form, as numpy's convolution of each segment alone; several levels of blocks."""
    length, starts = 75, ((0, 1, 20, 47), (0, 16, 17, 64))
    rng, index = np.random.default_rng(0), np.arange(75)
    x, taps = rng.normal(size=(B, length, M)), rng.normal(size=(count, M))
    past, expected = np.zeros((B, count - 1, M)), np.zeros_like(x)
    latest = [np.asarray(s)[np.searchsorted(s, index, side="right") - 1] for s in starts]
    for row, first in enumerate(starts):
        for one in map(slice, first, (*first[1:], length)):
            expected[row, one] = direct(x[row : row + 1, one], taps, past[:1])[1][0]

    @jax.jit
    def run(x, taps, past, places):
        options = {"chunkwise": {"chunk": 9}}
        return {
            n: form(x, taps, past, places, **options.get(n, {}))[1] for n, form in FORMS.items()
        }

    with jax.enable_x64(True):
        places = jnp.asarray(index - np.stack(latest), jnp.int32)
        found = jax.device_get(run(x, taps, past, places))
        found["whole"] = jax.device_get(jax.jit(convolve)(x, taps, places))
    for each in found.values():
        close(each, expected, 1e-12)


@pytest.mark.parametrize("count", TAPS)
def test_forms_are_numpys_convolution(count):
    """Values in float64, and gradients against each other, from inputs before that are not zero."""
    rng = np.random.default_rng(0)
    arrays = tuple(rng.normal(size=(B, n, M)) for n in (T, count - 1))
    arrays = arrays[0], rng.normal(size=(count, M)), arrays[1]
    weight = np.cos(np.arange(B * T * M)).reshape(B, T, M)

    def run(form, options, arrays):
        def loss(arrays):
            past, y = FORMS[form](*arrays, **options)
            return (y * weight).sum() + (past * past).sum(), (past, y)

        return jax.jit(jax.grad(loss, has_aux=True))(arrays)

    with jax.enable_x64(True):
        found = [jax.tree.map(np.asarray, run(*r, arrays)) for r in RUNS]
    grads = found[1][0]
    for each in found:
        close(each[1], direct(*arrays), 1e-12)
        close(each[0], grads, 1e-11)
    # Those of the recurrent form against differences of numpy's.
    for i, step in enumerate(1e-6 * rng.normal(size=a.shape) for a in arrays):
        past, y = (
            np.subtract(*pair) / 2
            for pair in zip(
                *(direct(*arrays[:i], arrays[i] + s * step, *arrays[i + 1 :]) for s in (1, -1)),
                strict=True,
            )
        )
        change = (y * weight).sum() + (past * 2 * direct(*arrays)[0]).sum()
        assert np.sum(grads[i] * step) == pytest.approx(change, rel=1e-6, abs=1e-12)


def layer(**options):
    mixer = GatedConvolution(width=M, **options)
    rng = np.random.default_rng(0)
    params = {n: jnp.float32(rng.normal(size=p.shape)) for n, p in mixer.parameters().items()}
    return mixer, params, jnp.float32(rng.normal(size=(B, T, M)))


LAYERS = [
    {"implementation": name, "filter_length": count, **extra}
    for count in (4, T + 5)
    for name, extra in (("parallel", {}), ("chunkwise", {"block_size": 5}), ("recurrent", {}))
]


@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_layer_and_its_decoding(options):
    """The equation with numpy's convolution; token by token, and in chunks, the same."""
    mixer, params, x = layer(**options)
    p = {name: np.asarray(a, np.float64) for name, a in params.items()}
    _, mixed = direct(np.float64(x), p["filter"], np.zeros((B, options["filter_length"] - 1, M)))
    expected = (np.float64(x) @ p["gate"] + p["gate_bias"]) * (mixed + p["filter_bias"])
    row = "mixer=gated_convolution", paper("mixer=gated_convolution", "in NumPy float64")
    compare(*row, outputs=(jax.jit(mixer)(params, x), expected))
    state, done, extend = mixer.init_state(B, T, x.dtype), 0, jax.jit(mixer.extend)
    structure = jax.eval_shape(lambda: state)
    for size in (11, 1, 11):
        state, y = extend(params, state, x[:, done : done + size])
        close(y, expected[:, done : done + size], 1e-5)
        assert jax.eval_shape(lambda s=state: s) == structure
        done += size
    assert done == T


def test_work_of_blocks_is_linear_in_length():
    """Four times the tokens are four times as many blocks, and a block's program is the same."""

    def scan(length):
        mixer, params, _ = layer(filter_length=9, implementation="chunkwise")
        traced = jax.make_jaxpr(mixer)(params, jnp.zeros((1, length, M)))
        (found,) = (e for e in traced.eqns if e.primitive.name == "scan")
        return found.params["length"], str(found.params["jaxpr"])

    (count, block), (more, same) = scan(256), scan(1024)
    assert (count, more) == (4, 16) and block == same


def test_description():
    mixer, params, x = layer(filter_length=4)
    again = GatedConvolution(**vars(mixer))
    assert hash(mixer) == hash(again) and mixer.parameters() == again.parameters()
    with pytest.raises(
        Unsupported, match="'gated_convolution' cannot take a mask .* 'softmax' can"
    ):
        mixer(params, x, mask=causal())
    low = jax.jit(mixer)(params, x.astype(jnp.bfloat16))
    exact = np.asarray(mixer(params, x))
    assert low.dtype == jnp.bfloat16
    assert np.sqrt(np.mean((np.asarray(low, np.float32) - exact) ** 2)) < 0.05 * exact.std()
