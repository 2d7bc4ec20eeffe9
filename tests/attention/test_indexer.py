"""The lightning indexer, against loops over pairs, and what does and does not train it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.attention.errors import Unsupported
from research.attention.implementations import dense
from research.attention.implementations.attend import attend
from research.attention.parts.masks import causal
from research.attention.parts.segments import segments
from research.attention.spec import make_mixer, mixer_spec
from research.options import OptionError
from tests.attention.cases import close, numbers, weighted
from tests.parity import compare, paper

B, T, M, H, K, D = 2, 11, 12, 4, 2, 3
J, E, TOP = 3, 6, 4
SIZES = {"width": M, "num_heads": H, "num_kv_heads": K, "max_length": T}
INDEXED = {"index_top": TOP, "index_heads": J, "index_width": E}
ROW = "index_top=4", paper("index_top=4", "loops in NumPy float64")


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def tokens():
    return np.random.default_rng(3).normal(size=(B, T, M))


def index_scores(params, x, b, t):
    """I of one query and all keys (equation 1), with the projections of the released model."""
    k = x[b] @ params["selection_key"]
    k = (k - k.mean(-1, keepdims=True)) / np.sqrt(k.var(-1, keepdims=True) + 1e-6)
    k = k * params["selection_key_scale"] + params["selection_key_bias"]
    total = np.zeros(T)
    for j in range(J):
        q = x[b, t] @ params["selection_query"][:, j]
        w = x[b, t] @ params["selection_weight"][:, j] / np.sqrt(J) / np.sqrt(E)
        total += w * np.maximum(k @ q, 0)
    return total


def by_loops(params, x, top, ids):
    """The output, which keys each query selects, and the loss (equations 1 to 4)."""
    out, chosen, terms = np.zeros((B, T, M)), np.zeros((B, T, T), bool), []
    for b, t in np.ndindex(B, T):
        scores = index_scores(params, x, b, t)
        visible = [s for s in range(t + 1) if ids[b, s] == ids[b, t]]
        kept = sorted(sorted(visible, key=lambda s: -scores[s])[:top])
        chosen[b, t, kept], summed = True, np.zeros(len(kept))
        for h in range(H):
            q = x[b, t] @ params["query"][:, h]
            k, v = (x[b, kept] @ params[name][:, h // (H // K)] for name in ("key", "value"))
            weights = softmax(k @ q / np.sqrt(D))
            summed += weights
            out[b, t] += (weights @ v) @ params["out"][h]
        p = summed / summed.sum()
        terms.append((p * (np.log(p) - np.log(softmax(scores[kept])))).sum())
    return out, chosen, np.mean(terms)


@functools.cache
def mixer(**options):
    return make_mixer(**SIZES, **INDEXED | options)


@pytest.mark.parametrize("top", [TOP, T])
@pytest.mark.parametrize("packed", [False, True])
def test_equations_by_loops(top, packed):
    """The output, the selection and its loss: all keys are the dense warm-up of equation 3."""
    ours, x = mixer(index_top=top), tokens()
    params, ids = numbers(ours), np.zeros((B, T), int)
    if packed:
        ids[0, 5:], ids[1, 3:] = 1, 1
    out, chosen, loss = by_loops(params, x, top, ids)

    @jax.jit
    def run(params, x):
        mask = segments(*[jnp.asarray(ids)] * 2) if packed else None
        shown = ours.attention_trace(params, x, mask=mask)
        return ours(params, x, mask=mask), shown.weights, ours.losses(params, x, mask=mask)

    with jax.enable_x64(True):
        found, weights, losses = run(params, x)
    np.testing.assert_array_equal(np.asarray(weights) > 0, np.repeat(chosen[:, None], H, 1))
    compare(*ROW, outputs=(found, out), tolerance=1e-13)
    compare(*ROW, outputs=(losses["indexer_loss"][None], loss[None]), tolerance=1e-13)


def test_gradient_of_the_loss_by_differences():
    """Along one direction through the indexer's parameters, with the selection as it is."""
    ours, x = mixer(), tokens()
    params = numbers(ours)
    own = {n: np.cos(np.arange(p.size)).reshape(p.shape) for n, p in params.items() if "sel" in n}
    with jax.enable_x64(True):
        run = jax.jit(jax.grad(lambda p, x: ours.losses(p, x)["indexer_loss"]))
        slope = jax.device_get(run(params, x))
    loss = [
        by_loops(params | {n: params[n] + s * d for n, d in own.items()}, x, TOP, np.zeros((B, T)))
        for s in (1e-6, -1e-6)
    ]
    expected = (loss[0][2] - loss[1][2]) / 2e-6
    assert abs(sum((slope[n] * d).sum() for n, d in own.items()) - expected) < 1e-8


@pytest.mark.parametrize("kind", ["softmax", "latent"])
def test_the_loss_trains_the_indexer_and_nothing_else_does(kind):
    sizes = {"position": "rope", **INDEXED}
    sizes |= {"mixer": kind, "query_latent_width": 5} if kind == "latent" else {}
    ours = make_mixer(width=M, num_heads=H, max_length=T, head_width=4, **sizes)

    @jax.jit
    def run(params, x):
        of_output = jax.grad(lambda p, x: weighted(ours(p, x)), (0, 1))(params, x)
        of_loss = jax.grad(lambda p, x: ours.losses(p, x)["indexer_loss"], (0, 1))(params, x)
        return of_output, of_loss

    params = jax.tree.map(np.float32, numbers(ours))
    (main, main_x), (own, own_x) = jax.device_get(run(params, np.float32(tokens())))
    for name in params:
        of_indexer = name.startswith("selection")
        assert (np.abs(own[name]).max() > 0) == of_indexer, name
        assert (np.abs(main[name]).max() > 0) != of_indexer, name
    assert np.abs(main_x).max() > 0
    assert not own_x.any()


@pytest.mark.parametrize("position", ["none", "rope", "alibi"])
def test_selecting_all_keys_is_full_attention(position):
    ours, x = mixer(index_top=T, position=position, head_width=4), np.float32(tokens())
    plain = make_mixer(**SIZES, position=position, head_width=4)
    params = jax.tree.map(np.float32, numbers(ours))
    learned = {name: params[name] for name in plain.parameters()}
    assert np.array_equal(jax.jit(ours.__call__)(params, x), jax.jit(plain.__call__)(learned, x))


def test_of_equal_scores_the_earlier_key_is_selected_wherever_it_is_stored():
    """Weights of zero make all scores equal; the cache is a ring."""
    window = {"mask": "window | causal & global", "window": 5, "global_tokens": 2}
    ours, x = make_mixer(**SIZES, **window, index_top=3), jnp.asarray(tokens(), jnp.float32)
    params = jax.tree.map(np.float32, numbers(ours))
    params["selection_weight"] = np.zeros_like(params["selection_weight"])
    state, found = ours.init_state(B, T, "float32"), []
    extend = jax.jit(ours.extend)
    for t in range(T):
        state, y = extend(params, state, x[:, t : t + 1])
        found.append(y)
    whole, trace = jax.jit(ours.__call__), jax.jit(ours.attention_trace)
    seen = np.asarray(trace(params, x).weights[0, 0] > 0)
    assert [np.flatnonzero(row).tolist() for row in seen[-2:]] == [[0, 1, 5], [0, 1, 6]]
    close(jnp.concatenate(found, 1), whole(params, x))


def test_implementations_equal_dense():
    x = np.float32(tokens())
    ours = {
        name: mixer(position="rope", head_width=4, implementation=name, block_size=3)
        for name in ("dense", "blockwise", "jax_xla")
    }
    params = jax.tree.map(np.float32, numbers(ours["dense"]))

    @jax.jit
    def run(params, x):
        def loss(params, x, one):
            out = one(params, x)
            return weighted(out), out

        return [jax.grad(loss, (0, 1), has_aux=True)(params, x, m) for m in ours.values()]

    expected, *others = run(params, x)
    for found in others:
        close(found, expected, 1e-4)


@pytest.mark.parametrize("top", [8, 2], ids=["all keys", "those it selects"])
def test_training_finds_the_keys_that_attention_reads(top):
    """Queries read one key of eight; the best two by the indexer come to hold it."""
    half, count = 3, 8
    sizes = {"width": 2 * half, "num_heads": 1, "max_length": count, "mask": "full"}
    sizes |= {"index_heads": 8, "index_width": 6}
    trained, asked = (make_mixer(**sizes, index_top=k) for k in (top, 2))
    params = jax.tree.map(np.float32, numbers(asked))
    # Half of the channels say what a token is, and half what it looks for.
    same = np.eye(2 * half, dtype=np.float32)[:, None]
    params |= {"query": 16 * np.roll(same, half, 0), "key": same}

    def draw(key):
        names = jax.random.normal(key, (8, count, half))
        names *= 2 / jnp.linalg.norm(names, axis=-1, keepdims=True)
        sought = jax.random.permutation(jax.random.fold_in(key, 1), count)
        return jnp.concatenate([names, names[:, sought]], -1), sought

    @jax.jit
    def found(params):
        x, sought = draw(jax.random.key(9))
        chosen = asked.attention_trace(params, x).weights[:, 0] > 0
        return jnp.take_along_axis(chosen, sought[None, :, None], -1).mean()

    optimizer = optax.adam(0.1)

    @jax.jit
    def train(params):
        def step(carry, key):
            def loss(params):
                return trained.losses(params, draw(key)[0])["indexer_loss"]

            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(0), 100)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    learned = train(params)
    assert found(params) < 0.35
    assert found(learned) > 0.65
    for name in params:
        assert name.startswith("selection") or np.array_equal(learned[name], params[name])


def test_what_lacks_a_selection_says_so():
    chooses = mixer().mechanism
    q = jnp.ones((B, T, H, 4))
    for name in ("ring", "splash"):
        with pytest.raises(Unsupported, match="lacks content-dependent parts; dense"):
            attend(q, q, q, chooses, implementation=name)
    with pytest.raises(Unsupported, match="lacks a selection of keys; dense, blockwise"):
        attend(q, q, q, chooses, implementation="jax_cudnn")
    with pytest.raises(ValueError, match="indexer: it needs tokens"):
        dense.attend(q, q, q, chooses)
    assert make_mixer(**SIZES).losses({}, q[:, :, 0]) == {}
    assert chooses.mask == causal()
    base = {"width": M, "num_heads": H, "max_length": T}
    with pytest.raises(OptionError, match="index_heads = 2: nothing here reads it"):
        mixer_spec(**base, index_heads=2)
    with pytest.raises(OptionError, match="index_top = 2: nothing here reads it"):
        mixer_spec(**base, mixer="differential", index_top=2)
