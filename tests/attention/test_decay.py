"""The recurrence with decays: its forms against single steps in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.mixers.linear import decay
from tests.attention.cases import close

B, T, H, D, E = 2, 13, 3, 4, 5
KINDS = {"none": None, "head": (T, H), "channel": (T, H, D)}


def weighted(tree):
    """A scalar that every entry of every leaf enters with a weight of its own."""
    return sum(
        jnp.sum(x * jnp.cos(jnp.arange(x.size)).reshape(x.shape).astype(x.dtype))
        for x in jax.tree.leaves(tree)
    )


def problem(kind, shared=False, length=T):
    """Random q, k, v, log decays and a memory that is not empty."""
    draw = np.random.default_rng(3)
    heads = 1 if shared else H
    q, k = draw.standard_normal((2, B, length, heads, D))
    v, memory = draw.standard_normal((B, length, H, E)), draw.standard_normal((B, H, D, E))
    shape = KINDS[kind]
    # From almost none to all within a token.
    decays = shape and -np.exp(2 * draw.standard_normal((B, length, *shape[1:])) - 1)
    return jax.tree.map(np.float32, (q, k, v, decays, memory))


def by_steps(q, k, v, decays, memory):
    """The recurrence, one token and head after the other, in float64."""
    q, k, v, memory = (np.array(x, np.float64) for x in (q, k, v, memory))
    q, k = (np.broadcast_to(x, (*v.shape[:3], x.shape[-1])) for x in (q, k))
    y = np.zeros(v.shape)
    for t in range(v.shape[1]):
        for b, h in np.ndindex(*memory.shape[:2]):
            if decays is not None:
                memory[b, h] *= np.exp(np.float64(decays[b, t, h])).reshape(-1, 1)
            memory[b, h] += np.outer(k[b, t, h], v[b, t, h])
            y[b, t, h] = q[b, t, h] @ memory[b, h]
    return memory, y


@functools.partial(jax.jit, static_argnums=0, static_argnames="chunk")
def with_grads(form, arrays, **options):
    """The results of a form, and the gradients of ``weighted`` of them."""

    def loss(arrays):
        out = form(*arrays, **options)
        return weighted(out), out

    grads, out = jax.grad(loss, has_aux=True)(arrays)
    return out, grads


@pytest.mark.parametrize("shared", [False, True], ids=["each", "shared"])
@pytest.mark.parametrize("kind", KINDS)
def test_forms_are_the_recurrence(kind, shared):
    arrays = problem(kind, shared)
    run = jax.jit(lambda *a: {name: form(*a) for name, form in decay.FORMS.items()})
    for found in run(*arrays).values():
        close(found, by_steps(*arrays))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_recurrent_form_are_finite_differences(kind):
    arrays = problem(kind, length=5)
    _, grads = with_grads(decay.recurrent, arrays)
    draw = np.random.default_rng(0)
    exact = jax.tree.map(np.float64, arrays)
    direction = jax.tree.map(lambda x: draw.standard_normal(x.shape), exact)

    def value(size):
        out = by_steps(*jax.tree.map(lambda x, d: x + size * d, exact, direction))
        return sum(np.sum(x * np.cos(np.arange(x.size)).reshape(x.shape)) for x in out)

    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    found = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), grads, direction)))
    np.testing.assert_allclose(found, slope, rtol=1e-4)


@pytest.mark.parametrize("chunks", [(1, 5, 64), pytest.param((4, 13), marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_of_any_size_agree_with_single_tokens(kind, chunks):
    """In outputs, memories and gradients; sizes that divide T and sizes that do not."""
    arrays = problem(kind, shared=kind == "head")
    expected = with_grads(decay.recurrent, arrays)
    for chunk in chunks:
        close(with_grads(decay.chunkwise, arrays, chunk=chunk), expected)
    close(with_grads(decay.parallel, arrays), expected)


@pytest.mark.parametrize("kind", ["head", "channel"])
@pytest.mark.parametrize("pattern", ["forget", "keep", "mixed", "harsh"])
def test_extreme_decays(kind, pattern):
    """Compared in float32 with single tokens in float64: a sum of logs would lose the mild ones."""
    q, k, v, decays, memory = problem(kind, length=40)
    choices = {"forget": [-1e4], "keep": [-1e-8], "mixed": [-1e4, -1e-8, -0.3], "harsh": [-60, -3]}
    decays = np.random.default_rng(5).choice(choices[pattern], decays.shape).astype(np.float32)
    if pattern in ("mixed", "harsh"):
        # A run of mild ones after harsh ones, for the rounding of those to show.
        decays[:, 20:] = -0.01
    arrays = (q, k, v, decays, memory)
    with jax.enable_x64(True):
        wide = jax.tree.map(np.float64, arrays)
        expected = jax.tree.map(np.asarray, with_grads(decay.recurrent, wide))
    for form, options in (
        (decay.recurrent, {}),
        (decay.chunkwise, {"chunk": 32}),
        (decay.chunkwise, {"chunk": 7}),
    ):
        found = with_grads(form, arrays, **options)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
        close(found, expected, 3e-6)
