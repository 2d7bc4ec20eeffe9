"""FLOPs, parameters and state bytes against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.registry import MIXERS
from research.configuration import apply_deltas
from research.training.budget import COUNTED_AS, count_flops, measure_budget
from research.training.program import abstract_state, make_program
from tests import small


def flops(f, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return count_flops(jax.make_jaxpr(f)(*arguments).jaxpr)


def product(x, w):
    return x @ w


def grad_of(f):
    return jax.grad(lambda *a: (f(*a) ** 2).sum(), argnums=(0, 1))


DENSE = 2 * 3 * 5 * 7


@pytest.mark.parametrize(
    ("f", "shapes", "wanted"),
    [
        (product, [(3, 5), (5, 7)], DENSE),
        (jax.jit(product), [(3, 5), (5, 7)], DENSE),
        (lambda x, w: jnp.einsum("bij,bjk->bik", x, w), [(4, 3, 5), (4, 5, 7)], 4 * DENSE),
        (jax.vmap(product, (0, None)), [(4, 3, 5), (5, 7)], 4 * DENSE),
        (lambda x, w: jnp.sin(x) + w.sum(), [(3, 5), (5, 7)], 0),
        # Forward, and one product for each of the two gradients.
        (grad_of(product), [(3, 5), (5, 7)], 3 * DENSE),
        # Recomputed once more in the backward pass.
        (grad_of(jax.checkpoint(lambda x, w: jnp.sin(x @ w))), [(3, 5), (5, 7)], 4 * DENSE),
        (
            lambda x, w: jax.lax.scan(lambda c, _: (c @ w, None), x, length=6)[0],
            [(3, 5), (5, 5)],
            6 * 2 * 3 * 5 * 5,
        ),
        (
            lambda x, w: jax.lax.cond(x.sum() > 0, lambda: x @ w, lambda: (x @ w) @ w),
            [(3, 5), (5, 5)],
            2 * 2 * 3 * 5 * 5,
        ),
        # A convolution without padding, 10 - 4 + 1 outputs: channels 3 to 8.
        (
            lambda x, w: jax.lax.conv_general_dilated(x, w, (1,), "VALID"),
            [(2, 3, 10), (8, 3, 4)],
            2 * (2 * 8 * 7) * 3 * 4,
        ),
        # Depthwise: every channel has a filter of its own.
        (
            lambda x, w: jax.lax.conv_general_dilated(
                x, w, (1,), "VALID", feature_group_count=6
            ),
            [(2, 6, 10), (6, 1, 4)],
            2 * (2 * 6 * 7) * 4,
        ),
        (lambda x: jnp.fft.fft(x), [(3, 16)], 3 * 5 * 16 * 4),
        (lambda x: jnp.fft.rfft(x), [(3, 16)], 3 * 5 * 16 * 4 / 2),
        (lambda x: jnp.fft.irfft(x + 0j, 16), [(3, 9)], 3 * 5 * 16 * 4 / 2),
    ],
)  # fmt: skip
def test_products_by_hand(f, shapes, wanted):
    assert flops(f, *shapes) == wanted


def test_a_product_in_a_loop_of_unknown_length_is_refused():
    def loop(x, w):
        return jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ w, x)

    with pytest.raises(ValueError, match="unknown length"):
        flops(loop, (3, 5), (5, 5))


@pytest.mark.parametrize("layers", [1, 3])
def test_decoder_equals_the_analytic_count(layers):
    width, hidden, length, vocab = 32, 48, 16, 16
    config = small.recall(
        model__width=width,
        model__feedforward=hidden,
        model__num_layers=layers,
        model__num_heads=4,
        model__position="none",
    )
    found = measure_budget(config)
    matrices = layers * (4 * width * width + 2 * width * hidden)
    norms = (2 * layers + 1) * width
    assert found["parameters"] == matrices + vocab * width + norms
    # 6 N for every matrix that multiplies (the tied table once, as output), and two products with
    # all positions, dense, forward and twice backward.
    wanted = 6 * (matrices + vocab * width) + 3 * layers * 2 * (2 * length * width)
    np.testing.assert_allclose(found["flops_per_token"], wanted, rtol=0.01)
    assert found["tokens"] == 24 * 4 * 16
    assert found["steps"] == 24
    assert found["state_bytes"] == layers * (2 * length * width * 4 + length * 4 + 4)


@pytest.mark.parametrize("mixer", ["softmax", "linear", "gated_convolution"])
def test_parameters_are_those_that_are_trained(mixer):
    config = small.recall(model__mixer=mixer, model__position="none")
    state = abstract_state(make_program(config), 1)
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert measure_budget(config)["parameters"] == trained
    assert measure_budget(config)["flops_per_token"] > 0


def test_recomputing_layers_costs_what_it_computes_again():
    plain, remat = (
        measure_budget(small.recall(model__remat=remat))["flops_per_token"]
        for remat in (False, True)
    )
    assert 1.1 < remat / plain < 1.34


def test_members_share_a_budget_of_their_own_length():
    one = measure_budget(small.recall(train__steps=10))
    two = measure_budget(small.recall(train__steps=20, seed=4))
    assert two["tokens"] == 2 * one["tokens"]
    assert two["parameters"] == one["parameters"]


def fast(mixer, name):
    """Whether it is counted as itself, and some of what is counted as another."""
    return name not in COUNTED_AS or (mixer, name) in (("gated_delta", "ring"), ("latent", "ring"))


@pytest.mark.parametrize(
    ("mixer", "implementation"),
    [
        pytest.param(
            mixer, name, marks=() if mixer == "softmax" or fast(mixer, name) else pytest.mark.slow
        )
        for mixer, entry in MIXERS.items()
        for name in entry.implementations
    ],
)
def test_every_implementation_is_counted(mixer, implementation):
    config = small.recall(
        model__mixer=mixer,
        model__position="none",
        model__implementation=implementation,
    )
    budget = measure_budget(config)
    # Forward and twice backward: at least the feed-forward layers (2 of 8 x 16 x 2) and the logits.
    assert budget["flops_per_token"] > 6 * (2 * 2 * 8 * 16 + 8 * 16)
    if implementation == "blockwise":
        assert budget == measure_budget(apply_deltas(config, {"model.implementation": "dense"}))
