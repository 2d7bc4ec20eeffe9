"""Concatenates recordings to strings, on the device inside the compiled step.

A string is a sequence of recordings with pauses before, between and after them. The frames of a
pause are drawn from the quietest frames of the recording before it (at the beginning, of the first
recording), to imitate the background noise. Features are normalized after concatenation.
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
"""Number of frames of each recording from which pauses are drawn."""


class Plan(NamedTuple):
    """Composition of B strings of at most N recordings.

    Attributes:
      picks: indices of the recordings.
      number: number of recordings in each string; 0 makes a row that metrics ignore.
      pauses: number of frames of the pause before each recording, and after the last one.
      key: random key for the frames of the pauses, one per string.
    """

    picks: Int[Array, "B N"]
    number: Int[Array, " B"]
    pauses: Int[Array, "B N1"]
    key: Key[Array, " B"]


def stored(features: Sequence[np.ndarray], tokens: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Returns R recordings in the form that `joined` reads, with all frames concatenated.

    Args:
      features: (F, num_mels) for each recording, not normalized.
      tokens: tokens of each transcript, without an end token.

    Returns:
      "frames" (sum of F, num_mels) float32; and int32 "start" and "length" (R,) of each recording
      in frames, "quiet" (R, QUIET), indices of its quietest frames, "tokens" (R, W), padded, and
      "token_count" (R,).
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
    """Draws random strings, each from the recordings of one pool; pools are equally likely.

    Args:
      keys: random key of each string.
      number: number of recordings in each string, at most `most`.
      most: N.
      pools: (first recording, number of recordings) of each pool, for example of each speaker.
      pause: shortest and longest pause, in frames.
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
    """Returns the lengths in frames of pause, recording, pause, ..., pause; 0 for absent ones.

    Args:
      length: length of every recording, in frames.
      plan: composition of the strings.
    """
    index = jnp.arange(plan.picks.shape[1])
    there = index < plan.number[:, None]
    lengths = jnp.where(there, jnp.asarray(length)[plan.picks], 0)
    # There is a pause after every recording, and one before the first.
    pauses = jnp.where(jnp.pad(there, ((0, 0), (1, 0)), constant_values=True), plan.pauses, 0)
    both = jnp.stack([pauses[:, :-1], lengths], axis=-1).reshape(len(lengths), -1)
    both = jnp.concatenate([both, pauses[:, -1:]], axis=1)
    return jnp.where(plan.number[:, None] > 0, both, 0)


def joined(data: Any, plan: Plan, frames: int, tokens: int) -> Batch:
    """Returns a batch of strings.

    Args:
      data: result of `stored`, on the device.
      plan: composition of the strings.
      frames: S; a string with more frames gets no targets, so metrics ignore it.
      tokens: T; likewise for more tokens.

    Returns:
      "source" (B, S, num_mels) float32, normalized, 0 at padding; and int32 "source_length" (B,);
      "inputs" and "targets" (B, T), targets -1 where there is none; "span" (B, T, 2), start and end
      (exclusive) frame of the recording that a target belongs to, equal if there is none.
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
    """Returns targets (B, T), and the exclusive end of each recording's tokens (B, N)."""
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
    """Normalizes features to mean 0 and variance 1 over the valid frames; padding becomes 0.

    Equals `features.normalize` applied to the valid frames of each row.
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
    """Masks random ranges of frames and of bands with 0, the mean of normalized features.

    SpecAugment (Park et al. 2019, section 2) without time warping: the width of each mask is
    uniform from 0 to its maximum, but at most a quarter of the recording, and its position is
    uniform.

    Args:
      x: normalized features.
      length: number of frames in each row.
      keys: random key of each row.
      time: number of time masks, and the maximum frames of one.
      band: number of band masks, and the maximum bands of one.
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
