"""AdamW and plain gradient descent, with warm-up and decay of the learning rate.

The members of a population differ in learning rate and weight decay, so these are arguments that
may be traced, not constants.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from research.errors import read_part
from research.options import Part, choice, option

Fraction = Callable[[jax.Array], jax.Array]
"""Maps a step, counted from 0, to a fraction of the peak learning rate."""


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
    """It stays at the peak."""

    def decay(self, done: jax.Array, progress: jax.Array, warmup: int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Decaying(Schedule):
    """It falls to a fraction of the peak at the last step."""

    final_fraction: float = option(
        0.1, "of the peak learning rate, reached at the last step", least=0, most=1
    )


@dataclass(frozen=True, kw_only=True)
class Cosine(Decaying):
    """It falls along half a cosine."""

    source = "Loshchilov and Hutter 2017, equation 5, without restarts"

    def decay(self, done: jax.Array, progress: jax.Array, warmup: int) -> jax.Array:
        final = self.final_fraction
        return final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


@dataclass(frozen=True, kw_only=True)
class Linear(Decaying):
    """It falls along a line."""

    def decay(self, done: jax.Array, progress: jax.Array, warmup: int) -> jax.Array:
        return 1 - (1 - self.final_fraction) * progress


@dataclass(frozen=True, kw_only=True)
class ReciprocalSquareRoot(Schedule):
    """It falls as sqrt(warmup / step)."""

    source = "Vaswani et al. 2017, equation 3, with the peak factored out"

    def decay(self, done: jax.Array, progress: jax.Array, warmup: int) -> jax.Array:
        return jnp.sqrt(warmup / done)


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "cosine": Cosine,
    "linear": Linear,
    "rsqrt": ReciprocalSquareRoot,
}


@dataclass(frozen=True, kw_only=True)
class UpdateRule(Part):
    """Which way the parameters go, before weight decay and learning rate."""

    def scaling(self) -> tuple[optax.GradientTransformation, ...]:
        """Returns the transformations from a clipped gradient to an update direction."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class AdamW(UpdateRule):
    """Adam, with weight decay beside it."""

    source = "Loshchilov and Hutter 2019, algorithm 2"
    beta1: float = option(0.9, "of the mean of gradients", least=0, below=1)
    beta2: float = option(0.99, "of the mean of their squares", least=0, below=1)
    epsilon: float = option(1e-8, "added to the root of that mean", above=0)

    def scaling(self) -> tuple[optax.GradientTransformation, ...]:
        return (optax.scale_by_adam(self.beta1, self.beta2, self.epsilon),)


@dataclass(frozen=True, kw_only=True)
class SGD(UpdateRule):
    """The plain gradient, without momentum."""

    def scaling(self) -> tuple[optax.GradientTransformation, ...]:
        return ()


OPTIMIZERS: dict[str, type[UpdateRule]] = {"adamw": AdamW, "sgd": SGD}


@dataclass(frozen=True, kw_only=True)
class Optimizer(Part):
    """How it is learned: `config.optimizer`."""

    name: UpdateRule = choice(OPTIMIZERS, "adamw", "what makes a step of a gradient")
    learning_rate: float = option(1e-3, "the peak", above=0)
    schedule: Schedule = choice(SCHEDULES, "cosine", "of the learning rate, after the warm-up")
    warmup_steps: int = option(100, "steps in which the learning rate rises to the peak", least=0)
    weight_decay: float = option(0.1, "on matrices only", least=0)
    clip_norm: float = option(1.0, "most norm of the whole gradient; 0: no clipping", least=0)
    accumulate: int = option(1, "splits each batch into as many parts, one after another", least=1)

    def fraction(self, steps: int) -> Fraction:
        """Returns step -> fraction of the peak learning rate, in [0, 1].

        A linear warm-up followed by the schedule; `steps` is their total length.
        """
        warmup = max(self.warmup_steps, 1)

        def of_step(step: jax.Array) -> jax.Array:
            done = step + 1.0
            ramp = jnp.minimum(done / warmup, 1.0)
            progress = jnp.clip((done - warmup) / max(steps - warmup, 1), 0.0, 1.0)
            return ramp * self.schedule.decay(jnp.maximum(done, warmup), progress, warmup)

        return of_step


def read_optimizer(config: ConfigDict) -> Optimizer:
    """Returns the optimizer options of a whole config. Raises UserError for an invalid value."""
    return read_part("optimizer", Optimizer, config.optimizer.to_dict())


def make_optimizer(
    optimizer: Optimizer,
    steps: int,
    learning_rate: jax.Array | float,
    weight_decay: jax.Array | float,
    matrices: PyTree,
) -> optax.GradientTransformation:
    """Returns the optax optimizer: clipping, direction, decoupled weight decay, learning rate.

    Args:
      optimizer: the options; the arguments replace its learning rate and weight decay.
      steps: length of the schedule.
      learning_rate: the peak; may be traced.
      weight_decay: coefficient; may be traced.
      matrices: tree of bools like the parameters: whether to apply weight decay.
    """
    fraction = optimizer.fraction(steps)
    clip = [optax.clip_by_global_norm(optimizer.clip_norm)] if optimizer.clip_norm else []
    return optax.chain(
        *clip,
        *optimizer.name.scaling(),
        optax.add_decayed_weights(weight_decay, matrices),
        optax.scale_by_learning_rate(lambda step: learning_rate * fraction(jnp.asarray(step))),
    )
