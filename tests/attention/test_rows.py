"""Attention in blocks of queries: the same as dense attention, in less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.implementations.attend import choose_implementation
from research.attention.parts.masks import causal
from research.attention.parts.mechanism import Mechanism
from research.attention.parts.stick_breaking import StickBreaking
from research.attention.spec import mixer_spec
from research.options import OptionError
from tests.attention.cases import close

M, H, T = 8, 2, 11
# What has no form in blocks of keys, for each reason.
WHOLE = {
    "order": {"normalizer": "stick_breaking", "position": "cope", "mask": "window", "window": 6},
    "projection": {"normalizer": "sparsemax", "num_kv_heads": 1, "position": "rope"},
    "score": {"score": "additive", "forget_gate": True},
    "heads": {"talking_heads": True, "position": "t5"},
    "earlier queries": {"selective": True},
    "neighbours": {"score_conv_queries": 3, "score_conv_keys": 4, "mask": "window", "window": 6},
}


def mixers(options):
    """The mixer densely, and in rows of 4 queries."""
    size = {"width": M, "num_heads": H, "max_length": T}
    return [
        mixer_spec(**size, **options, implementation=name, block_size=4).make()
        for name in ("dense", "rows")
    ]


@pytest.mark.parametrize("options", WHOLE.values(), ids=WHOLE)
def test_rows_are_dense_attention(options):
    """Outputs, gradients of all parameters and of the input, and decoding in chunks."""
    dense, rows = mixers(options)
    rng = np.random.default_rng(0)
    params = {n: rng.normal(size=p.shape).astype("f4") for n, p in dense.parameters().items()}
    x, weights = rng.normal(size=(2, 2, T, M)).astype("f4")

    @functools.partial(jax.jit, static_argnums=0)
    def run(mixer, params, x):
        out, pull = jax.vjp(mixer, params, x)
        state = mixer.init_state(2, T, "float32")
        state, first = mixer.extend(params, state, x[:, :6])
        return out, pull(jnp.asarray(weights)), mixer.extend(params, state, x[:, 6:])[1], first

    expected, found = run(dense, params, x), run(rows, params, x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        close(a, b, 1e-5 * max(1.0, float(jnp.abs(b).max())))
    close(jnp.concatenate([found[3], found[2]], axis=1), found[0], 2e-5)


def test_memory_grows_with_the_length():
    """That of the dense form with its square, in the backward pass too."""

    def temporaries(name, length):
        size = {"width": 8, "num_heads": 1, "max_length": length, "normalizer": "stick_breaking"}
        mixer = mixer_spec(**size, implementation=name, block_size=32).make()
        shapes = {
            n: jax.ShapeDtypeStruct(p.shape, "float32") for n, p in mixer.parameters().items()
        }
        x = jax.ShapeDtypeStruct((1, length, 8), "float32")
        program = jax.jit(jax.grad(lambda p, x: mixer(p, x).sum())).lower(shapes, x).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporaries("rows", 1024) < 2.3 * temporaries("rows", 512)
    assert temporaries("dense", 1024) > 3.5 * temporaries("dense", 512)


def test_it_is_chosen_where_blocks_of_keys_are_not_enough():
    long = Mechanism(mask=causal(), normalizer=StickBreaking())
    assert choose_implementation(4096, long, backend="cpu") == "rows"
    assert choose_implementation(4096, Mechanism(mask=causal()), backend="cpu") == "blockwise"
    assert choose_implementation(512, long, backend="cpu") == "dense"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"index_top": 3}, "lacks an indexer"), ({"predicted_window": 2}, "lacks a predicted window")],
)
def test_what_holds_all_queries_is_refused(options, message):
    with pytest.raises(OptionError, match=message):
        mixers(options)
