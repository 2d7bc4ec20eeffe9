"""Log-linear attention, bucket by bucket from the paper's equations in PyTorch float64."""

import jax
import jax.numpy as jnp
import pytest

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


def state_space(torch, p, x, levels):
    """The output of the layer, with the state of every bucket as a sum over its tokens."""
    functional, rows = torch.nn.functional, []
    for row in x:
        b, c = row @ p["key"][:, 0], row @ p["query"][:, 0]
        for t, token in enumerate(row):
            heads = []
            for h in range(H):
                steps = functional.softplus(row @ p["step"][:, h] + p["step_bias"][h])
                decays = torch.exp(-steps * p["log_rate"][h].exp())
                values = row @ p["value"][:, h]
                weights = functional.softplus(token @ p["level"][:, h])
                y = p["skip"][h] * values[t]
                for level, places in buckets(t):
                    state = torch.zeros(N, D, dtype=torch.float64)
                    for s in places:
                        put = steps[s] * torch.outer(b[s], values[s])
                        state = state + decays[s + 1 : t + 1].prod() * put
                    y = y + weights[min(level, levels - 1)] * state.T @ c[t]
                heads.append(y * functional.silu(token @ p["gate"][:, h]))
            y = torch.stack(heads)
            y = y / (y.square().mean() + 1e-6).sqrt()
            rows.append(torch.einsum("hd,hdm->m", y, p["out"]))
    return torch.stack(rows).reshape(x.shape)


@pytest.mark.parametrize("levels", [5, pytest.param(3, marks=pytest.mark.slow)])
def test_a_state_space_is_the_paper_in_torch(levels):
    """In float32 against float64, outputs and gradients of every parameter and of the input.

    With as many levels as the length has, as in the paper, and with fewer.
    """
    torch = pytest.importorskip("torch")
    sizes = {"width": M, "num_heads": H, "head_width": D, "state_width": N}
    equals_torch(
        f"state_space, log_levels={levels}",
        in_every_form(StateSpace, sizes | {"log_levels": levels}),
        lambda p, x: state_space(torch, p, x, levels),
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
