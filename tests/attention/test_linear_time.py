"""Mixers of linear time, against step-by-step float64 numpy of the papers' equations."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.errors import Unsupported
from research.attention.mixers.linear import decay, features, short_convolution
from research.attention.mixers.mixer import init_params
from research.attention.parts.masks import Padding
from research.attention.registry import MIXERS
from research.attention.spec import make_mixer
from research.options import OptionError, declarations
from tests.attention.cases import close
from tests.attention.test_decay import weighted
from tests.parity import compare, of, paper

B, T, H, D, M = 2, 13, 3, 4, 12

ENTRIES = {
    name: MIXERS[name]
    for name in ("linear", "performer", "based", "retention", "gated_linear", "state_space")
}
CONVOLVED = {name: "short_convolution" in declarations(entry) for name, entry in ENTRIES.items()}


def made(name, **extra):
    """A registered mixer of the sizes of this file."""
    sizes = {"width": M, "num_heads": H, "head_width": D, "max_length": T, "block_size": 5}
    read = {*sizes, "implementation", *declarations(ENTRIES[name])}
    values = sizes | {"implementation": "chunkwise"} | extra
    return make_mixer(mixer=name, **{key: v for key, v in values.items() if key in read})


def mixer_problem(name, **extra):
    """A mixer, parameters of a size that tells everything apart, and an input."""
    mixer = made(name, **extra)
    draw = np.random.default_rng(1)
    params = {
        key: np.float32(0.4 * draw.standard_normal(p.shape))
        for key, p in mixer.parameters().items()
    }
    return mixer, params, np.float32(draw.standard_normal((B, T, M)))


def library(x):
    """NumPy or PyTorch: the equations are written once, and PyTorch differentiates them."""
    return np if isinstance(x, np.ndarray) else sys.modules["torch"]


def silu(x):
    return x / (1 + library(x).exp(-x))


def softplus(x):
    return library(x).log1p(library(x).exp(x))


def projected(p, name, x):
    """Heads (B, T, H, D), through the convolution by its definition if there are taps."""
    xp = library(x)
    y = xp.einsum("btm,mhd->bthd", x, p[name]) + p.get(f"{name}_bias", 0.0)
    if f"{name}_taps" not in p:
        return y
    taps = p[f"{name}_taps"].reshape(-1, *y.shape[2:])
    out = xp.zeros_like(y)
    for t in range(y.shape[1]):
        for n in range(min(len(taps), t + 1)):
            out[:, t] += taps[n] * y[:, t - n]
    if f"{name}_taps_bias" in p:
        out = out + p[f"{name}_taps_bias"].reshape(y.shape[2:])
    return silu(out)


def normalized_sums(q, k, v):
    """sum_s w(q_t, k_s) v_s / sum_s w(q_t, k_s) over s <= t, w(q, k) = q . k."""
    xp = library(v)
    y = xp.zeros_like(v)
    for t in range(v.shape[1]):
        weights = xp.einsum("bhf,bshf->bsh", q[:, t], k[:, : t + 1])
        y[:, t] = xp.einsum("bsh,bshd->bhd", weights, v[:, : t + 1]) / weights.sum(1)[..., None]
    return y


def standardized(y):
    y = y - y.mean(-1, keepdims=True)
    return y / library(y).sqrt((y**2).mean(-1, keepdims=True) + 1e-6)


def turned(x, t):
    """Channels i and i + D/2 as a complex number, times exp(i t base^(-2 i / D))."""
    xp, half = library(x), x.shape[-1] // 2
    z = x[..., :half] + 1j * x[..., half:]
    z = z * xp.asarray(np.exp(1j * t * 10000.0 ** (-np.arange(half) / half)))
    return xp.concatenate([z.real, z.imag], -1)


def linear_reference(p, x, q, k, v):
    xp = library(x)
    return normalized_sums(*(xp.where(z > 0, z + 1, xp.exp(z)) for z in (q, k)), v)


def based_reference(p, x, q, k, v):
    xp, width = library(x), q.shape[-1]
    y = xp.zeros_like(v)
    for t in range(T):
        s = xp.einsum("bhd,bshd->bsh", q[:, t], k[:, : t + 1]) / width**0.5
        w = 1 + s + s**2 / 2
        y[:, t] = xp.einsum("bsh,bshd->bhd", w, v[:, : t + 1]) / w.sum(1)[..., None]
    return y


def performer_reference(p, x, q, k, v):
    xp, width = library(x), q.shape[-1]
    w = xp.asarray(np.array(features.orthogonal_gaussians(0, width, width), np.float64))

    def phi(z):
        z = z / width**0.25
        return xp.exp(xp.einsum("bthd,fd->bthf", z, w) - (z**2).sum(-1, keepdims=True) / 2)

    return normalized_sums(phi(q), phi(k), v)


def retention_reference(p, x, q, k, v):
    xp = library(x)
    memory, y = xp.asarray(np.zeros((B, H, D, D))), xp.zeros_like(v)
    gamma = xp.asarray(1 - 2.0 ** (-5 - np.arange(H)))
    for t in range(T):
        query, key = turned(q[:, t], t), turned(k[:, t], t) / D**0.5
        memory = gamma[:, None, None] * memory + key[..., :, None] * v[:, t][..., None, :]
        y[:, t] = xp.einsum("bhd,bhde->bhe", query, memory)
    return standardized(y) * silu(xp.einsum("btm,mhd->bthd", x, p["gate"]))


def gated_linear_reference(p, x, q, k, v):
    xp = library(x)
    memory, y = xp.asarray(np.zeros((B, H, D, D))), xp.zeros_like(v)
    low = xp.einsum("btr,rhd->bthd", x @ p["decay_in"], p["decay_out"]) + p["decay_bias"]
    alpha = (1 / (1 + xp.exp(-low))) ** (1 / 16)
    for t in range(T):
        memory = alpha[:, t][..., None] * memory + k[:, t][..., None] * v[:, t][..., None, :]
        y[:, t] = xp.einsum("bhd,bhde->bhe", q[:, t] / D**0.5, memory)
    return standardized(y) * silu(xp.einsum("btm,mhd->bthd", x, p["gate"]))


def state_space_reference(p, x, c, b, v):
    xp = library(x)
    dt = softplus(x @ p["step"] + p["step_bias"])
    a = xp.exp(-dt * xp.exp(p["log_rate"]))
    memory, y = xp.asarray(np.zeros((B, H, b.shape[-1], D))), xp.zeros_like(v)
    for t in range(T):
        added = dt[:, t, :, None, None] * b[:, t, :, :, None] * v[:, t][..., None, :]
        memory = a[:, t, :, None, None] * memory + added
        y[:, t] = xp.einsum("bn,bhnd->bhd", c[:, t, 0], memory) + p["skip"][:, None] * v[:, t]
    y = y * silu(xp.einsum("btm,mhd->bthd", x, p["gate"]))
    return y / xp.sqrt((y**2).mean((-2, -1), keepdims=True) + 1e-6)


def published(name, p, x):
    """The layer by its paper's equations, in float64."""
    heads = (projected(p, key, x) for key in ("query", "key", "value"))
    y = library(x).einsum("bthd,hdm->btm", REFERENCES[name](p, x, *heads), p["out"])
    return y + p.get("out_bias", 0.0)


HOW = "in NumPy float64, gradients by PyTorch"
REFERENCES = {
    "linear": linear_reference,
    "performer": performer_reference,
    "based": based_reference,
    "retention": retention_reference,
    "gated_linear": gated_linear_reference,
    "state_space": state_space_reference,
}
PLAIN, RICH = {}, {"use_bias": True, "short_convolution": 3, "feature_width": 2}
RICH |= {"convolution_bias": True}
# Rich is all that plain is, and more. Retention has no convolutions, whatever the options say.
FAST = [("linear", PLAIN), ("retention", PLAIN)] + [(name, RICH) for name in ENTRIES]
CASES = [
    pytest.param(name, extra, id=f"{name}{len(extra)}", marks=marks)
    for extra in (PLAIN, RICH)
    for name in ENTRIES
    for marks in [() if (name, extra) in FAST else pytest.mark.slow]
]
cases = pytest.mark.parametrize(("name", "extra"), CASES)


SIZES = (6, 1, 1, 4, 1)
"""The chunks that a sequence is fed in."""


@functools.partial(jax.jit, static_argnums=0)
def whole(mixer, params, x):
    return mixer(params, x)


@functools.partial(jax.jit, static_argnums=0)
def forms_and_chunks(mixer, params, x):
    """What every form computes, and what comes of feeding the sequence in chunks."""
    extend, state, fed = jax.jit(mixer.extend), mixer.init_state(B, T, "float32"), []
    kinds = jax.eval_shape(lambda: state)
    for start, size in zip(np.cumsum((0, *SIZES)), SIZES, strict=False):
        state, y = extend(params, state, x[:, start : start + size])
        fed.append(y)
        assert jax.eval_shape(lambda s=state: s) == kinds
    forms = {
        form: dataclasses.replace(mixer, implementation=form)(params, x)
        for form in ENTRIES[mixer.name].implementations
    }
    return forms, jnp.concatenate(fed, 1)


@cases
def test_mixers_are_their_papers_equations(name, extra):
    """In every form, and fed in chunks."""
    if name == "performer" and extra:
        extra = {**extra, "feature_width": 0}
    mixer, params, x = mixer_problem(name, **extra)
    # Retention has none, whatever the options say.
    assert any("taps" in key for key in params) == (bool(extra) and CONVOLVED[name])
    p = {key: np.float64(a) for key, a in params.items()}
    expected = published(name, p, np.float64(x))
    forms, fed = forms_and_chunks(mixer, params, x)
    row = f"mixer={name}", paper(f"mixer={name}", HOW)
    for found in forms.values():
        compare(*row, outputs=(found, expected))
    compare(*row, decoded=(fed, expected))
    for low in (jnp.bfloat16, jnp.float32):
        state = jax.eval_shape(lambda d=low: mixer.init_state(B, T, d))
        assert {a.dtype for a in jax.tree.leaves(state) if a.ndim} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ENTRIES)
def test_gradients_are_those_of_the_equations(name):
    torch = pytest.importorskip("torch")
    mixer, params, x = mixer_problem(name, **RICH | {"feature_width": 0})
    weight = np.cos(np.arange(x.size)).reshape(x.shape)
    wide = {
        n: torch.tensor(np.float64(a), requires_grad=True) for n, a in {**params, "x": x}.items()
    }
    published(name, wide, wide["x"]).backward(torch.tensor(weight))

    def loss(arrays):
        return (mixer(arrays, arrays["x"]) * np.float32(weight)).sum()

    found = jax.jit(jax.grad(loss))({**params, "x": x})
    gradients = {n: (found[n], one.grad) for n, one in wide.items()}
    compare(f"mixer={name}", paper(f"mixer={name}", HOW), gradients=gradients)


@pytest.mark.parametrize("name", ENTRIES)
def test_mixers_compute_in_float64(name):
    """Every form, far closer to single tokens than float32 could be."""
    mixer, params, x = mixer_problem(name)

    @jax.jit
    def run(params, x):
        return {
            form: dataclasses.replace(mixer, implementation=form)(params, x) for form in decay.FORMS
        }

    with jax.enable_x64(True):
        found = jax.device_get(run(*jax.tree.map(np.float64, (params, x))))
    expected = found.pop("recurrent")
    assert expected.dtype == np.float64
    for y in found.values():
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize("name", ENTRIES)
def test_population_axis_and_dtype(name):
    mixer, params, x = mixer_problem(name, **RICH)
    stacked = jax.tree.map(lambda p: np.stack([p, 0.5 * p]), params)

    @jax.jit
    def run(stacked, x):
        one_by_one = jax.lax.map(lambda params: mixer(params, x), stacked)
        return jax.vmap(mixer, (0, None))(stacked, x), one_by_one

    close(*run(stacked, x))
    low = jax.ShapeDtypeStruct(x.shape, jnp.bfloat16)
    assert jax.eval_shape(lambda p, x: mixer(p, x), params, low).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ENTRIES)
def test_mixers_refuse_masks_and_are_hashable(name):
    mixer, params, x = mixer_problem(name)
    with pytest.raises(Unsupported, match=f"mixer '{name}' cannot take a mask.*'softmax' can"):
        mask = Padding(jnp.asarray(np.ones((B, T), bool)))
        jax.eval_shape(lambda p, x: mixer(p, x, mask=mask), params, x)
    assert mixer == made(name)
    assert hash(mixer) == hash(type(mixer)(**vars(mixer)))
    described = mixer.parameters()
    assert described == made(name).parameters()
    params = jax.eval_shape(lambda: init_params(mixer, jax.random.key(0)))
    for key, a in params.items():
        assert a.shape == described[key].shape
        assert a.dtype == jnp.float32
        assert len(described[key].axes.names) == a.ndim


@pytest.mark.parametrize(
    "name",
    [
        # One without decays and one with; the others are the same forms with other features.
        pytest.param(n, marks=() if n in ("linear", "gated_linear") else pytest.mark.slow)
        for n in ENTRIES
    ],
)
def test_training_memory_is_linear_in_length(name):
    def temporary(length, form):
        mixer = mixer_problem(name, block_size=16, implementation=form)[0]
        params = jax.eval_shape(lambda: init_params(mixer, jax.random.key(0)))
        x = jax.ShapeDtypeStruct((1, length, M), jnp.float32)
        grad = jax.jit(jax.grad(lambda p, x: weighted(mixer(p, x)), (0, 1)))
        analysis = grad.lower(params, x).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert temporary(2048, "chunkwise") < 2.2 * temporary(1024, "chunkwise")
    if name == "linear":
        assert temporary(2048, "parallel") > 3 * temporary(1024, "parallel")


def test_performer_is_strictly_causal():
    mixer, params, x = mixer_problem("performer")
    later = x * np.where(np.arange(T) < 7, 1, 30)[:, None].astype(np.float32)
    first, second = (np.asarray(whole(mixer, params, each)) for each in (x, later))
    np.testing.assert_array_equal(first[:, :7], second[:, :7])


def test_initial_steps_rates_and_decays():
    mixer = made("state_space", num_heads=2000, feature_width=2, width=2, head_width=1)
    params = jax.device_get(jax.jit(lambda: init_params(mixer, jax.random.key(0)))())
    steps = np.log10(softplus(np.float64(params["step_bias"])))
    rates = np.exp(np.float64(params["log_rate"]))
    assert -3.001 < steps.min() < -2.99 and -1.01 < steps.max() < -0.999
    assert 1 <= rates.min() < 1.05 and 15.9 < rates.max() <= 16
    # Uniform: mean and standard deviation of the range.
    np.testing.assert_allclose([steps.mean(), steps.std()], [-2, 2 / 12**0.5], atol=0.05)
    np.testing.assert_allclose([rates.mean(), rates.std()], [8.5, 15 / 12**0.5], atol=0.3)
    assert (params["skip"] == 1).all()


def test_head_widths_that_cannot_be_are_refused():
    with pytest.raises(OptionError, match="head_width = 5: .*pairs"):
        made("retention", head_width=5)
    with pytest.raises(OptionError, match="head_width = 1: .*2 or more"):
        made("gated_linear", head_width=1)


def test_a_bias_without_a_convolution_is_refused():
    with pytest.raises(OptionError, match="convolution_bias = True: .*set short_convolution"):
        made("state_space", convolution_bias=True)


def test_short_convolution_is_that_of_torch():
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(0)
    shapes = (B, T, M), (4, M), (B, 3, M)
    x, taps, past = (jnp.asarray(draw.standard_normal(s), jnp.float32) for s in shapes)
    seen = torch.tensor(np.concatenate([past, x], 1)).transpose(1, 2)
    # torch correlates: its last weight meets the newest input.
    weights = torch.tensor(np.array(taps)[::-1].T.copy())[:, None]
    expected = torch.nn.functional.conv1d(seen, weights, groups=M).transpose(1, 2).numpy()
    apply = jax.jit(short_convolution.apply)
    y, new = apply(x, taps, past)
    row = "short_convolution=4", of(torch, "conv1d")
    compare(*row, outputs=(y, expected), tolerance=1e-6)
    np.testing.assert_array_equal(new, x[:, -3:])
    done, before = 0, past
    for size in (1, 2, 6, 4):
        y, before = apply(np.asarray(x)[:, done : done + size], taps, before)
        close(y, expected[:, done : done + size], 1e-6)
        done += size
    with pytest.raises(ValueError, match="past holds 2 inputs; 4 taps need 3"):
        apply(x, taps, np.asarray(past)[:, 1:])
