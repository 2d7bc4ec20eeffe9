"""Schedules of the learning rate after the warm-up."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from research.options import Part, option


@dataclass(frozen=True, kw_only=True)
class Schedule(Part):
    """The learning rate after the warm-up."""

    def decay(self, done: jax.Array, progress: jax.Array, warmup: int) -> jax.Array | float:
        """Returns the learning rate as a fraction of the peak.

        Args:
          done: number of steps including this one, at least `warmup`.
          progress: fraction of the steps after the warm-up that are done, 0 to 1.
          warmup: number of warm-up steps, at least 1.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """Keeps the learning rate at its peak."""

    def decay(self, done: jax.Array, progress: jax.Array, warmup: int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Decaying(Schedule):
    """Decays the learning rate to a fraction of the peak at the last step."""

    final_fraction: float = option(
        0.1, "of the peak learning rate, reached at the last step", least=0, most=1
    )


@dataclass(frozen=True, kw_only=True)
class Cosine(Decaying):
    """Decays the learning rate along half a cosine."""

    source = "Loshchilov and Hutter 2017, equation 5, without restarts"

    def decay(self, done: jax.Array, progress: jax.Array, warmup: int) -> jax.Array:
        final = self.final_fraction
        return final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


@dataclass(frozen=True, kw_only=True)
class Linear(Decaying):
    """Decays the learning rate linearly."""

    def decay(self, done: jax.Array, progress: jax.Array, warmup: int) -> jax.Array:
        return 1 - (1 - self.final_fraction) * progress


@dataclass(frozen=True, kw_only=True)
class ReciprocalSquareRoot(Schedule):
    """Decays the learning rate as sqrt(warmup / step)."""

    source = "Vaswani et al. 2017, equation 3, with the peak factored out"

    def decay(self, done: jax.Array, progress: jax.Array, warmup: int) -> jax.Array:
        return jnp.sqrt(warmup / done)


DECAY_SHAPES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: 0.5 * (1 + jnp.cos(jnp.pi * x)),
    "sqrt": lambda x: 1 - jnp.sqrt(x),
}
"""{name: from 1 at the start of the decay, x = 0, to 0 at its end, x = 1}."""


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay(Decaying):
    """Keeps the learning rate at its peak, and decays it in the last part of training."""

    source = "Hu et al. 2024 (MiniCPM), section 4; Hägele et al. 2024, section 3"
    decay_fraction: float = option(
        0.2, "of the steps after the warm-up, the last ones, in which it falls", above=0, most=1
    )
    decay_shape: str = option(
        "sqrt", "how it falls; sqrt: 1 - the root of what is done", allowed=tuple(DECAY_SHAPES)
    )

    def decay(self, done: jax.Array, progress: jax.Array, warmup: int) -> jax.Array:
        begins = 1 - self.decay_fraction
        fallen = jnp.maximum(progress - begins, 0.0) / self.decay_fraction
        final = self.final_fraction
        return final + (1 - final) * DECAY_SHAPES[self.decay_shape](fallen)


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "cosine": Cosine,
    "linear": Linear,
    "rsqrt": ReciprocalSquareRoot,
    "wsd": WarmupStableDecay,
}
