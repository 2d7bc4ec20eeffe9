"""Parts that look at content, against loops over pairs and in every form that computes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.errors import Unsupported
from research.attention.implementations import dense
from research.attention.implementations.attend import attend
from research.attention.mixers.cache import filled
from research.attention.parts import masks
from research.attention.parts.block_selection import moba
from research.attention.parts.forget_gate import forget_gate
from research.attention.parts.mechanism import Mechanism
from research.attention.spec import make_mixer, mixer_spec
from research.options import OptionError
from tests.attention.cases import close, numbers, weighted
from tests.parity import compare, paper

B, T, S, H, K, D, M = 2, 9, 13, 4, 2, 6, 8
BLOCK = 4
# The queries are the last of a sequence that begins in the middle of a block.
KV_INDEX = np.arange(3, 3 + S)
Q_INDEX = KV_INDEX[-T:]
FORGETTING = Mechanism(mask=masks.causal(), biases=(forget_gate(M, H),))


def arrays(seed=0):
    """Queries, keys and values, the tokens that the keys are of, and what a forget gate learns."""
    rng = np.random.default_rng(seed)
    shapes = (B, T, H, D), (B, S, K, D), (B, S, K, D), (B, S, M), (M, H), (H,)
    *qkvx, weight, bias = (rng.normal(size=shape) for shape in shapes)
    return *qkvx, {"biases_0_weight": weight, "biases_0_bias": bias}


def forgetting(params, x):
    bound = FORGETTING.bind(params)
    return bound.with_tokens(bound.project_tokens(x))


def softmax(scores, allowed):
    numerator = np.where(allowed, np.exp(scores), 0)
    return numerator / numerator.sum()


def raw(q, k, b, h, t):
    """Scaled scores of a query and all keys."""
    return np.array([q[b, t, h] @ k[b, s, h // (H // K)] for s in range(S)]) / D**0.5


def test_forget_gates_by_loops():
    """D_ij = sum of log f_l over l = j + 1 .. i (Lin et al. 2025)."""
    q, k, _, x, params = arrays()
    gates = 1 / (1 + np.exp(-(x @ params["biases_0_weight"] + params["biases_0_bias"])))
    expected = np.zeros((B, H, T, S))
    for b, h, t in np.ndindex(B, H, T):
        i = S - T + t
        decay = [np.log(gates[b, j + 1 : i + 1, h]).sum() for j in range(S)]
        expected[b, h, t] = softmax(raw(q, k, b, h, t) + decay, np.arange(S) <= i)
    order = np.random.default_rng(1).permutation(S)

    @jax.jit
    def run(params, q, k, x, kv_index):
        at = {"q_index": Q_INDEX, "kv_index": KV_INDEX}
        found = dense.weights(q, k, forgetting(params, x), **at)
        # Keys in any order, at positions that are not known while tracing, and one that is none.
        x, k = (jnp.pad(a[:, order], [(0, 0), (1, 0), *[(0, 0)] * (a.ndim - 2)]) for a in (x, k))
        mechanism = forgetting(params, x).restricted_to(filled)
        return found, dense.weights(q, k, mechanism, q_index=Q_INDEX, kv_index=kv_index)

    with jax.enable_x64(True):
        found, shuffled = run(params, q, k, x, np.concatenate([[-1], KV_INDEX[order]]))
    row = "forget_gate=true", paper("forget_gate=true", "loops in NumPy float64")
    compare(*row, outputs=(found, expected), tolerance=1e-14)
    compare(*row, outputs=(shuffled[..., 1:], expected[..., order]), tolerance=1e-14)
    assert not np.asarray(shuffled)[..., 0].any()


def blocks_of_moba(q, k, top):
    """Which of all keys each query sees, (B, H, T, S), one block after the other."""
    allowed, number = np.zeros((B, H, T, S), bool), KV_INDEX // BLOCK
    for b, h, t in np.ndindex(B, H, T):
        own, fit = Q_INDEX[t] // BLOCK, {}
        for n in set(number[number < own]):
            fit[n] = q[b, t, h] @ k[b, number == n, h // (H // K)].mean(0)
        best = sorted(fit, key=lambda n: -fit[n])[: top - 1]
        allowed[b, h, t] = np.isin(number, [own, *best]) & (KV_INDEX <= Q_INDEX[t])
    return allowed


def test_chosen_blocks_by_loops():
    """The own block, and those before it whose mean key fits best (Lu et al. 2025)."""
    q, k, *_ = arrays()
    order = np.random.default_rng(1).permutation(S)

    @jax.jit
    def run(q, k, kv_index):
        def weights(top, k=k, kv_index=KV_INDEX):
            at = {"q_index": Q_INDEX, "kv_index": kv_index}
            return dense.weights(q, k, Mechanism(mask=moba(BLOCK, top)), **at)

        causal = Mechanism(mask=masks.causal())
        all_keys = dense.weights(q, k, causal, q_index=Q_INDEX, kv_index=KV_INDEX)
        found = weights(1), weights(2), weights(3), weights(50)
        return *found, weights(2, k[:, order], kv_index), all_keys

    with jax.enable_x64(True):
        *found, every, shuffled, all_keys = map(np.asarray, run(q, k, KV_INDEX[order]))
    for top, weights in enumerate(found, 1):
        allowed = blocks_of_moba(q, k, top)
        np.testing.assert_array_equal(weights > 0, allowed)
        for b, h, t in np.ndindex(B, H, T):
            expected = softmax(raw(q, k, b, h, t), allowed[b, h, t])
            row = "mask=moba", paper("mask=moba", "loops in NumPy float64")
            compare(*row, outputs=(weights[b, h, t], expected), tolerance=1e-14)
    np.testing.assert_allclose(shuffled, found[1][..., order], rtol=1e-9)
    # With as many blocks as there are it is causal attention.
    np.testing.assert_allclose(every, all_keys, rtol=1e-12)


def test_implementations_equal_dense():
    """Values, and gradients of all that is learned; blocks of the loops are not those of MoBA."""
    q, k, v, x, params = arrays()

    def loss(params, q, k, v, x, mask, implementation):
        mechanism = forgetting(params, x)
        mechanism = mechanism if mask is None else Mechanism(mask=mask)
        at = {"q_index": Q_INDEX, "kv_index": KV_INDEX, "block_size": 3}
        out = attend(q, k, v, mechanism, **at, implementation=implementation)
        return weighted(out), out

    @jax.jit
    def run(*given):
        return [
            [
                jax.grad(lambda *a, m=m, i=i: loss(*a, m, i), (0, 1, 2, 3, 4), has_aux=True)(*given)
                for i in ("dense", "blockwise", "jax_xla")
            ]
            for m in (None, moba(BLOCK, 2))
        ]

    given = jax.tree.map(np.float32, (params, q, k, v, x))
    for expected, *others in run(*given):
        assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(expected[0][1:4]))
        for found in others:
            close(found, expected, 1e-4)
    gates = jax.tree.leaves(run(*given)[0][0][0][0])
    assert all(np.abs(g).max() > 0 for g in gates)


def test_blocks_that_no_query_chose_are_skipped():
    """Their values can be NaN: dense attention multiplies them by zero, which is NaN."""
    q = np.zeros((1, 12, 1, 2), np.float32)
    q[..., 0] = 1
    k, v = np.zeros_like(q), np.random.default_rng(0).normal(size=q.shape).astype(np.float32)
    k[:, :4, :, 0], k[:, 4:8, :, 0] = 1, -1  # later queries choose the first block
    v[:, 4:8] = np.nan
    mechanism = Mechanism(mask=moba(4, 2))

    @jax.jit
    def run(q, k, v):
        def forward(v):
            return attend(q, k, v, mechanism, implementation="blockwise", block_size=4)

        out, pull = jax.vjp(forward, v)
        return out, pull(jnp.ones_like(out))[0], attend(q, k, v, mechanism)

    out, back, full = map(np.asarray, run(q, k, v))
    assert np.isfinite(out[:, :4]).all() and np.isfinite(out[:, 8:]).all()
    assert np.isnan(full[:, 8:]).all()
    # The last query weighs its own block, scores 0, and the first one, scores 1 / sqrt(2).
    weight = np.exp(2**-0.5)
    expected = (v[0, 8:].sum(0) + weight * v[0, :4].sum(0)) / (4 + 4 * weight)
    np.testing.assert_allclose(out[0, 11], expected, rtol=1e-5)
    assert np.abs(back[:, 8:]).max() > 0


CACHED = {
    # Gates of tokens that no query sees any more still lie between it and the first ones.
    "sinks": {"mask": "window | causal & global", "window": 3, "global_tokens": 2},
    # Means are of whole blocks, of which the window shows a part.
    "window": {"mask": "moba & window", "window": 6, "block_length": 4, "top_blocks": 2},
}


@pytest.mark.parametrize("name", CACHED)
def test_a_cache_keeps_what_is_looked_at_but_not_seen(name):
    options = {"width": M, "num_heads": H, "max_length": S, "num_kv_heads": K}
    gate = name == "sinks"
    mixer = make_mixer(**options, **CACHED[name], forget_gate=gate, position="rope")

    @jax.jit
    def run(params, x):
        state, found = mixer.init_state(B, S, x.dtype), []
        for start, stop in ((0, 5), (5, 6), (6, 7), (7, S)):
            state, y = mixer.extend(params, state, x[:, start:stop])
            found.append(y)
        return jnp.concatenate(found, 1), mixer(params, x)

    with jax.enable_x64(True):
        found, expected = run(numbers(mixer), arrays()[3])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_gates_in_a_cache_are_as_wide_as_they_were_computed():
    mixer = make_mixer(width=M, num_heads=H, max_length=S, forget_gate=True)
    state = jax.eval_shape(lambda: mixer.init_state(B, S, jnp.bfloat16))
    assert state["k"].dtype == jnp.bfloat16
    assert state["biases_0"].dtype == jnp.float32 and state["biases_0"].shape == (B, S, H)


def test_what_lacks_content_says_so():
    q, k, v, x, params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), arrays())
    gated, chosen = forgetting(params, x), Mechanism(mask=moba(BLOCK, 2))
    for name in ("ring", "splash"):
        for mechanism in (gated, chosen):
            with pytest.raises(Unsupported, match="lacks content-dependent parts; dense"):
                attend(q, k, v, mechanism, implementation=name)
    with pytest.raises(Unsupported, match="lacks bias ForgetGate; dense, blockwise"):
        attend(q, k, v, gated, implementation="jax_cudnn")
    with pytest.raises(Unsupported, match="lacks mask MoBA"):
        attend(q, k, v, chosen, implementation="jax_cudnn")
    with pytest.raises(ValueError, match="forget gate: it needs the keys' gates"):
        attend(q, k, v, FORGETTING.bind(params))
    base = {"width": M, "num_heads": H, "max_length": S}
    with pytest.raises(OptionError, match="forget_gate = True: .* mask 'full' is not causal"):
        mixer_spec(**base, mask="full", forget_gate=True)
    with pytest.raises(OptionError, match="top_blocks = 0: must be at least 1, for mask 'moba'"):
        mixer_spec(**base, mask="moba", block_length=2)
    with pytest.raises(OptionError, match="forget_gate = True: nothing here reads it"):
        mixer_spec(**base, mixer="latent", forget_gate=True)
    with pytest.raises(ValueError, match="moba: top = 0"):
        moba(4, 0)


def test_a_score_that_reads_nothing_still_gives_blocks_their_keys():
    options = {"width": M, "num_heads": H, "max_length": S, "score": "synthesizer_random"}
    mixer = make_mixer(**options, mask="moba", block_length=4, top_blocks=2)
    assert {"query", "key"} <= set(mixer.parameters())


def test_empty_slots_are_no_block_that_is_wholly_allowed():
    """Positions of a cache that are known while tracing: the slots at the end are empty."""
    lo, hi = np.array([[0, -1, -1]]), np.array([[3, 2, -1]])
    some, every = filled.classify_blocks(np.zeros((1, 1), int), np.ones((1, 1), int), lo, hi)
    assert some.tolist() == [[True, True, False]] and every.tolist() == [[True, False, False]]
    options = {"width": M, "num_heads": H, "max_length": S, "implementation": "blockwise"}
    mixer, x = make_mixer(**options, block_size=4), np.float32(arrays()[3])
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), numbers(mixer))
    _, found = mixer.extend(params, mixer.init_state(B, S, "float32"), jnp.asarray(x[:, :6]))
    close(found, jax.jit(mixer.__call__)(params, x)[:, :6])
