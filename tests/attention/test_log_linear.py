"""Log-linear attention, bucket by bucket from the paper's equations in PyTorch float64."""

import jax
import jax.numpy as jnp
import pytest

from research.attention.mixers.linear.delta import GatedDeltaNet
from research.attention.mixers.linear.state_space import StateSpace
from research.attention.mixers.mixer import init_params, state_bytes
from research.attention.spec import mixer_spec
from research.options import OptionError
from research.training.budget import count_flops
from tests.attention.in_torch import equals_torch, in_every_form

B, T, M, H, D, N = 2, 11, 6, 2, 4, 3
PAPER = 'Guo et al. 2025, "Log-Linear Attention", section 3'


def buckets(t):
    """[(level, its places)] of the past of t: the powers of 2 whose sum t is, smallest first."""
    found = [(0, range(t, t + 1))]
    while t:
        digit = (t & -t).bit_length() - 1
        found.append((digit + 1, range(t - 2**digit, t)))
        t -= 2**digit
    return found


def test_buckets_are_those_of_the_figure():
    """Of figure 1 of the paper; levels above the last one have what is older."""
    assert [(n, list(places)) for n, places in buckets(6)] == [
        (0, [6]),
        (2, [4, 5]),
        (3, [0, 1, 2, 3]),
    ]


def read(torch, transitions, puts, t, query, weights):
    """The sum over buckets of w_l S^T q, with S of a bucket as a sum over its tokens."""
    y = 0
    for level, places in buckets(t):
        state = torch.zeros_like(puts[0])
        for s in places:
            put = puts[s]
            for r in range(s + 1, t + 1):
                put = transitions[r] @ put
            state = state + put
        y = y + weights[min(level, len(weights) - 1)] * state.T @ query
    return y


def decays(torch, p, row, h):
    """Steps and decays of a head, each (T,)."""
    steps = torch.nn.functional.softplus(row @ p["step"][:, h] + p["step_bias"][h])
    return steps, torch.exp(-steps * p["log_rate"][h].exp())


def in_heads(torch, p, x, of_head, norm):
    """A layer of heads: (torch, p, row, h) to transitions, puts, queries and what is added."""
    silu, rows = torch.nn.functional.silu, []
    for row in x:
        outputs = []
        for h in range(H):
            transitions, puts, queries, added = of_head(torch, p, row, h)
            weights = torch.nn.functional.softplus(row @ p["level"][:, h])
            found = [
                read(torch, transitions, puts, t, queries[t], weights[t]) for t in range(len(row))
            ]
            outputs.append(torch.stack(found) + added)
        gates = silu(torch.einsum("tm,mhd->thd", row, p["gate"]))
        rows.append(torch.einsum("thd,hdm->tm", norm(torch.stack(outputs, 1), gates), p["out"]))
    return torch.stack(rows)


def space_head(torch, p, row, h):
    steps, kept = decays(torch, p, row, h)
    values, unit = row @ p["value"][:, h], torch.eye(N, dtype=torch.float64)
    keys = steps[:, None] * (row @ p["key"][:, 0])
    puts = [torch.outer(k, v) for k, v in zip(keys, values, strict=True)]
    return [a * unit for a in kept], puts, row @ p["query"][:, 0], p["skip"][h] * values


def space_norm(y, gates):
    y = y * gates
    return y / (y.square().mean((-2, -1), keepdims=True) + 1e-6).sqrt()


def delta_head(torch, p, row, h):
    silu, unit = torch.nn.functional.silu, torch.eye(D, dtype=torch.float64)
    keys, queries = (silu(row @ p[name][:, h]) for name in ("key", "query"))
    keys, queries = (y / (y.square().sum(-1, True) + 1e-6).sqrt() for y in (keys, queries))
    values, beta = silu(row @ p["value"][:, h]), torch.sigmoid(row @ p["beta"][:, h])
    kept = decays(torch, p, row, h)[1]
    transitions = [
        a * (unit - b * torch.outer(k, k)) for a, b, k in zip(kept, beta, keys, strict=True)
    ]
    puts = [b * torch.outer(k, v) for b, k, v in zip(beta, keys, values, strict=True)]
    return transitions, puts, queries / D**0.5, 0.0


def delta_norm(y, gates):
    return y / (y.square().mean(-1, keepdims=True) + 1e-6).sqrt() * gates


LAYERS = {
    "state_space": (StateSpace, {"state_width": N}, space_head, space_norm),
    "gated_delta": (GatedDeltaNet, {}, delta_head, delta_norm),
}


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("state_space", 5),
        ("gated_delta", 5),
        pytest.param("state_space", 3, marks=pytest.mark.slow),
    ],
)
def test_it_is_the_paper_in_torch(name, levels):
    """In float32 against float64, outputs and gradients of every parameter and of the input.

    With as many levels as the length has, as in the paper, and with fewer.
    """
    torch = pytest.importorskip("torch")
    cls, own, of_head, norm = LAYERS[name]
    sizes = {"width": M, "num_heads": H, "head_width": D, "log_levels": levels, **own}
    equals_torch(
        f"{name}, log_levels={levels}",
        in_every_form(cls, sizes),
        lambda p, x: in_heads(torch, p, x, of_head, norm),
        (B, T, M),
        {"xla_backend_optimization_level": 0},
        PAPER,
    )


def made(**options):
    sizes = {"width": M, "num_heads": H, "head_width": D, "feature_width": N}
    return mixer_spec(mixer="state_space", **sizes, **options).make()


def test_levels_are_at_most_those_of_the_longest_sequence():
    """And the state has S of each, and how many tokens it has seen."""
    for length, levels in ((1, 1), (2, 2), (8, 4), (9, 5), (1024, 11)):
        mixer = made(log_levels=64, max_length=length)
        assert mixer.log_levels == levels
        assert state_bytes(mixer, 1, length, "float32") == 4 * H * levels * N * D + 4
    assert made(log_levels=4, max_length=1024).log_levels == 4


def test_products_grow_with_the_length_and_its_logarithm():
    """Backwards too; those of all pairs with the square."""

    def products(length, form):
        mixer = made(log_levels=64, max_length=length, implementation=form, block_size=16)
        params = jax.eval_shape(lambda: init_params(mixer, jax.random.key(0)))
        x = jax.ShapeDtypeStruct((1, length, M), jnp.float32)
        grad = jax.grad(lambda p, x: mixer(p, x).sum(), (0, 1))
        return count_flops(jax.make_jaxpr(grad)(params, x).jaxpr)

    assert products(2048, "chunkwise") < 2 * 12 / 11 * products(1024, "chunkwise")
    assert products(2048, "parallel") > 3 * products(1024, "parallel")


def test_levels_have_no_trapezoidal_rule():
    with pytest.raises(OptionError, match="trapezoidal = True: .*set log_levels=0"):
        made(log_levels=4, trapezoidal=True, max_length=8)
