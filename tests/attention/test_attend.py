"""Attention as a function of arrays: implementations against each other and by its properties."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention import biases, dense, masks, registry, scores
from research.attention.errors import Unsupported
from research.attention.implementations import IMPLEMENTATIONS, attend
from research.attention.normalizers import Normalizer, softmax
from research.attention.registry import Options
from tests.attention.cases import BIAS_CASES, MASK_CASES, close, qkv, weighted

HEADS = 4
# Neither is a multiple of the block, and the queries are the last of the keys' positions.
T, S, BLOCK = 13, 19, 8
Q_INDEX = np.arange(S - T, S)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TableBias(biases.Bias):
    """A learned number for every head and distance bucket; the buckets are an integer leaf."""

    table: Any
    buckets: Any

    def __call__(self, score, head, q_index, kv_index):
        distance = jnp.clip(q_index - kv_index, 0, self.buckets.shape[0] - 1)
        return score + self.table[head, self.buckets[distance]]


class Distance(scores.Score):
    """A score without a dot form."""

    def __call__(self, q, k):
        return -jnp.abs(q[:, :, None] - k[:, None]).sum(-1).transpose(0, 3, 1, 2)

    def as_dot(self, q, k):
        return None


def registered(table: str, cases: dict) -> dict:
    """What each entry of a registry table builds."""
    found = {}
    for name, build in getattr(registry, table).items():
        extra = cases.get(name, {})
        extra = extra[0] if isinstance(extra, tuple) else extra
        field = {"MASKS": "mask", "SCORES": "score"}.get(table)
        extra = {**extra, field: name} if field else extra
        found[name] = build(Options(width=32, num_heads=HEADS, max_length=S, **extra))
    return found


SEGMENTS = jnp.asarray([[0] * 7 + [1] * 6 + [2] * 6, [5] * 10 + [0] * 9])
# Row 1 has no valid key at all.
VALID = jnp.asarray([[True] * 11 + [False] * 8, [False] * S])
MASKS = {
    **registered("MASKS", MASK_CASES),
    "segments": masks.causal() & masks.segments(SEGMENTS, SEGMENTS),
    "padding": masks.padding(VALID),
    "band or prefix": masks.window(3) | (masks.prefix(5) & ~masks.window(1)),
    "future": ~masks.causal(),
    "nothing": ~masks.full(),
}
BIASES = {
    "none": (),
    **{name: (bias,) for name, bias in registered("BIASES", BIAS_CASES).items()},
    "learned": (
        biases.Softcap(jnp.float32(3.0)),
        TableBias(jnp.sin(jnp.arange(20.0)).reshape(HEADS, 5), jnp.asarray([0, 1, 2, 2, 3, 3, 4])),
    ),
}
SCORES = registered("SCORES", {})
KV_HEADS = (4, 2, 1)


def pairwise() -> dict[str, tuple]:
    """Every mask with every bias, scores and groupings turning so that each pair occurs."""
    found = {}
    for (i, mask), (j, bias) in itertools.product(enumerate(MASKS), enumerate(BIASES)):
        score = list(SCORES)[(i + 2 * j) % len(SCORES)]
        kv_heads = KV_HEADS[(i + j) % len(KV_HEADS)]
        found[f"{mask}-{bias}-{score}-{kv_heads}"] = (mask, bias, score, kv_heads)
    return found


PAIRWISE = pairwise()


def test_cases_cover_every_pair_of_parts():
    for a, b in itertools.combinations(range(4), 2):
        seen = {(case[a], case[b]) for case in PAIRWISE.values()}
        tables = (MASKS, BIASES, SCORES, KV_HEADS)
        assert seen == set(itertools.product(tables[a], tables[b]))


def value_and_gradients(implementation, q, k, v, **mechanism):
    """The output, and the gradients with respect to q, k, v and every float leaf of the biases."""

    def loss(q, k, v, bias):
        out = attend(q, k, v, biases=bias, implementation=implementation, **mechanism)
        return weighted(out), out

    bias = mechanism.pop("biases", ())
    run = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True, allow_int=True))
    grads, out = run(q, k, v, bias)
    return out, [g for g in jax.tree.leaves(grads) if g.dtype != jax.dtypes.float0]


@pytest.mark.parametrize("case", PAIRWISE.values(), ids=PAIRWISE.keys())
def test_implementations_equal_dense(case):
    mask, bias, score, kv_heads = case
    q, k, v = qkv(T, S, HEADS, kv_heads)
    mechanism = {"mask": MASKS[mask], "biases": BIASES[bias], "score": SCORES[score]}
    mechanism["q_index"] = Q_INDEX
    expected = value_and_gradients("dense", q, k, v, **mechanism)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(expected))
    if mask != "nothing":
        assert all(np.abs(x).max() > 0 for x in expected[1][:3])
    for name in IMPLEMENTATIONS:
        if name != "dense" and not IMPLEMENTATIONS[name].lacks(
            mechanism["score"], mechanism["mask"], mechanism["biases"], softmax
        ):
            close(value_and_gradients(name, q, k, v, **mechanism, block_size=BLOCK), expected, 1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_without_keys_are_zero_and_have_finite_gradients(implementation):
    q, k, v = qkv(T, S, HEADS, 2)
    # Scores beyond the range of exp must not leak through the mask either.
    k = k.at[1].mul(1e4)
    for mask in (masks.padding(VALID), ~masks.full()):
        out, grads = value_and_gradients(implementation, q, k, v, mask=mask, block_size=BLOCK)
        assert not np.asarray(out[1]).any()
        for g in grads:
            assert np.isfinite(g).all()
            assert not np.asarray(g[1]).any()
    weights = dense.weights(q, k, mask=masks.padding(VALID))
    assert not np.asarray(weights[1]).any()
    np.testing.assert_allclose(weights[0].sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_heads_equal_repeated_heads(implementation, kv_heads):
    q, k, v = qkv(T, S, HEADS, kv_heads)
    mechanism = {"mask": masks.causal(), "biases": (biases.alibi(HEADS),), "q_index": Q_INDEX}
    out, (dq, dk, dv, *slopes) = value_and_gradients(implementation, q, k, v, **mechanism)
    repeated = (jnp.repeat(x, HEADS // kv_heads, axis=2) for x in (k, v))
    expected, (eq, ek, ev, *eslopes) = value_and_gradients(
        implementation, q, *repeated, **mechanism
    )

    def summed(x):
        return x.reshape(*x.shape[:2], kv_heads, -1, x.shape[-1]).sum(3)

    close((out, dq, dk, dv, slopes), (expected, eq, summed(ek), summed(ev), eslopes))


def test_forbidden_blocks_are_never_computed():
    """What no query may see can be NaN. Dense attention multiplies it by zero, which is NaN."""
    q, k, v = qkv(16, 16, HEADS, HEADS)
    v = v.at[:, 8:].set(jnp.nan)
    blockwise = attend(q, k, v, mask=masks.causal(), implementation="blockwise", block_size=8)
    assert np.isfinite(blockwise[:, :8]).all()
    assert np.isnan(attend(q, k, v, mask=masks.causal())[:, :8]).all()
    window = attend(
        q, k, v[:, ::-1], mask=masks.window(4), implementation="blockwise", block_size=4
    )
    assert np.isnan(window[:, :8]).all()
    assert np.isfinite(window[:, 12:]).all()


def test_blockwise_memory_is_linear_in_length():
    def temporary(length, implementation):
        x = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)

        def loss(q, k, v):
            options = {"mask": masks.causal(), "implementation": implementation, "block_size": 32}
            return weighted(attend(q, k, v, **options))

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(2048, "blockwise") < 2.2 * temporary(1024, "blockwise")
    assert temporary(2048, "dense") > 3 * temporary(1024, "dense")


def test_positions_unknown_while_tracing_give_the_same():
    q, k, v = qkv(T, S, HEADS, 2)

    def run(index, implementation):
        return attend(
            q, k, v, mask=masks.window(4), q_index=index, implementation=implementation,
            block_size=BLOCK,
        )  # fmt: skip

    close(jax.jit(lambda i: run(i, "blockwise"))(jnp.asarray(Q_INDEX)), run(Q_INDEX, "dense"))


def test_key_positions_in_any_order():
    """A ring buffer holds keys out of order."""
    q, k, v = qkv(T, S, HEADS, 2)
    order = np.random.default_rng(0).permutation(S)
    mechanism = {"mask": masks.window(4), "q_index": Q_INDEX, "biases": (biases.alibi(HEADS),)}
    expected = attend(q, k, v, **mechanism)
    for name in IMPLEMENTATIONS:
        options = {"kv_index": order, "implementation": name, "block_size": BLOCK}
        close(attend(q, k[:, order], v[:, order], **mechanism, **options), expected)


def test_blockwise_under_vmap_checkpoint_and_scan():
    q, k, v = qkv(T, S, HEADS, 2)
    members = [jnp.stack([x, x[::-1] * 0.5, -x]) for x in (q, k, v)]
    cap = jnp.asarray([1.0, 2.0, 3.0])

    def loss(q, k, v, cap, implementation):
        options = {"mask": masks.causal(), "implementation": implementation, "block_size": BLOCK}
        run = jax.checkpoint(lambda *a: attend(*a, biases=(biases.Softcap(cap),), **options))
        repeated, _ = jax.lax.scan(
            lambda c, _: (c + run(q, k, v), None), 0.0 * run(q, k, v), None, 2
        )
        return weighted(repeated)

    def gradients(implementation):
        grad = jax.value_and_grad(lambda *a: loss(*a, implementation), argnums=(0, 1, 2, 3))
        return jax.jit(jax.vmap(grad))(*members, cap)

    close(gradients("blockwise"), gradients("dense"), 1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_inputs(implementation):
    q, k, v = qkv(T, S, HEADS, 2)
    low = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    mechanism = {"mask": masks.causal(), "q_index": Q_INDEX, "block_size": BLOCK}
    out, grads = value_and_gradients(implementation, *low, **mechanism)
    assert {x.dtype for x in (out, *grads)} == {jnp.dtype(jnp.bfloat16)}
    # Against float32 arithmetic on the same rounded inputs.
    exact = value_and_gradients("dense", *(x.astype(jnp.float32) for x in low), **mechanism)
    close((out, grads), exact, 0.02)


@pytest.mark.parametrize("score", SCORES)
def test_permuting_keys_and_queries_permutes_the_output(score):
    q, k, v = qkv(T, T, HEADS, 2)
    order = np.random.default_rng(1).permutation(T)
    run = jax.jit(lambda q, k, v: attend(q, k, v, score=SCORES[score]))
    close(run(q[:, order], k[:, order], v[:, order]), run(q, k, v)[:, order])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_alibi_and_masks_depend_on_distance_only(implementation):
    q, k, v = qkv(T, S, HEADS, 2)
    for mask in (masks.causal(), masks.window(4)):
        mechanism = {"mask": mask, "biases": (biases.alibi(HEADS),), "block_size": BLOCK}
        mechanism["implementation"] = implementation
        here = attend(q, k, v, q_index=Q_INDEX, kv_index=np.arange(S), **mechanism)
        there = attend(q, k, v, q_index=Q_INDEX + 41, kv_index=np.arange(S) + 41, **mechanism)
        close(here, there)


def test_blockwise_refuses_what_it_lacks():
    q, k, v = qkv(T, T, HEADS, HEADS)
    assert np.isfinite(attend(q, k, v, score=Distance())).all()
    with pytest.raises(Unsupported, match="lacks score Distance .* dense has it"):
        attend(q, k, v, score=Distance(), implementation="blockwise")
    other = Normalizer("square", lambda s, m: (s**2, (s**2).sum(-1, keepdims=True)))
    with pytest.raises(Unsupported, match="lacks normalizer 'square'; dense has it"):
        attend(q, k, v, normalizer=other, implementation="blockwise")


def test_shapes_are_checked():
    """The annotations are enforced in these tests, so that they cannot drift from the code."""
    q, k, v = qkv(T, S, HEADS, HEADS)
    for wrong in ((q, k[:1], v), (q, k[:, :3], v), (q, k[..., :4], v), (q.astype(int), k, v)):
        with pytest.raises(TypeError, match="Type-check error"):
            attend(*wrong)
