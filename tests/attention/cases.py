"""One case or more to every entry of the registry, built by going through its tables.

An option that an entry needs is filled in from ``NEEDS``, so a new entry gets its cases by being
registered; ``test_registry.py`` fails if one has none.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.attention import registry
from research.attention.parts.tables import TABLES
from research.attention.spec import MixerSpec, make_mixer, mixer_spec
from research.options import declarations, has_to_be_set

BATCH, LENGTH, WIDTH, HEADS = 2, 12, 16, 4

# Values for options that an entry needs; 2 for those that are not listed.
NEEDS = {"window": 4, "prefix_length": 5, "stride": 3, "block_length": 3}

# Sizes at which a mixer whose parts are as long as the sequence would have but one of each.
SHORT = {
    "native_sparse": {
        "compress_length": 2,
        "compress_stride": 1,
        "block_length": 2,
        "top_blocks": 4,
        "window": 2,
    }
}

# Selects most keys, so that a query's gradient reaches most.
INDEXED = {"index_top": 5, "index_heads": 3, "index_width": 6}

# Variants worth a case beside each entry at its defaults. The Fourier transform takes filters above
# convolution.SHORT, hence the long one.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "softmax": [
        {"num_kv_heads": 2},
        {"num_kv_heads": 1, "position": "rope"},
        {"head_width": 6, "use_bias": True},
        {"softcap": 2.0},
        {"predicted_window": 3},
        {"talking_heads": True, "position": "alibi"},
        {"output_gate": True, "use_bias": True},
        {"qk_norm": "rms", "position": "rope", "num_kv_heads": 2, "qkv_bias": True},
        {"sharpening": 2.0},
        {"value_residual": "learned", "position": "rope"},
        {"position": "rope", "rope_fraction": 0.5, "rope_scaling": "yarn", "rope_factor": 2.0},
        {"position": "rope", "rope_scaling": "ntk", "rope_factor": 2.0},
        {"position": "rope", "rope_scaling": "linear", "rope_factor": 2.0},
        {"position": "rope", "rope_scaling": "llama3", "rope_factor": 2.0},
        # Everything at once, on the ring buffer and in blocks.
        {"mask": "window", "window": 4, "position": "rope", "num_kv_heads": 2, "softcap": 2.0},
        {
            "mask": "window | causal & global",
            "window": 3,
            "global_tokens": 2,
            "position": "t5",
            "normalizer": "softmax_sink",
            "num_kv_heads": 2,
            "implementation": "blockwise",
        },
        {"mask": "causal & bigbird", "block_length": 3, "score": "general", "num_kv_heads": 2},
        {
            "mask": "window",
            "window": 4,
            "position": "rope",
            "num_kv_heads": 2,
            "forget_gate": True,
            "implementation": "blockwise",
        },
        {
            "mask": "moba",
            "block_length": 4,
            "top_blocks": 2,
            "num_kv_heads": 2,
            "implementation": "blockwise",
        },
        {
            "mask": "window",
            "window": 4,
            "position": "cope",
            "max_contextual_position": 2,
            "normalizer": "stick_breaking",
            "num_kv_heads": 2,
        },
        {"position": "rope", "num_kv_heads": 2, **INDEXED},
        {
            "mask": "window | causal & global",
            "window": 5,
            "global_tokens": 2,
            "index_top": 3,
            "implementation": "blockwise",
        },
        {"selective": True},
        {"score_conv_queries": 3, "score_conv_keys": 4},
        # Without selection: that of convolved scores depends on keys that no later query sees.
        {
            "mask": "window",
            "window": 4,
            "position": "rope",
            "num_kv_heads": 2,
            "score_conv_queries": 2,
            "score_conv_keys": 3,
        },
        {
            "mask": "window",
            "window": 4,
            "position": "rope",
            "num_kv_heads": 2,
            "forget_gate": True,
            "selective": True,
        },
    ],
    "latent": [
        {"position": "rope"},
        {"position": "rope", "rope_width": 2, "query_latent_width": 5, **INDEXED},
        {"latent_width": 3, "mask": "window", "window": 4, "query_latent_width": 5},
        {"mask": "moba", "block_length": 4, "top_blocks": 2},
    ],
    "differential": [{"position": "rope", "num_kv_heads": 2}],
    "native_sparse": [
        {"position": "rope", "num_kv_heads": 2, "compress_length": 4, "compress_stride": 2}
    ],
    "tensor_product": [
        {"position": "rope", "mask": "window", "window": 4, "query_rank": 3, "value_rank": 1}
    ],
    "path": [
        {"num_kv_heads": 2, "turn_rank": 2, "implementation": "blockwise"},
        {"num_kv_heads": 2, "position": "alibi", "forget_gate": True},
    ],
    "linear": [{"short_convolution": 3}],
    "hedgehog": [{"window": 3, "position": "rope"}],
    "retention": [{"value_width": 6}],
    "gated_linear": [{"short_convolution": 3}, {"value_width": 3, "head_width": 6}],
    "state_space": [
        {"short_convolution": 3, "convolution_bias": True},
        {"state_groups": 2, "output_norm_gain": True, "output_norm_epsilon": 0.1},
        {"trapezoidal": True, "rotating": True, "biased_state": True},
        {"log_levels": 3},
        {"log_levels": 64, "rotating": True, "state_groups": 2, "short_convolution": 3},
    ],
    "delta": [{"short_convolution": 3}, {"value_width": 3}],
    "gated_delta": [
        {"short_convolution": 3},
        {"short_convolution": 3, "value_width": 6},
        {"num_key_heads": 2, "output_norm_gain": True, "output_norm_epsilon": 0.1},
        {"log_levels": 64, "num_key_heads": 2, "value_width": 6},
    ],
    "kimi_delta": [{"short_convolution": 3}, {"short_convolution": 3, "value_width": 6}],
    "delta_product": [
        {"short_convolution": 3, "householder_steps": 3, "gated": True},
        {"value_width": 6, "gated": True},
    ],
    "gated_convolution": [{"filter_length": 3}, {"filter_length": 20, "max_length": 24}],
}

# Mixers that take a mask beyond their own.
PADDABLE = (
    "softmax",
    "latent",
    "differential",
    "tensor_product",
    "path",
    "location_aware",
    "coverage",
    "monotonic",
    "monotonic_chunkwise",
    "linformer",
)

# Parts and mixers that cannot keep segments apart.
MIXING = ("linformer", "moba", "native_sparse")

# What gives visible keys a weight of exactly zero; which ones depends on the numbers.
SPARSE = {"normalizer": ("sparsemax", "entmax15", "squared_relu", "softpick"), "mask": ("moba",)}
SELECTING = ("predicted_window", "index_top")  # options

# Implementations that need a device or a length that these tests do not have.
ELSEWHERE = ("jax_cudnn", "splash")


def conformance_cases() -> dict[str, MixerSpec]:
    """Every registered mixer, mask, score, position and normalizer, by its options.

    Implementations are compared with each other in a test of their own; a mixer that is the same as
    another in one of them has its properties.
    """
    chosen = []
    for name, entry in registry.MIXERS.items():
        first = {"mixer": name} if entry.causal else {"mixer": name, "mask": "full"}
        # Chunks that do not divide the length.
        first |= {"block_size": 5} if "block_size" in declarations(entry) else {}
        first |= SHORT.get(name, {})
        chosen.append(first)
        chosen += [{**first, **extra} for extra in VARIANTS.get(name, [])]
    for field, table in TABLES.items():
        chosen += [{field: name, **needed(part)} for name, part in table.items()]
    chosen += [first | second for first, second in mixed()]
    base = {"width": WIDTH, "num_heads": HEADS, "max_length": LENGTH}
    return {_name(extra): mixer_spec(**(base | extra)) for extra in chosen}


def mixed() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Parts of self-attention in pairs: every normalizer, position encoding, score and mask.

    A mask that looks ahead is a case by itself, since nothing beside it could be decoded.
    """

    base = {"width": WIDTH, "num_heads": HEADS, "max_length": LENGTH}

    def others(field):
        found = [{field: name, **needed(part)} for name, part in TABLES[field].items()]
        # Some positions are added to what a model reads.
        plain = make_mixer(**base)
        return [part for part in found if make_mixer(**base, **part) != plain]

    masks = [m for m in others("mask") if mixer_spec(**base, **m).mask.prefix_length is not None]
    pairs = (others("normalizer"), others("position")), (others("score"), masks)
    return [pair for several in pairs for pair in itertools.zip_longest(*several, fillvalue={})]


def needed(part: Any) -> dict[str, int]:
    """The options a part cannot do without."""
    options = declarations(part).items()
    return {name: NEEDS.get(name, 2) for name, one in options if has_to_be_set(one)}


def _name(extra: dict) -> str:
    return ",".join(f"{key}={value}" for key, value in extra.items()) or "default"


NAMED = conformance_cases()
# Different options can mean the same mixer; it is tested once.
CASES = {o.make(): (name, o) for name, o in reversed(NAMED.items())}
CASES = dict(reversed(CASES.values()))

# What depends on how a mixer is built and not on which parts it is built of is asked of one case to
# each class of mixers and of those that put the most parts together; of every case by
# `make test-slow`.
RICH = ("normalizer=softmax_sink", "mask=causal & bigbird", "talking_heads", "rope_scaling=yarn")
CLASSES = set({type(o.make()): name for name, o in reversed(CASES.items())}.values())
BUILDS = CLASSES | {name for name in CASES if any(part in name for part in RICH) and "," in name}


# What repeats the code of another case in other numbers, or has one part of a pair, is a case of
# `make test-slow`.
REPEATED = {
    "mixer=softmax,block_size=5,num_kv_heads=2",
    "mixer=softmax,block_size=5,position=rope,rope_scaling=ntk,rope_factor=2.0",
    "mixer=softmax,block_size=5,position=rope,rope_scaling=linear,rope_factor=2.0",
    "mixer=softmax,block_size=5,position=rope,rope_scaling=llama3,rope_factor=2.0",
    "mixer=differential,block_size=5,position=rope,num_kv_heads=2",
    "mixer=linear,block_size=5,short_convolution=3",
    "mixer=gated_linear,block_size=5,short_convolution=3",
    "mixer=delta,block_size=5,short_convolution=3",
    "mixer=kimi_delta,block_size=5,short_convolution=3",
    "mixer=delta,block_size=5,value_width=3",
    "mixer=kimi_delta,block_size=5,short_convolution=3,value_width=6",
    "mixer=delta_product,block_size=5,value_width=6,gated=True",
}
REPEATED |= {_name(part) for pair in mixed() for part in pair if all(pair)}


def decodable(spec: MixerSpec) -> bool:
    """Whether the mixer can be fed token by token."""
    return spec.options.causal and (spec.mask is None or spec.mask.prefix_length is not None)


def visible(spec: MixerSpec) -> np.ndarray:
    """Which inputs may influence which outputs, (T, S)."""
    length = spec.context.max_length
    q, k = np.arange(length)[:, None], np.arange(length)[None, :]
    if spec.name == "gated_convolution":
        return (k <= q) & (q - k < (spec.values["filter_length"] or length))
    if spec.mask is not None:
        # The output at a position always depends on the input there, which is its query.
        return np.asarray(spec.mask(q, k)) | (q == k)
    return (k <= q) | (not spec.options.causal)


def mixes_segments(spec: MixerSpec) -> bool:
    """Whether the mixer refuses segments."""
    return spec.name in MIXING or spec.values.get("mask") in MIXING


def absolute(spec: MixerSpec) -> bool:
    """Whether what the mixer computes depends on where a sequence starts."""
    return any(part.absolute for part in spec.parts().values())


@functools.cache
def problem(spec: MixerSpec):
    """The mixer, parameters that tell positions apart, an input, and the compiled call."""
    mixer = spec.make()
    params = drawn(mixer)
    shape = (BATCH, spec.context.max_length, spec.context.width)
    x = np.random.default_rng(99).normal(size=shape).astype(np.float32)
    return mixer, params, x, jax.jit(mixer.__call__)


def numbers(mixer, seed: int = 0) -> dict[str, np.ndarray]:
    """Parameters of such a size that every part of the mixer shows, in float64."""
    generator = np.random.default_rng(seed)
    described = sorted(mixer.parameters().items())
    return {name: 0.5 * generator.normal(size=p.shape) for name, p in described}


def drawn(mixer) -> dict[str, jax.Array]:
    """The same as arrays, of float32 if nothing else was set."""
    return jax.tree.map(jnp.asarray, numbers(mixer))


def close(actual, expected, tolerance: float = 2e-5) -> None:
    """Asserts that leaves agree to ``tolerance`` times the largest entry expected, or times 0.1."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a, np.float32), np.asarray(e, np.float32)
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * max(np.abs(e).max(), 0.1))


def qkv(t: int, s: int, heads: int, kv_heads: int, width: int = 8, value_width: int = 6):
    """Random queries, keys and values; the value width differs so that mixing them up shows."""
    generator = np.random.default_rng(7)
    shapes = (t, heads, width), (s, kv_heads, width), (s, kv_heads, value_width)
    return tuple(jnp.asarray(generator.normal(size=(BATCH, *x)), jnp.float32) for x in shapes)


def weighted(out) -> jax.Array:
    """A scalar that every entry of ``out`` enters with a weight of its own."""
    return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))
