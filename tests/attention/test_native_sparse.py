"""Native sparse attention, from the paper's equations in PyTorch float64: outputs and gradients."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.mixers.native_sparse import NativeSparse
from research.attention.mixers.self_attention import SelfAttention
from research.attention.parts.positions import Rotary
from research.attention.spec import mixer_spec
from research.options import OptionError
from tests.attention.cases import close
from tests.attention.in_torch import equals_torch

B, T, M, H, K, D = 1, 17, 6, 4, 2, 4
# Half the time to compile.
QUICK = {"xla_backend_optimization_level": 0}
SIZES = {"width": M, "num_heads": H, "num_kv_heads": K, "head_width": D}
# l, d, l', n, w: overlapping blocks; the equal ones of equation 9; compressed longer than selected.
CASES = {
    "overlapping": ((4, 2, 4, 4, 3), None),
    "equal, rope": ((3, 3, 3, 5, 2), Rotary()),
    "longer, rope": ((6, 2, 4, 4, 5), Rotary()),
}


def make(case, **form):
    """The mixer of a case."""
    names = "compress_length", "compress_stride", "block_length", "top_blocks", "window_length"
    lengths, rotary = CASES[case]
    return NativeSparse(**SIZES, **dict(zip(names, lengths, strict=True)), rotary=rotary, **form)


def arrays_of(mixer, length=T):
    """Parameters and an input of float32, by name."""
    rng = np.random.default_rng(1)
    described = sorted(mixer.parameters().items())
    arrays = {n: np.float32(0.7 * rng.normal(size=p.shape)) for n, p in described}
    return arrays | {"x": np.float32(rng.normal(size=(B, length, M)))}


def published(torch, p, x, lengths, turns):
    """The output of the layer, token by token and head by head."""
    length, stride, size, top, reach = lengths

    def turned(y, position):
        if not turns:
            return y
        angle = position * 10000.0 ** (-2 * torch.arange(D // 2, dtype=torch.float64) / D)
        a, b = y[: D // 2], y[D // 2 :]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()])

    def attention(q, k, v):
        if not k:
            return torch.zeros(0), torch.zeros(D, dtype=torch.float64)
        weights = torch.softmax(torch.stack(k) @ q / math.sqrt(D), 0)
        return weights, weights @ torch.stack(v)

    def phi(n, tokens):
        block = torch.stack(tokens) + p["compress_position"][n]
        hidden = torch.einsum("ld,ldf->f", block, p["compress_in"][n])
        return torch.nn.functional.gelu(hidden) @ p["compress_out"][n]

    def one_group(x, kv):
        heads = range(kv * H // K, (kv + 1) * H // K)
        ks, vs = ([x @ p[n][branch, :, kv] for branch in range(3)] for n in ("key", "value"))
        rotated = [None, *([turned(y, s) for s, y in enumerate(k)] for k in ks[1:])]
        # Equation 7; blocks begin at i d.
        starts = range(0, len(x) - length + 1, stride)
        every_k = [turned(phi(0, list(ks[0][s : s + length])), s) for s in starts]
        every_v = [phi(1, list(vs[0][s : s + length])) for s in starts]
        rows = []
        for t in range(len(x)):
            ended = len(range(0, t - length + 2, stride))
            k, v = every_k[:ended], every_v[:ended]
            queries = [turned(x[t] @ p["query"][:, h], t) for h in heads]
            found = [attention(q, k, v) for q in queries]
            # Equations 9 and 10, where blocks count from 1 and p is 0 where there is no block.
            total = sum(weights for weights, _ in found)
            importance = []
            for j in range(1, t // size + 2):
                at = [
                    size // stride * j - m - n
                    for m in range(size // stride)
                    for n in range(length // stride)
                ]
                importance.append(sum(float(total[i - 1].detach()) for i in at if 1 <= i <= len(k)))
            own = t // size
            first = [j for j in (0, own - 1, own) if j >= 0]
            others = [j for j in range(own + 1) if j not in first]
            others = sorted(others, key=lambda j: -importance[j])[: top - len(set(first))]
            # Equation 12.
            chosen = [s for s in range(t + 1) if s // size in {*first, *others}]
            recent = range(max(0, t - reach + 1), t + 1)
            out = []
            for q, (_, compressed), h in zip(queries, found, heads, strict=True):
                selected = [[a[s] for s in chosen] for a in (rotated[1], vs[1])]
                window = [[a[s] for s in recent] for a in (rotated[2], vs[2])]
                gates = torch.sigmoid(x[t] @ p["gate"][:, h])
                branches = compressed, attention(q, *selected)[1], attention(q, *window)[1]
                out.append(sum(g * o for g, o in zip(gates, branches, strict=True)) @ p["out"][h])
            rows.append(sum(out))
        return torch.stack(rows)

    return torch.stack([sum(one_group(row, kv) for kv in range(K)) for row in x])


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_paper_in_torch(case):
    """In float32 against float64, outputs and gradients of every parameter and of the input."""
    torch = pytest.importorskip("torch")
    lengths, rotary = CASES[case]
    equals_torch(
        "native_sparse",
        {"": make(case)},
        lambda p, x: published(torch, p, x, lengths, rotary is not None),
        (B, T, M),
        QUICK,
    )


@pytest.mark.parametrize("sizes", [(1, 7, 2, 4), (3, 2)])
def test_any_chunks_give_the_whole(sizes):
    """Also where there are fewer tokens than a compressed block has."""
    mixer = make("longer, rope")
    length = sum(sizes)
    arrays = jax.tree.map(jnp.asarray, arrays_of(mixer))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(arrays, x):
        state, done, outputs = mixer.init_state(B, length, "float32"), 0, []
        for size in sizes:
            state, out = mixer.extend(arrays, state, x[:, done : done + size])
            outputs, done = [*outputs, out], done + size
        return jnp.concatenate(outputs, 1), mixer(arrays, x[:, :length])

    close(*run(arrays, arrays["x"]), 2e-6)


def test_as_many_blocks_as_there_are_is_full_attention():
    """With the other branches at zero, of which the MLP returns what its last matrix makes."""
    mixer = dataclasses.replace(make("overlapping"), top_blocks=-(-T // 4))
    arrays = arrays_of(mixer)
    arrays |= {"compress_out": 0 * arrays["compress_out"]}
    arrays["value"][2] = 0
    full = SelfAttention(**SIZES, output_gate=True)
    partial = make("overlapping")
    own = {n: arrays[n][1] for n in ("key", "value")} | {n: arrays[n] for n in ("query", "out")}
    own["gate"] = np.repeat(arrays["gate"][..., 1:2], D, -1)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(arrays, own, x):
        return mixer(arrays, x), full(own, x), partial(arrays, x)

    found, expected, fewer = run(arrays, own, arrays["x"])
    close(found, expected, 2e-6)
    assert np.abs(found - fewer).max() > 1e-3


def test_state_has_the_latest_tokens_and_one_slot_for_each_block():
    spec = mixer_spec(
        width=64, num_heads=8, num_kv_heads=2, max_length=1000, mixer="native_sparse", window=100
    )
    state = jax.eval_shape(lambda: spec.make().init_state(1, 1000, "float32"))
    slots = {name: part["k"].shape[1] for name, part in state.items()}
    assert slots == {"selected": 1000, "window": 100, "compressed": 61, "recent": 32}
    assert state["compressed"]["v"].shape == (1, 61, 2, 8)


def test_options_that_do_not_fit_are_refused_in_one_line():
    base = {"width": 16, "num_heads": 4, "max_length": 12, "mixer": "native_sparse"}
    with pytest.raises(OptionError, match=r"compress_length = 40: must be a multiple of compress"):
        mixer_spec(**base, compress_length=40)
    with pytest.raises(OptionError, match=r"block_length = 8: must be a multiple of compress_str"):
        mixer_spec(**base, block_length=8)
    with pytest.raises(OptionError, match=r"top_blocks = 2: must be at least 3: the first"):
        mixer_spec(**base, top_blocks=2)
    with pytest.raises(OptionError, match=r"position = 'alibi': mixer 'native_sparse' applies no"):
        mixer_spec(**base, position="alibi")
