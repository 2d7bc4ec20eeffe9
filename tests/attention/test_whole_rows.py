"""Parts that need whole rows of scores, against loops over their papers' equations in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.errors import Unsupported
from research.attention.implementations import dense
from research.attention.implementations.attend import attend
from research.attention.mixers.cache import filled
from research.attention.mixers.streaming import make_streaming
from research.attention.parts import masks
from research.attention.parts.biases import softcap
from research.attention.parts.contextual_positions import contextual_position
from research.attention.parts.mechanism import Mechanism
from research.attention.parts.multi_token import key_query_convolution
from research.attention.parts.scores import scaled_dot
from research.attention.parts.segments import segments
from research.attention.parts.selective import Selection
from research.attention.parts.stick_breaking import StickBreaking
from research.attention.spec import make_mixer, mixer_spec
from research.options import OptionError
from tests.attention.cases import numbers, weighted
from tests.parity import compare, paper

B, T, S, H, K, D = 2, 7, 11, 4, 2, 6
FARTHEST = 3
# The queries are the last of a sequence that began before.
KV_INDEX = np.arange(S)
Q_INDEX = KV_INDEX[-T:]
IDS = np.stack([KV_INDEX // 6, np.zeros(S, int)])
MASKS = ("causal", "window", "segments")
COUNTING = Mechanism(scaled_dot(), biases=(contextual_position(D, FARTHEST),))
BREAKING = Mechanism(scaled_dot(), normalizer=StickBreaking())
QUERIES, KEYS = 3, 4
CONVOLVING = Mechanism(scaled_dot(), biases=(key_query_convolution(H, QUERIES, KEYS),))
SELECTING = Mechanism(scaled_dot(), biases=(Selection(),))


def arrays(seed=0):
    """Queries, keys, values and a table of positions."""
    rng = np.random.default_rng(seed)
    shapes = (B, T, H, D), (B, S, K, D), (B, S, K, D), (FARTHEST + 1, D)
    return tuple(rng.normal(size=shape) for shape in shapes)


def mask(name):
    """The mask of this name, of slots that are filled."""
    ids = jnp.asarray(IDS)
    parts = {"window": masks.window(6), "segments": masks.causal() & segments(ids, ids)}
    return parts.get(name, masks.causal()) & filled


def sees(name):
    """Which keys a query sees, (B, T, S)."""
    i, j = Q_INDEX[:, None], KV_INDEX[None, :]
    seen = np.broadcast_to((j <= i) & ((name != "window") | (i - j < 6)), (B, T, S))
    return seen & (IDS[:, i] == IDS[:, j]) if name == "segments" else seen


def interpolated(torch, table, p):
    """e[p], between the rows around p (Golovneva et al. 2024, equation 5)."""
    low, high = int(torch.floor(p)), int(torch.ceil(p))
    return (p - low) * table[high] + (1 - (p - low)) * table[low]


def counted(torch, q, k, v, table, seen):
    """CoPE by its equations, one pair at a time."""
    out = []
    for b, t, h in np.ndindex(B, T, H):
        near = [j for j in range(S) if seen[b, t, j]]
        keys = k[b, :, h // (H // K)]
        logits = {j: q[b, t, h] @ keys[j] / D**0.5 for j in near}
        final = []
        for j in near:
            gates = [torch.sigmoid(logits[m]) for m in near if m >= j]
            p = torch.clamp(torch.stack(gates).sum(), max=FARTHEST)
            final.append(logits[j] + q[b, t, h] @ interpolated(torch, table, p))
        weights = torch.softmax(torch.stack(final), 0)
        out.append(weights @ v[b, near, h // (H // K)])
    return torch.stack(out).reshape(B, T, H, D)


def with_gradients(torch, function, given):
    """The output of PyTorch, and the gradients of `weighted` of it."""
    given = [torch.tensor(a, requires_grad=True) for a in given]
    out = function(*given)
    grad = torch.cos(torch.arange(out.numel(), dtype=out.dtype)).reshape(out.shape)
    out.backward(grad)
    return out.detach().numpy(), [a.grad.numpy() for a in given]


def broken(torch, q, k, v, seen):
    """Stick-breaking attention by its equations, one pair at a time."""
    out = []
    for b, t, h in np.ndindex(B, T, H):
        keys, values = k[b, :, h // (H // K)], v[b, :, h // (H // K)]
        left, total = 1.0, torch.zeros(D, dtype=q.dtype)
        for j in reversed(range(S)):
            if seen[b, t, j]:
                share = torch.sigmoid(q[b, t, h] @ keys[j] / D**0.5)
                total = total + share * left * values[j]
                left = left * (1 - share)
        out.append(total)
    return torch.stack(out).reshape(B, T, H, D)


def selected(torch, q, k, v, before, seen, ids):
    """Selective attention, query after query; `before` is what earlier ones took from each key."""
    out = []
    for b in range(B):
        taken = list(before[b])
        for t in range(T):
            near = [j for j in range(S) if seen[b, t, j]]
            heads = [(q[b, t, h], k[b, near, h // (H // K)]) for h in range(H)]
            logits = torch.stack([keys @ query for query, keys in heads]) / D**0.5
            weights = torch.softmax(logits - torch.stack([taken[j] for j in near]), -1)
            out += [weights[h] @ v[b, near, h // (H // K)] for h in range(H)]
            for logit, j in zip(logits[0], near, strict=True):
                first = j == 0 or ids[b, j] != ids[b, j - 1]
                if not first and j != S - T + t:
                    taken[j] = taken[j] + torch.relu(logit)
    return torch.stack(out).reshape(B, T, H, D)


def convolved(torch, q, k, v, kernel, before, seen):
    """Multi-token attention, one pair at a time; `before` is the scores of earlier queries."""
    out = []
    for b, t, h in np.ndindex(B, T, H):
        keys, near = k[b, :, h // (H // K)], [j for j in range(S) if seen[b, t, j]]

        def score(t, j, b=b, h=h, keys=keys):
            if t < 0:
                return before[b, j, h, QUERIES - 1 + t]
            return q[b, t, h] @ keys[j] / D**0.5 if seen[b, t, j] else 0.0

        final = []
        for j in near:
            # The paper's j' goes from -(KEYS // 2) to the other side.
            shifts = range(-(KEYS // 2), KEYS - KEYS // 2)
            pairs = [(m, s) for m in range(QUERIES) for s in shifts if j - s in near]
            final.append(sum(kernel[h, m, s + KEYS // 2] * score(t - m, j - s) for m, s in pairs))
        out.append(torch.softmax(torch.stack(final), 0) @ v[b, near, h // (H // K)])
    return torch.stack(out).reshape(B, T, H, D)


def check(row, name, by_loops, given, bound):
    """Values and gradients, also of keys in any order, one of which is none.

    `bound` makes the mechanism of what is given beside queries, keys and values; and of a function
    that puts what there is of each key in order.
    """
    torch = pytest.importorskip("torch")
    order = np.random.default_rng(1).permutation(S)

    def run(q, k, v, *others, kv_index=KV_INDEX):
        def placed(a):
            if kv_index is KV_INDEX:
                return a
            return jnp.pad(a[:, order], [(0, 0), (1, 0), *[(0, 0)] * (a.ndim - 2)])

        mechanism = bound(placed, *others).restricted_to(mask(name))
        at = {"q_index": Q_INDEX, "kv_index": kv_index}
        out = dense.attend(q, placed(k), placed(v), mechanism, **at)
        return weighted(out), out

    grad = jax.jit(jax.grad(run, tuple(range(len(given))), has_aux=True))
    value, gradients = with_gradients(torch, lambda *a: by_loops(torch, *a, sees(name)), given)
    assert all(np.abs(g).max() > 1e-2 for g in gradients)
    with jax.enable_x64(True):
        shuffled = np.concatenate([[-1], KV_INDEX[order]])
        for found, out in (grad(*given), grad(*given, kv_index=shuffled)):
            pairs = dict(enumerate(zip(found, gradients, strict=True)))
            compare(
                row,
                paper(row, "loops in PyTorch float64"),
                outputs=(out, value),
                gradients=pairs,
                tolerance=3e-13,
            )


@pytest.mark.parametrize("name", MASKS)
def test_contextual_positions_by_loops(name):
    check(
        "position=cope",
        name,
        counted,
        arrays(),
        lambda _, table: COUNTING.bind({"biases_0_embedding": table}),
    )


@pytest.mark.parametrize("name", MASKS)
def test_stick_breaking_by_loops(name):
    check("normalizer=stick_breaking", name, broken, arrays()[:3], lambda _: BREAKING)


@pytest.mark.parametrize("name", MASKS)
def test_selection_by_loops(name):
    ids = IDS if name == "segments" else np.zeros_like(IDS)
    given = *arrays()[:3], np.abs(np.random.default_rng(2).normal(size=(B, S)))
    check(
        "selective=true",
        name,
        lambda *a: selected(*a, ids),
        given,
        lambda placed, before: SELECTING.with_tokens({"biases_0": placed(before)}),
    )


@pytest.mark.parametrize("name", MASKS)
def test_convolutions_of_keys_and_queries_by_loops(name):
    rng = np.random.default_rng(2)
    kernel, before = rng.normal(size=(H, QUERIES, KEYS)), rng.normal(size=(B, S, H, QUERIES - 1))

    def bound(placed, kernel, before):
        mechanism = CONVOLVING.bind({"biases_0_kernel": kernel})
        return mechanism.with_tokens({"biases_0": placed(before)})

    check(
        "score_conv_queries=3, score_conv_keys=4",
        name,
        convolved,
        (*arrays()[:3], kernel, before),
        bound,
    )


def test_a_convolution_starts_as_the_identity():
    q, k, v, _ = jax.tree.map(jnp.float32, arrays())
    kernel = CONVOLVING.parameters()["biases_0_kernel"]
    drawn = kernel.init(jax.random.key(0), kernel.shape)
    mechanism = CONVOLVING.bind({"biases_0_kernel": drawn}, masks.causal())
    at = {"q_index": Q_INDEX, "kv_index": KV_INDEX}
    expected = dense.attend(q, k, v, Mechanism(mask=masks.causal()), **at)
    np.testing.assert_allclose(dense.attend(q, k, v, mechanism, **at), expected, rtol=1e-6)


CHUNKS = {
    "causal": {"mask": "causal", "position": "rope"},
    "sinks": {"mask": "window | causal & global", "window": 3, "global_tokens": 2},
    "blocks": {"mask": "moba & window", "window": 6, "block_length": 4, "top_blocks": 2},
}


@pytest.mark.parametrize("name", CHUNKS)
def test_a_cache_keeps_what_queries_leave_to_later_ones(name):
    """In chunks that are written to it before and after they are read, beside a rolling cache."""
    options = {"selective": True, "score_conv_queries": 3, "score_conv_keys": 2, **CHUNKS[name]}
    mixer = make_mixer(width=8, num_heads=H, max_length=S, **options)
    rolling = make_streaming(mixer, S, 0)

    @jax.jit
    def run(params, x):
        state, found = mixer.init_state(B, S, x.dtype), []
        for start, stop in ((0, 4), (4, 5), (5, 6), (6, S)):
            state, y = mixer.extend(params, state, x[:, start:stop])
            found.append(y)
        return jnp.concatenate(found, 1), rolling(params, x), mixer(params, x)

    x = np.random.default_rng(3).normal(size=(B, S, 8))
    with jax.enable_x64(True):
        found, rolled, expected = run(numbers(mixer), x)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(rolled, expected, rtol=1e-9, atol=1e-12)


def test_what_queries_leave_is_wide_and_of_each_key():
    options = {"selective": True, "score_conv_queries": 3}
    mixer = make_mixer(width=8, num_heads=H, max_length=S, **options)
    state = jax.eval_shape(lambda: mixer.init_state(B, S, jnp.bfloat16))
    assert state["biases_0"].dtype == state["biases_1"].dtype == jnp.float32
    assert state["biases_0"].shape == (B, S, H, 2) and state["biases_1"].shape == (B, S)


def test_weights_and_what_is_left_of_the_stick_make_one():
    """However many factors underflow."""
    scores = 40 * np.random.default_rng(3).normal(size=(1, 1, 5, 50))
    scores[..., 0, :], scores[..., 1, :] = 100, -100
    ordered = BREAKING.evaluate(*(jnp.zeros((1, 50, 1, 1)),) * 2, None, None).normalizer
    weights = np.asarray(ordered(jnp.asarray(scores, jnp.float32)))[0, 0]
    left = np.prod(1 / (1 + np.exp(scores[0, 0])), -1)
    np.testing.assert_allclose(weights.sum(-1) + left, 1, atol=1e-6)
    # All of it goes to the last key, or none of it to any.
    np.testing.assert_allclose(weights[0], np.arange(50) == 49, atol=1e-30)
    assert weights[1].sum() < 1e-30


def test_contextual_positions_count_bounded_scores():
    """A soft-cap bounds what is counted, and not the position's own term."""
    options = {"width": 8, "num_heads": 2, "max_length": 5, "position": "cope", "softcap": 1.0}
    mechanism = mixer_spec(**options, forget_gate=True).make().mechanism
    names = [type(bias).__name__ for bias in mechanism.biases]
    assert names == ["Softcap", "ContextualPosition", "ForgetGate"]
    # Never more rows than a position can reach.
    assert mechanism.parameters()["biases_1_embedding"].shape == (6, 4)


def test_keys_of_score_zero_are_half_a_position_apart():
    """Their gates are 0.5, and the last key is at its own gate."""
    table = jnp.asarray([[0.0], [1.0], [10.0]])
    mechanism = Mechanism(mask=masks.causal(), biases=(contextual_position(1, 2),))
    q, k = jnp.ones((1, 1, 1, 1)), jnp.zeros((1, 6, 1, 1))
    at = {"q_index": np.asarray([5]), "kv_index": np.arange(6)}
    found = dense.scores(q, k, mechanism.bind({"biases_0_embedding": table}), **at)
    # From the last: 0.5, 1, 1.5, 2 and 2 from there on.
    np.testing.assert_allclose(found[0, 0, 0], [10, 10, 10, 5.5, 1, 0.5], rtol=1e-6)


def test_blocks_do_not_have_whole_rows():
    q, k, v, table = jax.tree.map(jnp.float32, arrays())
    counting = COUNTING.bind({"biases_0_embedding": table}, masks.causal())
    for name in ("blockwise", "jax_xla", "jax_cudnn"):
        with pytest.raises(Unsupported, match="lacks bias ContextualPosition"):
            attend(q, k, v, counting, implementation=name)
        with pytest.raises(Unsupported, match="lacks bias Selection"):
            attend(q, k, v, SELECTING, implementation=name)
    for name in ("ring", "splash"):
        with pytest.raises(Unsupported, match="lacks content-dependent parts; dense, rows have"):
            attend(q, k, v, counting, implementation=name)
    for name in ("blockwise", "jax_xla", "jax_cudnn"):
        with pytest.raises(Unsupported, match="lacks normalizer 'stick_breaking'; dense, rows"):
            attend(q, k, v, BREAKING, implementation=name)
    bounded = Mechanism(biases=(softcap(2.0), *counting.biases))
    with pytest.raises(Unsupported, match="ContextualPosition .it needs whole rows of scores"):
        attend(q, k, v, bounded, implementation="blockwise")


def test_what_goes_back_from_the_query_needs_a_causal_mask():
    base = {"width": 8, "num_heads": 2, "max_length": 5}
    for other in ({"mask": "full"}, {"mask": "prefix", "prefix_length": 2}):
        with pytest.raises(OptionError, match="position = 'cope': .* the mask is not causal"):
            mixer_spec(**base, **other, position="cope")
        with pytest.raises(OptionError, match="normalizer = 'stick_breaking': .* is not causal"):
            mixer_spec(**base, **other, normalizer="stick_breaking")
        for name, value in (("selective", True), ("score_conv_queries", 2)):
            with pytest.raises(OptionError, match=f"{name} = {value}: .* mask '.*' is not causal"):
                mixer_spec(**base, **other, **{name: value})
    with pytest.raises(OptionError, match="score_conv_keys = 3: nothing here reads it"):
        mixer_spec(**base, score_conv_keys=3)
    with pytest.raises(ValueError, match="key_query_convolution: keys = 0"):
        key_query_convolution(2, 1, 0)
    with pytest.raises(OptionError, match="max_contextual_position = 0: must be at least 1"):
        mixer_spec(**base, position="cope", max_contextual_position=0)
    with pytest.raises(ValueError, match="contextual_position: farthest = 0"):
        contextual_position(4, 0)
