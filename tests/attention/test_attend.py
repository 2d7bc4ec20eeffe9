"""Attention as a function of arrays: implementations against each other and by its properties."""

import dataclasses
import itertools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.errors import Unsupported
from research.attention.implementations import dense
from research.attention.implementations.attend import IMPLEMENTATIONS, attend
from research.attention.parameters import Parameter
from research.attention.parts import biases, masks, normalizers, scores
from research.attention.parts.mechanism import Mechanism
from research.attention.parts.normalizers import softmax
from research.attention.parts.relative_biases import BIAS_POSITIONS
from research.attention.parts.segments import segments
from research.attention.parts.tables import MASKS as NAMED_MASKS
from research.attention.parts.tables import SCORES
from research.attention.spec import mixer_spec
from research.options import read
from tests.attention.cases import close, needed, qkv, weighted

HEADS = 4
# Neither is a multiple of the block, and the queries are the last of the keys' positions.
T, S, BLOCK = 13, 19, 8
Q_INDEX = np.arange(S - T, S)
# Those that run on this device; test_fused.py has the others.
# On one device those for a split sequence are blockwise or dense.
HERE = [
    n
    for n, found in IMPLEMENTATIONS.items()
    if "cpu" in found.platforms and not found.shards_sequence
]
# Half the time to compile. What is compiled runs once, on little.
QUICK = {"xla_backend_optimization_level": 0}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TableBias(biases.Bias):
    """A learned number for every head and distance bucket; the buckets are an integer leaf."""

    additive: ClassVar[bool] = True
    table: Any
    buckets: Any

    def __call__(self, score, head, q_index, kv_index):
        distance = jnp.clip(q_index - kv_index, 0, self.buckets.shape[0] - 1)
        return score + self.table[head, self.buckets[distance]]


class Distance(scores.NonDotScore):
    """A score without a dot form."""

    def __call__(self, q, k, q_index, kv_index):
        return -jnp.abs(q[:, :, None] - k[:, None]).sum(-1).transpose(0, 3, 1, 2)


def built(part, **extra):
    """What a line of the registry builds, its learned arrays drawn."""
    spec = mixer_spec(width=32, num_heads=HEADS, max_length=S, **needed(part), **extra)
    made = read(part, needed(part)).build(spec.options.sizes(spec.context))
    leaves, structure = jax.tree.flatten(made)
    generator = np.random.default_rng(1)
    return structure.unflatten(
        jnp.asarray(0.5 * generator.normal(size=x.shape), jnp.float32)
        if isinstance(x, Parameter)
        else x
        for x in leaves
    )


SEGMENTS = jnp.asarray([[0] * 7 + [1] * 6 + [2] * 6, [5] * 10 + [0] * 9])
# Row 1 has no valid key at all.
VALID = jnp.asarray([[True] * 11 + [False] * 8, [False] * S])
MASKS = {
    **{name: built(part, mask=name) for name, part in NAMED_MASKS.items()},
    "segments": masks.causal() & segments(SEGMENTS, SEGMENTS),
    "padding": masks.padding(VALID),
    "band or prefix": masks.window(3) | (masks.prefix(5) & ~masks.window(1)),
    "future": ~masks.causal(),
    "nothing": ~masks.full(),
}
BIASES = {
    "none": (),
    **{name: (built(part, position=name),) for name, part in BIAS_POSITIONS.items()},
    "learned": (
        biases.Softcap(jnp.float32(3.0)),
        TableBias(jnp.sin(jnp.arange(20.0)).reshape(HEADS, 5), jnp.asarray([0, 1, 2, 2, 3, 3, 4])),
    ),
}
DOT_SCORES = {
    name: found for name, part in SCORES.items() if (found := built(part, score=name)).has_dot_form
}
NORMALIZERS = {
    name: found
    for name, part in normalizers.NORMALIZERS.items()
    if not IMPLEMENTATIONS["blockwise"].unsupported_part(
        Mechanism(normalizer=(found := built(part, normalizer=name)))
    )
}
# As an option the sharpening is that of one normalizer only.
NORMALIZERS["softmax_sink"] = dataclasses.replace(NORMALIZERS["softmax_sink"], sharpening=2.0)
KV_HEADS = (4, 2, 1)
ALIBI = biases.alibi(HEADS)
CAUSAL, WINDOW = (Mechanism(mask=mask) for mask in (masks.causal(), masks.window(4)))


def combinations() -> dict[str, tuple]:
    """Every normalizer with every bias; masks, scores and groupings turn.

    Diagonal by diagonal, so that the first of them have every part.
    """
    found = {}
    for distance, i in itertools.product(range(len(BIASES)), range(len(NORMALIZERS))):
        j = (i + distance) % len(BIASES)
        case = (
            list(NORMALIZERS)[i],
            list(BIASES)[j],
            list(DOT_SCORES)[(i + 2 * j) % len(DOT_SCORES)],
            KV_HEADS[(i + j) % len(KV_HEADS)],
            list(MASKS)[len(found) % len(MASKS)],
        )
        found["-".join(map(str, case))] = case
    return found


COMBINATIONS = combinations()
# Until every mask was there; the others are slow.
FAST = list(COMBINATIONS)[: len(MASKS)]


def test_cases_cover_every_pair_of_parts():
    tables = (NORMALIZERS, BIASES, DOT_SCORES, KV_HEADS, MASKS)
    for a, b in itertools.combinations(range(4), 2):
        seen = {(case[a], case[b]) for case in COMBINATIONS.values()}
        assert seen == set(itertools.product(tables[a], tables[b]))
    for n, table in enumerate(tables):
        assert {COMBINATIONS[name][n] for name in FAST} == set(table)


def able(**parts) -> list[str]:
    """The implementations that run here and have these parts."""
    return [name for name in HERE if not IMPLEMENTATIONS[name].unsupported_part(Mechanism(**parts))]


def value_and_gradients(implementation, q, k, v, mask, *, q_index=None, **parts):
    """The output, and the gradients with respect to q, k, v and every float leaf of the parts."""

    def loss(q, k, v, parts):
        at = {"q_index": q_index, "block_size": BLOCK}
        mechanism = Mechanism(mask=mask, **parts)
        out = attend(q, k, v, mechanism, implementation=implementation, **at)
        return weighted(out.astype(jnp.float32)), out

    run = jax.jit(
        jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True, allow_int=True), compiler_options=QUICK
    )
    grads, out = run(q, k, v, parts)
    return out, [g for g in jax.tree.leaves(grads) if g.dtype != jax.dtypes.float0]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=() if name in FAST else pytest.mark.slow)
        for name, case in COMBINATIONS.items()
    ],
)
def test_implementations_equal_dense(case):
    normalizer, bias, score, kv_heads, mask = case
    q, k, v = qkv(T, S, HEADS, kv_heads)
    parts = {"score": DOT_SCORES[score], "mask": MASKS[mask], "biases": BIASES[bias]}
    parts["normalizer"] = NORMALIZERS[normalizer]
    expected = value_and_gradients("dense", q, k, v, **parts, q_index=Q_INDEX)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(expected))
    if mask != "nothing":
        assert all(np.abs(x).max() > 0 for x in expected[1][:3])
    for name in able(**parts)[1:]:
        # The gradient of a temperature is a rounded sum of terms of both signs, one to each score.
        close(value_and_gradients(name, q, k, v, **parts, q_index=Q_INDEX), expected, 4e-4)


@pytest.mark.parametrize("implementation", HERE)
def test_rows_without_keys_are_zero_and_have_finite_gradients(implementation):
    q, k, v = qkv(T, S, HEADS, 2)
    # Scores beyond the range of exp must not leak through the mask either.
    k = jnp.asarray(k * np.float32([1, 1e4])[:, None, None, None])
    for mask in (masks.padding(VALID), ~masks.full()):
        out, grads = value_and_gradients(implementation, q, k, v, mask)
        assert not np.asarray(out)[1].any()
        for g in map(np.asarray, grads):
            assert np.isfinite(g).all()
            assert not g[1].any()
    weights = np.asarray(
        jax.jit(lambda q, k: dense.weights(q, k, Mechanism(mask=masks.padding(VALID))))(q, k)
    )
    assert not weights[1].any()
    np.testing.assert_allclose(weights[0].sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("implementation", able(biases=(ALIBI,)))
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_heads_equal_repeated_heads(implementation, kv_heads):
    q, k, v = qkv(T, S, HEADS, kv_heads)
    mechanism = {"mask": masks.causal(), "biases": (ALIBI,), "q_index": Q_INDEX}
    mechanism["normalizer"] = (
        softmax if implementation == "jax_xla" else NORMALIZERS["softmax_sink"]
    )
    out, (dq, dk, dv, *rest) = value_and_gradients(implementation, q, k, v, **mechanism)
    repeated = (np.repeat(x, HEADS // kv_heads, axis=2) for x in (k, v))
    expected, (eq, ek, ev, *erest) = value_and_gradients(implementation, q, *repeated, **mechanism)

    def summed(x):
        x = np.asarray(x)
        return x.reshape(*x.shape[:2], kv_heads, -1, x.shape[-1]).sum(3)

    close((out, dq, dk, dv, rest), (expected, eq, summed(ek), summed(ev), erest))


def test_forbidden_blocks_are_never_computed():
    """What no query may see can be NaN. Dense attention multiplies it by zero, which is NaN."""
    q, k, v = qkv(16, 16, HEADS, HEADS)
    blockwise = {"implementation": "blockwise"}

    @jax.jit
    def run(v):
        return (
            attend(q, k, v, CAUSAL, **blockwise, block_size=8),
            attend(q, k, v, CAUSAL),
            attend(q, k, v[:, ::-1], WINDOW, **blockwise, block_size=4),
        )

    late = np.where(np.arange(16)[:, None, None] < 8, v, np.nan)
    skipping, dense, window = map(np.asarray, run(late))
    assert np.isfinite(skipping[:, :8]).all()
    assert np.isnan(dense[:, :8]).all()
    assert np.isnan(window[:, :8]).all()
    assert np.isfinite(window[:, 12:]).all()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Power(normalizers.Normalizer):
    """max(s, 0) ** p of each key, p learned: element-wise, and known to this test alone."""

    power: Any
    elementwise: ClassVar[bool] = True

    def numerator_and_divisor(self, scores, mask=None):
        weights = jnp.maximum(scores, 0.1) ** self.power
        weights = weights if mask is None else jnp.where(mask, weights, 0)
        return weights, jnp.ones((*weights.shape[:-1], 1), weights.dtype)


def test_a_normalizer_is_computed_in_blocks_for_saying_that_it_is_elementwise():
    q, k, v = qkv(T, S, HEADS, 2)

    def run(implementation):
        def loss(power, q, k, v):
            mechanism = Mechanism(mask=masks.causal(), normalizer=Power(power))
            out = attend(
                q, k, v, mechanism, q_index=Q_INDEX, implementation=implementation, block_size=4
            )
            return (out**2).sum(), out

        gradient = jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)
        return jax.jit(gradient)(jnp.float32(1.5), q, k, v)

    close(run("blockwise"), run("dense"), 1e-5)


def test_blockwise_memory_is_linear_in_length():
    def temporary(length, implementation):
        x = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)

        def loss(q, k, v):
            options = {"implementation": implementation, "block_size": 32}
            return weighted(attend(q, k, v, CAUSAL, **options))

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(2048, "blockwise") < 2.2 * temporary(1024, "blockwise")
    assert temporary(2048, "dense") > 3 * temporary(1024, "dense")


def test_positions_unknown_while_tracing_give_the_same():
    q, k, v = qkv(T, S, HEADS, 2)

    def run(index, implementation):
        return attend(
            q, k, v, WINDOW, q_index=index, implementation=implementation, block_size=BLOCK
        )  # fmt: skip

    found = jax.jit(lambda i: (run(i, "blockwise"), run(Q_INDEX, "dense")))(Q_INDEX)
    close(*found)


def test_key_positions_in_any_order():
    """A ring buffer holds keys out of order."""
    order = np.random.default_rng(0).permutation(S)
    mechanism, at = Mechanism(mask=masks.window(4), biases=(ALIBI,)), {"q_index": Q_INDEX}

    @jax.jit
    def run(q, k, v):
        options = {**at, "kv_index": order, "block_size": BLOCK}
        found = [
            attend(q, k[:, order], v[:, order], mechanism, **options, implementation=name)
            for name in able(biases=mechanism.biases)
        ]
        return [*found, attend(q, k, v, mechanism, **at)]

    *found, expected = run(*qkv(T, S, HEADS, 2))
    close(found, [expected] * len(found))


def test_blockwise_under_vmap_checkpoint_and_scan():
    q, k, v = qkv(T, S, HEADS, 2)
    members = [np.stack([x, x[::-1] * 0.5, -x]) for x in map(np.asarray, (q, k, v))]
    cap = np.float32([1.0, 2.0, 3.0])

    def loss(q, k, v, cap, implementation):
        options = {"implementation": implementation, "block_size": BLOCK}
        sink = normalizers.SinkSoftmax(sink=jnp.repeat(cap, HEADS))
        parts = {"biases": (biases.Softcap(cap),), "normalizer": sink}
        mechanism = Mechanism(mask=masks.causal(), **parts)
        run = jax.checkpoint(lambda *a: attend(*a, mechanism, **options))
        repeated, _ = jax.lax.scan(
            lambda c, _: (c + run(q, k, v), None), 0.0 * run(q, k, v), None, 2
        )
        return weighted(repeated)

    def gradients(implementation):
        grad = jax.value_and_grad(lambda *a: loss(*a, implementation), argnums=(0, 1, 2, 3))
        return jax.jit(jax.vmap(grad))(*members, cap)

    close(gradients("blockwise"), gradients("dense"), 1e-4)


@pytest.mark.parametrize("implementation", HERE)
def test_bfloat16_inputs(implementation):
    q, k, v = qkv(T, S, HEADS, 2)
    low = [np.asarray(x).astype(jnp.bfloat16) for x in (q, k, v)]
    mechanism = {"mask": masks.causal(), "q_index": Q_INDEX}
    out, grads = value_and_gradients(implementation, *low, **mechanism)
    assert {x.dtype for x in (out, *grads)} == {jnp.dtype(jnp.bfloat16)}
    # Against float32 arithmetic on the same rounded inputs.
    exact = value_and_gradients("dense", *(x.astype(np.float32) for x in low), **mechanism)
    close((out, grads), exact, 0.02)


@pytest.mark.parametrize("score", DOT_SCORES)
def test_permuting_keys_and_queries_permutes_the_output(score):
    q, k, v = qkv(T, T, HEADS, 2)
    order = np.random.default_rng(1).permutation(T)
    run = jax.jit(lambda q, k, v: attend(q, k, v, Mechanism(DOT_SCORES[score])))
    close(run(*(np.asarray(x)[:, order] for x in (q, k, v))), np.asarray(run(q, k, v))[:, order])


@pytest.mark.parametrize("implementation", able(biases=(ALIBI,)))
def test_alibi_and_masks_depend_on_distance_only(implementation):
    @jax.jit
    def run(q, k, v, start):
        options = {"q_index": Q_INDEX + start, "kv_index": np.arange(S) + start}
        options |= {"implementation": implementation, "block_size": BLOCK}
        found = (
            Mechanism(mask=mask, biases=(ALIBI,)) for mask in (masks.causal(), masks.window(4))
        )
        return [attend(q, k, v, mechanism, **options) for mechanism in found]

    arrays = qkv(T, S, HEADS, 2)
    close(run(*arrays, 0), run(*arrays, 41))


def test_blockwise_refuses_what_it_lacks():
    q, k, v = qkv(T, T, HEADS, HEADS)
    assert np.isfinite(jax.jit(lambda q: attend(q, k, v, Mechanism(Distance())))(q)).all()
    with pytest.raises(Unsupported, match="lacks score Distance .* dense, rows have it"):
        attend(q, k, v, Mechanism(Distance()), implementation="blockwise")
    other = Mechanism(normalizer=normalizers.Sparsemax())
    assert np.isfinite(jax.jit(lambda q: attend(q, k, v, other))(q)).all()
    with pytest.raises(Unsupported, match="lacks normalizer 'sparsemax'; dense, rows have it"):
        attend(q, k, v, other, implementation="blockwise")


def test_shapes_are_checked():
    """The annotations are enforced in these tests, so that they cannot drift from the code."""
    q, k, v = qkv(T, S, HEADS, HEADS)
    for wrong in ((q, k[:1], v), (q, k[:, :3], v), (q, k[..., :4], v), (q.astype(int), k, v)):
        with pytest.raises(TypeError, match="Type-check error"):
            attend(*wrong)
