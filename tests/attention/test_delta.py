"""The delta rules: three forms of one recurrence, and the layers around it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.errors import Unsupported
from research.attention.mixers.linear.delta import DeltaNet, GatedDeltaNet
from research.attention.mixers.linear.delta_rule import FORMS
from research.attention.parts.masks import causal

B, T, H, D, E = 2, 13, 3, 5, 4
# Every form, the chunkwise one with chunks that divide 13 and that do not.
RUNS = [("parallel",), ("recurrent",), *(("chunkwise", chunk) for chunk in (1, 5, 13, 64))]
runs = pytest.mark.parametrize("run", RUNS, ids=str)
# The shape of the decays of a token.
KINDS = {"delta": None, "gated": (H,), "by channel": (H, D)}
kinds = pytest.mark.parametrize("kind", KINDS)
mixers = pytest.mark.parametrize("cls", [DeltaNet, GatedDeltaNet])


def problem(kind: str, length: int = T):
    """q, k, v, beta, log decay and an initial memory, in float64."""
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, B, length, H, D))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v, memory = rng.normal(size=(B, length, H, E)), rng.normal(size=(B, H, D, E))
    beta = rng.uniform(size=(B, length, H))
    shape = KINDS[kind]
    return q, k, v, beta, shape and -rng.exponential(size=(B, length, *shape)), memory


def equation(q, k, v, beta, log_decay, memory):
    """S_t = S_{t-1} diag(a_t) (I - b_t k_t k_t^T) + b_t v_t k_t^T and y_t = S_t q_t.

    As published, with one a_t for a head or one for each channel of its keys.
    """
    out, final = np.zeros(v.shape), np.zeros(memory.shape)
    for b, h in np.ndindex(*memory.shape[:2]):
        s = memory[b, h].T.astype(np.float64)
        for t in range(q.shape[1]):
            key, rate = k[b, t, h].astype(np.float64), float(beta[b, t, h])
            a = 1.0 if log_decay is None else np.exp(log_decay[b, t, h].astype(np.float64))
            s = (s * a) @ (np.eye(len(key)) - rate * np.outer(key, key))
            s = s + rate * np.outer(v[b, t, h], key)
            out[b, t, h] = s @ q[b, t, h]
        final[b, h] = s.T
    return final, out


def loss_of(memory, out):
    """A scalar that every entry enters with a weight of its own; for jax and numpy arrays."""
    return sum((np.cos(np.arange(x.size)).reshape(x.shape) * x).sum() for x in (memory, out))


@functools.cache
def compiled(form, chunk=None):
    """The form, and the gradients of its loss with respect to whatever of the arrays there is."""
    options = {"chunk": chunk} if chunk else {}

    def run(arrays):
        found = FORMS[form](*arrays, **options)
        return loss_of(*found), found

    def both(arrays):
        (_, found), grads = jax.value_and_grad(run, has_aux=True)(arrays)
        return found, grads

    return jax.jit(both)


def close(actual, expected, tolerance):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * np.abs(e).max(initial=0.1))


@kinds
def test_forms_are_the_equation(kind):
    """In values, and in gradients against central differences of the loops."""
    arrays = problem(kind)
    with jax.enable_x64(True):
        found = {run: jax.tree.map(np.asarray, compiled(*run)(arrays)) for run in RUNS}
    expected, (_, reference) = equation(*arrays), found[("recurrent",)]
    for values, grads in found.values():
        assert values[0].dtype == values[1].dtype == np.float64
        close(values, expected, 1e-12)
        close(grads, reference, 1e-11)
    rng = np.random.default_rng(1)
    for i, array in enumerate(arrays):
        if array is None:
            continue
        step = 1e-6 * rng.normal(size=array.shape)
        ahead, behind = (
            loss_of(*equation(*arrays[:i], array + sign * step, *arrays[i + 1 :]))
            for sign in (1, -1)
        )
        assert np.sum(reference[i] * step) == pytest.approx((ahead - behind) / 2, rel=1e-6)


def extreme(name: str, shape: tuple[int, ...]):
    length = shape[1]
    log = {
        "none": np.zeros(length),
        "gentle": np.full(length, -1e-8),
        "total": np.full(length, -1e4),
        "sudden": np.where(np.arange(length) == 3, -1e4, -1e-3 * np.arange(length)),
        "strong then gentle": np.where(np.arange(length) < length // 2, -16.0, -1e-3),
    }[name]
    log = np.broadcast_to(log.reshape(-1, *[1] * (len(shape) - 2)), shape).copy()
    if len(shape) == 4:  # every other channel keeps everything
        log[..., 1::2] = 0
    return log


@pytest.mark.parametrize("kind", ["gated", "by channel"])
@pytest.mark.parametrize("name", ["none", "gentle", "total", "sudden", "strong then gentle"])
@pytest.mark.parametrize("run", [("parallel",), ("recurrent",), ("chunkwise", 32)], ids=str)
def test_extreme_decays(run, name, kind):
    """In float32: right, not only finite. Sums of logs lose what is small after a large one."""
    arrays = list(problem(kind, 70))
    arrays[4] = extreme(name, arrays[4].shape)
    arrays = tuple(np.asarray(a, np.float32) for a in arrays)
    found, grads = compiled(*run)(arrays)
    close(found, equation(*arrays), 3e-6)
    assert all(np.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize(("low", "tolerance"), [(0.95, 1e-5), (1.95, 3e-4)])
def test_nearly_equal_keys(low, tolerance):
    """In float32: powers of a chunk's system grow as binomials do; the result is not to show it.

    Where nearly equal keys reflect the memory at every token, a digit is lost.
    """
    arrays = list(problem("delta", 70))
    rng = np.random.default_rng(2)
    arrays[1] = arrays[1][:, :1] + 0.02 * rng.normal(size=arrays[1].shape)
    arrays[1] /= np.linalg.norm(arrays[1], axis=-1, keepdims=True)
    arrays[3] = rng.uniform(low, low + 0.05, size=arrays[3].shape)
    arrays = tuple(a if a is None else np.float32(a) for a in arrays)
    for run in (("parallel",), ("chunkwise", 32)):
        close(compiled(*run)(arrays)[0], equation(*arrays), tolerance)


@runs
def test_a_key_is_overwritten(run):
    """With beta 1 the memory holds for a key what it was last written, whatever was before."""
    q, k, v, beta, _, memory = problem("delta")
    k = np.broadcast_to(k[:, :1], k.shape)
    with jax.enable_x64(True):
        (_, out), _ = compiled(*run)((k, k, v, np.ones_like(beta), None, memory))
    close(out, v, 1e-12)


def layer(cls, options):
    """A mixer, parameters that are not near zero, and an input."""
    mixer = cls(width=6, num_heads=H, head_width=D, **options)
    rng = np.random.default_rng(0)
    params = {
        name: np.float32(0.7 * rng.normal(size=p.shape)) for name, p in mixer.parameters().items()
    }
    return mixer, params, np.float32(rng.normal(size=(B, T, 6)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def published(mixer, params, x):
    """The layer in float64, token by token."""
    p = {name: np.asarray(a, np.float64) for name, a in params.items()}
    x = np.asarray(x, np.float64)
    arrays = {}
    for name in ("query", "key", "value"):
        y = np.einsum("btm,mhd->bthd", x, p[name]) + p.get(f"{name}_bias", 0)
        if mixer.short_convolution:
            taps, before = p[f"{name}_taps"].reshape(-1, H, D), y
            y = np.zeros_like(before)
            for t in range(T):
                for n in range(min(t + 1, len(taps))):
                    y[:, t] += taps[n] * before[:, t - n]
        arrays[name] = y * sigmoid(y)
    for name in ("query", "key"):
        a = arrays[name]
        arrays[name] = a / np.sqrt((a * a).sum(-1, keepdims=True) + 1e-6)
    # The norm of the outputs would hide it, but for its epsilon.
    arrays["query"] = arrays["query"] / np.sqrt(D)
    log = None
    if isinstance(mixer, GatedDeltaNet):
        log = -np.exp(p["log_rate"]) * np.log1p(np.exp(x @ p["step"] + p["step_bias"]))
    _, y = equation(*arrays.values(), sigmoid(x @ p["beta"]), log, np.zeros((B, H, D, D)))
    y = y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-6)
    if isinstance(mixer, GatedDeltaNet):
        gate = np.einsum("btm,mhd->bthd", x, p["gate"])
        y = y * gate * sigmoid(gate)
    return np.einsum("bthd,hdm->btm", y, p["out"]) + p.get("out_bias", 0)


LAYERS = [
    {"short_convolution": 3, "use_bias": True, "block_size": 4},
    {"implementation": "parallel", "short_convolution": 1},
    {"implementation": "recurrent"},
]


@mixers
@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_layer_is_the_published_one(cls, options):
    mixer, params, x = layer(cls, options)
    expected = published(mixer, params, x)
    with jax.enable_x64(True):
        wide = {name: np.float64(p) for name, p in params.items()}
        close(jax.jit(mixer)(wide, np.float64(x)), expected, 1e-11)


@mixers
@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_decoding_equals_the_whole(cls, options):
    mixer, params, x = layer(cls, options)

    @jax.jit
    def run(params, x):
        extend, fed = jax.jit(mixer.extend), []
        state = mixer.init_state(B, T, x.dtype)
        structure = jax.eval_shape(lambda: state)
        for start, size in ((0, 6), (6, 1), (7, 6)):
            state, y = extend(params, state, x[:, start : start + size])
            fed.append(y)
            assert jax.eval_shape(lambda s=state: s) == structure
        return jnp.concatenate(fed, 1), mixer(params, x)

    found, expected = run(params, x)
    close(found, expected, 2e-5)


@mixers
def test_low_precision_keeps_a_wide_state(cls):
    mixer, params, x = layer(cls, {"short_convolution": 3, "block_size": 5})

    @jax.jit
    def run(params, x):
        state = mixer.init_state(B, T, jnp.bfloat16)
        return *mixer.extend(params, state, x.astype(jnp.bfloat16)), mixer(params, x)

    new, y, exact = jax.device_get(run(params, x))
    assert y.dtype == jnp.bfloat16
    assert {a.dtype.name for a in jax.tree.leaves(new)} == {"float32"}
    assert np.sqrt(np.mean((np.asarray(y, np.float32) - exact) ** 2)) < 0.05 * exact.std()


@mixers
def test_populations_and_descriptions(cls):
    mixer, params, x = layer(cls, {"short_convolution": 2, "use_bias": True, "block_size": 5})
    half = {name: 0.5 * p for name, p in params.items()}
    stacked = {name: np.stack([p, half[name]]) for name, p in params.items()}
    both, alone = jax.jit(jax.vmap(mixer, (0, None)))(stacked, x), jax.jit(mixer.__call__)
    close(both, np.stack([alone(params, x), alone(half, x)]), 2e-5)
    again = cls(**vars(mixer))
    assert mixer == again and hash(mixer) == hash(again)
    assert mixer.parameters() == again.parameters()
    for parameter in mixer.parameters().values():
        assert len(parameter.axes.names) == len(parameter.shape)
    with pytest.raises(Unsupported, match=f"'{mixer.name}' cannot take a mask .* 'softmax' can"):
        jax.eval_shape(lambda p, x: mixer(p, x, mask=causal()), params, x)


@pytest.mark.parametrize("cls", [pytest.param(DeltaNet, marks=pytest.mark.slow), GatedDeltaNet])
def test_memory_is_linear_in_length(cls):
    """Forward and backward, of the chunkwise form."""

    def size(length):
        mixer, params, _ = layer(cls, {"short_convolution": 2, "block_size": 16})
        loss = jax.grad(lambda params, x: mixer(params, x).sum(), (0, 1))
        lowered = jax.jit(loss).lower(params, jax.ShapeDtypeStruct((1, length, 6), jnp.float32))
        analysis = lowered.compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert 0 < size(2048) < 2.2 * size(1024)


@mixers
def test_a_silent_input_has_finite_gradients(cls):
    mixer, params, x = layer(cls, {"short_convolution": 2, "block_size": 5})
    grads = jax.jit(jax.grad(lambda p, x: mixer(p, x).sum(), (0, 1)))(params, 0 * x)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
