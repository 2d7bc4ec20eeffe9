"""Strings of recordings, joined on the device inside the compiled step.

A string is recordings one after the other, with pauses before, between and after them. Frames of a
pause are drawn from the quietest ones of the recording before it (of the first, at the beginning):
what a room sounds like when nobody speaks. Features are normalized when they are joined.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from research.tasks.speech.features import LEAST_DEVIATION
from research.tasks.task import BOS, EOS, PAD, Batch
from research.tasks.text.encoded_pairs import padded_rows

QUIET = 4
"""Frames of each recording that pauses are made of."""


class Plan(NamedTuple):
    """Which strings: B of them, of at most N recordings.

    Attributes:
      picks: recordings by number.
      number: how many of them there are; 0 makes a row that counts for nothing.
      pauses: frames before each recording, and after the last one.
      key: of the frames of the pauses, one to each string.
    """

    picks: Int[Array, "B N"]
    number: Int[Array, " B"]
    pauses: Int[Array, "B N1"]
    key: Key[Array, " B"]


def stored(features: Sequence[np.ndarray], tokens: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Returns R recordings as `joined` reads them, of all frames in a row.

    Args:
      features: (F, num_mels) of each, not normalized.
      tokens: of each transcript, without an end token.

    Returns:
      "frames" (sum of F, num_mels) float32; "start", "length" (R,), "quiet" (R, QUIET), numbers of
      frames, "tokens" (R, W), padded, and "token_count" (R,), int32.
    """
    lengths = np.array([len(f) for f in features])
    start = np.cumsum(lengths) - lengths
    quiet = [np.resize(np.argsort(f.mean(1), kind="stable")[:QUIET], QUIET) for f in features]
    counts = np.array([len(t) for t in tokens])
    return {
        "frames": np.concatenate(features).astype(np.float32),
        "start": start.astype(np.int32),
        "length": lengths.astype(np.int32),
        "quiet": (start[:, None] + np.stack(quiet)).astype(np.int32),
        "tokens": padded_rows(list(tokens), int(counts.max())),
        "token_count": counts.astype(np.int32),
    }


def draw_plan(
    keys: Key[Array, " B"],
    number: Int[Array, " B"],
    most: int,
    pools: Sequence[tuple[int, int]],
    pause: tuple[int, int],
) -> Plan:
    """Returns random strings, each of the recordings of one pool, all pools equally likely.

    Args:
      keys: of each string.
      number: recordings of each string, at most `most`.
      most: N.
      pools: (first recording, number of recordings), for example of each speaker.
      pause: shortest and longest pause, frames.
    """
    first, size = jnp.array(pools, jnp.int32).T

    def one(key: Key[Array, ""]) -> tuple[Array, Array, Array]:
        of_pool, of_picks, of_pauses, rest = jax.random.split(key, 4)
        pool = jax.random.randint(of_pool, (), 0, len(pools))
        picks = first[pool] + jax.random.randint(of_picks, (most,), 0, size[pool])
        pauses = jax.random.randint(of_pauses, (most + 1,), pause[0], pause[1] + 1)
        return picks, pauses, rest

    picks, pauses, rest = jax.vmap(one)(keys)
    return Plan(picks, number, pauses, rest)


def segments(length: Int[Array, " R"], plan: Plan) -> Int[Array, "B 2N+1"]:
    """Returns the frames of pause, recording, pause, ..., pause; 0 for those that are not there.

    Args:
      length: of all recordings.
      plan: which strings.
    """
    index = jnp.arange(plan.picks.shape[1])
    there = index < plan.number[:, None]
    lengths = jnp.where(there, jnp.asarray(length)[plan.picks], 0)
    # A pause follows every recording that is there, and one comes before the first.
    pauses = jnp.where(jnp.pad(there, ((0, 0), (1, 0)), constant_values=True), plan.pauses, 0)
    both = jnp.stack([pauses[:, :-1], lengths], axis=-1).reshape(len(lengths), -1)
    both = jnp.concatenate([both, pauses[:, -1:]], axis=1)
    return jnp.where(plan.number[:, None] > 0, both, 0)


def joined(data: Any, plan: Plan, frames: int, tokens: int) -> Batch:
    """Returns a batch of strings.

    Args:
      data: as `stored` returned it, on the device.
      plan: which strings.
      frames: S; a string with more counts for nothing.
      tokens: T; the same.

    Returns:
      "source" (B, S, num_mels) float32, normalized, 0 at padding; "source_length" (B,); "inputs"
      and "targets" (B, T), -1 where nothing is asked; "span" (B, T, 2), first frame and the one
      after the last of the recording that a target belongs to, equal where there is none; int32.
    """
    ends = segments(data["length"], plan).cumsum(axis=1)
    total = ends[:, -1]
    at = jnp.arange(frames)
    segment = (ends[:, None, :] <= at[:, None]).sum(-1)
    inside = at - jnp.take_along_axis(jnp.pad(ends, ((0, 0), (1, 0))), segment, axis=1)
    which = jnp.clip((segment - 1) // 2, 0, plan.picks.shape[1] - 1)
    recording = jnp.take_along_axis(plan.picks, which, axis=1)
    draws = jax.vmap(lambda key: jax.random.randint(key, (frames,), 0, QUIET))(plan.key)
    silence = data["quiet"][recording, draws]
    rows = jnp.where(segment % 2 == 1, data["start"][recording] + inside, silence)
    rows = jnp.clip(rows, 0, len(data["frames"]) - 1)
    source = normalized(data["frames"][rows], total)

    targets, position = _targets(data, plan, tokens)
    fits = (plan.number > 0) & (total <= frames) & (position[:, -1] < tokens)
    targets = jnp.where(fits[:, None], targets, -1)
    before = jnp.pad(targets, ((0, 0), (1, 0)), constant_values=BOS)[:, :-1]
    word = (position[:, None, :] <= jnp.arange(tokens)[:, None]).sum(-1)
    bounds = jnp.pad(ends, ((0, 0), (0, 1)), mode="edge")
    first, after = (
        jnp.take_along_axis(bounds, jnp.minimum(2 * word + side, bounds.shape[1] - 1), axis=1)
        for side in (0, 1)
    )
    return {
        "source": source,
        "source_length": jnp.clip(total, 1, frames),
        "inputs": jnp.where((before < 0) | (before == EOS), PAD, before),
        "targets": targets,
        "span": jnp.where(targets[..., None] < 0, 0, jnp.stack([first, after], axis=-1)),
    }


def _targets(data: Any, plan: Plan, tokens: int) -> tuple[Array, Array]:
    """Returns targets (B, T), and where the tokens of each recording end (B, N)."""
    there = jnp.arange(plan.picks.shape[1]) < plan.number[:, None]
    ends = jnp.where(there, data["token_count"][plan.picks], 0).cumsum(axis=1)
    at = jnp.arange(tokens)
    word = (ends[:, None, :] <= at[:, None]).sum(-1)
    inside = at - jnp.take_along_axis(jnp.pad(ends, ((0, 0), (1, 0))), word, axis=1)
    recording = jnp.take_along_axis(plan.picks, jnp.minimum(word, ends.shape[1] - 1), axis=1)
    inside = jnp.clip(inside, 0, data["tokens"].shape[1] - 1)
    words = data["tokens"][recording, inside]
    total = ends[:, -1:]
    return jnp.where(at < total, words, jnp.where(at == total, EOS, -1)), ends


def normalized(x: Float[Array, "B S F"], length: Int[Array, " B"]) -> Float[Array, "B S F"]:
    """Returns features with mean 0 and variance 1 over the frames that are there, 0 elsewhere.

    The same as `features.normalize` of each row's frames.
    """
    there = (jnp.arange(x.shape[1]) < length[:, None])[..., None]
    count = jnp.maximum(jnp.minimum(length, x.shape[1]), 1)[:, None, None]
    mean = jnp.where(there, x, 0.0).sum(1, keepdims=True) / count
    x = jnp.where(there, x - mean, 0.0)
    deviation = jnp.sqrt((x**2).sum(1, keepdims=True) / count)
    return x / jnp.maximum(deviation, LEAST_DEVIATION)


def masked(
    x: Float[Array, "B S F"],
    length: Int[Array, " B"],
    keys: Key[Array, " B"],
    time: tuple[int, int],
    band: tuple[int, int],
) -> Float[Array, "B S F"]:
    """Returns normalized features with stretches of time and bands set to 0, their mean.

    SpecAugment (Park et al. 2019, section 2) without time warping: each mask is of 0 to `most`
    frames or bands, all equally likely, anywhere in the recording, but of no more than a quarter of
    it.

    Args:
      x: features.
      length: frames of each.
      keys: of each.
      time: number of masks, and the most frames of one.
      band: number of masks, and the most bands of one.
    """

    def kept(key: Key[Array, ""], number: int, most: int, positions: int, size: Any) -> Array:
        of_width, of_start = jax.random.split(key)
        width = jnp.minimum(jax.random.randint(of_width, (number, 1), 0, most + 1), size // 4)
        room = jnp.maximum(size - width, 0)
        start = (jax.random.uniform(of_start, (number, 1)) * (room + 1)).astype(jnp.int32)
        at = jnp.arange(positions)
        return ~((start <= at) & (at < start + width)).any(0)

    def one(x: Float[Array, "S F"], size: Int[Array, ""], key: Key[Array, ""]) -> Array:
        of_time, of_band = jax.random.split(key)
        frames = kept(of_time, *time, x.shape[0], size)
        return x * frames[:, None] * kept(of_band, *band, x.shape[1], x.shape[1])

    return jax.vmap(one)(x, length, keys)
