"""One case or more to every entry of the registry, built by going through its tables.

What cannot be derived from a name is stated here: the further options an entry needs, and an
independent formula of what a mask allows. ``test_registry.py`` fails if an entry is missing.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from research.attention import registry
from research.attention.mixer import init_params
from research.attention.registry import MIXERS, Options, make_mixer

BATCH, LENGTH, WIDTH, HEADS = 2, 12, 16, 4

# The options a mask needs, and what it allows: f(q, k) on numpy index arrays.
MASK_CASES = {
    "full": ({}, lambda q, k: (q >= 0) & (k >= 0)),
    "causal": ({}, lambda q, k: k <= q),
    "window": ({"window": 5}, lambda q, k: (k <= q) & (q - k < 5)),
    "prefix": ({"prefix_length": 6}, lambda q, k: (k <= q) | ((q < 6) & (k < 6))),
}

BIAS_CASES = {"softcap": {"softcap": 2.0}, "alibi": {"position": "alibi"}}

# Mixers with more than their defaults worth testing. filter_length 0 takes the Fourier transform
# when max_length is above convolution.SHORT, hence the long one.
MIXER_CASES = {
    "softmax": [{}, {"num_kv_heads": 2}, {"num_kv_heads": 1}, {"head_width": 6, "use_bias": True}],
    "linear": [{}, {"block_size": 5}, {"head_width": 6, "use_bias": True}],
    "gated_convolution": [{"filter_length": 3}, {"filter_length": 20, "max_length": 24}, {}],
}


def conformance_cases() -> dict[str, Options]:
    """Every registered mixer, implementation, mask, score, bias, position and normalizer."""
    chosen = [{"mixer": name, **extra} for name in MIXERS for extra in MIXER_CASES[name]]
    for name, entry in MIXERS.items():
        chosen += [{"mixer": name, "implementation": i} for i in entry.implementations]
    chosen += [{"mask": name, **MASK_CASES[name][0]} for name in registry.MASKS]
    chosen += [{"score": name} for name in registry.SCORES]
    chosen += [{"normalizer": name} for name in registry.NORMALIZERS]
    chosen += [{"position": name} for name in registry.POSITIONS]
    chosen += [BIAS_CASES[name] for name in registry.BIASES]
    # Everything at once, on the ring buffer and in blocks.
    ring = {"mask": "window", "window": 5, "position": "rope", "num_kv_heads": 2, "softcap": 2.0}
    chosen += [ring, {**ring, "implementation": "blockwise", "block_size": 5}]
    base = {"width": WIDTH, "num_heads": HEADS, "max_length": LENGTH}
    return {_name(extra): Options(**(base | extra)) for extra in chosen}


def _name(extra: dict) -> str:
    return ",".join(f"{key}={value}" for key, value in extra.items()) or "default"


NAMED = conformance_cases()
# Different options can mean the same mixer; it is tested once.
CASES = {make_mixer(o): (name, o) for name, o in reversed(NAMED.items())}
CASES = dict(reversed(CASES.values()))


def visible(options: Options) -> np.ndarray:
    """Which inputs may influence which outputs, (T, S), from formulas of this module."""
    q, k = np.arange(options.max_length)[:, None], np.arange(options.max_length)[None, :]
    if options.mixer == "gated_convolution":
        return (k <= q) & (q - k < (options.filter_length or options.max_length))
    # The output at a position always depends on the input there, which is its query.
    return MASK_CASES[options.mask][1](q, k) | (q == k)


@functools.cache
def problem(options: Options):
    """The mixer, parameters that tell positions apart, an input, and the compiled call."""
    mixer = make_mixer(options)
    params = init_params(mixer, jax.random.key(0))
    params = {
        name: 0.5 * jax.random.normal(jax.random.key(i), p.shape)
        for i, (name, p) in enumerate(params.items())
    }
    x = jax.random.normal(jax.random.key(99), (BATCH, options.max_length, options.width))
    return mixer, params, x, jax.jit(mixer.__call__)


def close(actual, expected, tolerance: float = 2e-5) -> None:
    """Asserts that leaves agree to ``tolerance`` times the largest entry expected, or times 0.1."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a, np.float32), np.asarray(e, np.float32)
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * max(np.abs(e).max(), 0.1))


def qkv(t: int, s: int, heads: int, kv_heads: int, width: int = 8, value_width: int = 6):
    """Random queries, keys and values; the value width differs so that mixing them up shows."""
    keys = jax.random.split(jax.random.key(7), 3)
    return (
        jax.random.normal(keys[0], (BATCH, t, heads, width)),
        jax.random.normal(keys[1], (BATCH, s, kv_heads, width)),
        jax.random.normal(keys[2], (BATCH, s, kv_heads, value_width)),
    )


def weighted(out) -> jax.Array:
    """A scalar that every entry of ``out`` enters with a weight of its own."""
    return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))
