"""What a case of the registry computes, in every way there is to ask it: two programs to a case."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.attention.mixers.mixer import Mixer, weighted_values
from research.attention.parts.masks import padding
from research.attention.parts.segments import segments
from research.attention.spec import MixerSpec
from tests.attention.cases import (
    BATCH,
    BUILDS,
    CASES,
    PADDABLE,
    decodable,
    mixes_segments,
    numbers,
    weighted,
)

STEP = 1e-6
"""How far finite differences go, in float64."""
VALID = 8
"""Tokens of row 1 where it is padded."""
STARTS = ((5,), (5, 9))
"""Where each row's segments start, beside 0."""
CHUNKS = (5, 1)
"""How a sequence is fed, again and again; 5 exceeds the windows of the cases."""
TOKENS = (1,)
"""How it is fed where the cache is that of another case."""


class Run(NamedTuple):
    """One way to run a case: along a direction, and with padding in row 1.

    Attributes:
        step: how far from the point the input and all parameters are, in one direction.
        noise: what stands in the padding.
        valid: tokens of row 1 that are none; None for all.
        parted: whether the rows have segments.
        moved: where what stands before the second segment stands after it.
    """

    step: float = 0.0
    noise: float = 0.0
    valid: int | None = None
    parted: bool = False
    moved: bool = False


RUNS = {
    "whole": Run(),
    "ahead": Run(step=STEP),
    "behind": Run(step=-STEP),
    "parted": Run(parted=True),
    "moved": Run(parted=True, moved=True),
    "padded": Run(valid=VALID),
    "otherwise": Run(valid=VALID, noise=5.0),
    "nothing": Run(valid=0),
}
WHOLE_RUNS = ("whole", "ahead", "behind")
UNPADDED = (*WHOLE_RUNS, "parted", "moved")
LOOKED_AT = ("whole", "parted", "padded")


class Found(NamedTuple):
    """What a case computes in float64; the first axis goes over ``RUNS``.

    Attributes:
        out: the output.
        loss: ``weighted(out)``.
        slope: the derivative of the loss along the direction.
        influence: the largest gradient of a row's output at t by its input at s, (N, T, B, S).
        chunks: the output of the first run in chunks; None where there is no decoding.
        weights: to look at in the runs of ``LOOKED_AT``; None where there are none.
        rebuilt: the output that they make with their values.
    """

    out: Any
    loss: Any
    slope: Any
    influence: Any
    chunks: Any
    weights: Any
    rebuilt: Any


def opaque(mixer: Mixer) -> bool:
    """Whether a mixer leaves it to its base class to say that there is nothing to look at."""
    return type(mixer).attention_trace is Mixer.attention_trace


def given(spec: MixerSpec, seed: int = 0):
    """Parameters that tell positions apart and an input, of float64 numpy."""
    generator = np.random.default_rng(seed)
    params = numbers(spec.make(), seed)
    return params, generator.normal(size=(BATCH, spec.context.max_length, spec.context.width))


@functools.cache
def found(spec: MixerSpec, whole: bool = False) -> Found:
    """All that is asked of a case, by one program; see ``Found``.

    Args:
        spec: of the case.
        whole: leaves out what padding and looking show, and segments where masks show them.
    """
    padded = spec.name in PADDABLE and not whole
    parted = not mixes_segments(spec) and (padded or spec.name not in PADDABLE)
    runs = [run for name, run in RUNS.items() if padded or name in UNPADDED]
    kept = [spec.context.max_length if r.valid is None else r.valid for r in runs]
    valid = np.ones((len(runs), BATCH, spec.context.max_length), bool)
    valid[:, 1] = np.arange(spec.context.max_length) < np.asarray(kept)[:, None]
    steps, noise = np.asarray([r.step for r in runs]), np.asarray([r.noise for r in runs])
    index = np.arange(spec.context.max_length)
    ids = np.stack([np.searchsorted(starts, index, side="right") for starts in STARTS])
    ids, moved = np.stack([ids * r.parted for r in runs]), np.asarray([r.moved for r in runs])
    looks = [n for n, name in enumerate(RUNS) if name in LOOKED_AT and n < len(runs)]
    with jax.enable_x64(True):
        point, direction = given(spec), given(spec, seed=5)
        mixer = spec.make()
        looks = () if whole or opaque(mixer) else tuple(looks)
        asked = mixer, (padded, parted), sizes(spec), looks
        arguments = point, direction, steps, noise, valid, ids, moved
        return jax.device_get(_program(*asked, *arguments))


def sizes(spec: MixerSpec) -> tuple[int, ...]:
    """The chunks a case is fed in; none if it looks ahead."""
    if not decodable(spec):
        return ()
    same = spec.name == "softmax" and spec.values.get("mask") == "causal"
    return TOKENS if same and spec not in [CASES[name] for name in BUILDS] else CHUNKS


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _program(mixer, masks, fed, looks, point, direction, steps, noise, valid, ids, moved):
    params, x = point

    def masked(valid, ids):
        padded, parted = masks
        mask = segments(ids, ids) if parted else None
        if padded:
            mask = padding(valid) & mask if parted else padding(valid)
        return {"mask": mask}

    def run(step, noise, valid, ids, moved):
        def at(a):
            return jnp.where(moved, jnp.roll(a, -STARTS[0][0], 1), a)

        here = params, jnp.where(valid[..., None], at(x), noise)
        here, mask = (
            jax.tree.map(lambda p, d: p + step * d, here, direction),
            masked(valid, at(ids)),
        )
        out, pull = jax.vjp(lambda params, x: mixer(params, x, **mask), *here)
        weights = jax.grad(weighted)(out)

        def output(t):
            """What the loss at t gains along the direction, and from each input."""
            grads = pull(jnp.where(jnp.arange(out.shape[1])[:, None] == t, weights, 0.0))
            return _dot(grads, direction), jnp.abs(grads[1]).max(-1)

        slopes, influence = jax.lax.map(output, jnp.arange(out.shape[1]))
        return out, weighted(out), slopes.sum(), influence

    def look(valid, ids):
        shown = mixer.attention_trace(params, x, **masked(valid, ids))
        return shown.weights, mixer.merge(params, x, weighted_values(shown.weights, shown.values))

    ran = jax.lax.map(lambda of: run(*of), (steps, noise, valid, ids, moved))
    chunks = in_chunks(mixer, fed, params, x) if fed else None
    shown = (None, None)
    if looks:
        shown = jax.lax.map(lambda of: look(*of), (valid[looks, :], ids[looks, :]))
    return Found(*ran, chunks, *shown)


def in_chunks(mixer, sizes, params, x):
    """The output of a mixer that is fed in chunks of these sizes.

    A state that changed type could not be carried by the loop.
    """

    def feed(state, x):
        outputs, done = [], 0
        for size in sizes:
            state, out = mixer.extend(params, state, x[:, done : done + size])
            outputs, done = [*outputs, out], done + size
        return state, jnp.concatenate(outputs, 1)

    parts = jnp.moveaxis(x.reshape(BATCH, -1, sum(sizes), x.shape[-1]), 1, 0)
    _, out = jax.lax.scan(feed, mixer.init_state(BATCH, x.shape[1], x.dtype), parts)
    return jnp.moveaxis(out, 0, 1).reshape(x.shape)


def _dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


class Narrow(NamedTuple):
    """What a case computes in the dtypes that it is used in, without a mask beyond its own.

    Attributes:
        out: in float32: of the case, with another row 1, and with half the parameters.
        slope: the derivatives of ``weighted(out)`` along the direction.
        both: the output of a population of the case and the one with half the parameters.
        low: the output of an input in bfloat16.
    """

    out: Any
    slope: Any
    both: Any
    low: Any


@functools.cache
def narrow(spec: MixerSpec) -> Narrow:
    """What is asked of a build rather than of every case, by one program; see ``Narrow``."""
    point = jax.tree.map(np.float32, given(spec))
    direction = jax.tree.map(np.float32, given(spec, seed=5))
    return jax.device_get(_narrow(spec.make(), point, direction))


@functools.partial(jax.jit, static_argnums=0)
def _narrow(mixer, point, direction):
    params, x = point
    half = jax.tree.map(lambda p: 0.5 * p, params)
    other = x.at[1].set(x[1] * 100 + 3)

    def run(of):
        def loss(params, x):
            out = mixer(params, x)
            return weighted(out), out

        grads, out = jax.grad(loss, argnums=(0, 1), has_aux=True)(*of)
        return out, _dot(grads, direction)

    def stack(*trees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    ran = jax.lax.map(run, stack((params, x), (params, other), (half, x)))
    both = jax.vmap(mixer, (0, None))(stack(params, half), x)
    return Narrow(*ran, both, mixer(params, x.astype(jnp.bfloat16)))
