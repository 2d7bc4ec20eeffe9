"""The optimizer of a run: clipping, update rule, weight decay, learning rate and its schedule.

The members of a population differ in learning rate and weight decay, so these are arguments that
may be traced, not constants.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from research.errors import read_part
from research.options import OptionError, Part, choice, option
from research.training.schedules import SCHEDULES, Constant, Schedule
from research.training.update_rules import OPTIMIZERS, ScheduleFree, UpdateRule, scale_by_width

Fraction = Callable[[jax.Array], jax.Array]
"""Maps a step, counted from 0, to a fraction of the peak learning rate."""


@dataclass(frozen=True, kw_only=True)
class Optimizer(Part):
    """The optimizer and the schedule of its learning rate: `config.optimizer`."""

    name: UpdateRule = choice(OPTIMIZERS, "adamw", "update rule")
    learning_rate: float = option(1e-3, "peak learning rate", above=0)
    schedule: Schedule = choice(
        SCHEDULES, "cosine", "schedule of the learning rate after the warm-up"
    )
    warmup_steps: int = option(100, "steps in which the learning rate rises to the peak", least=0)
    weight_decay: float = option(0.1, "weight decay, of matrices only", least=0)
    clip_norm: float = option(1.0, "maximum norm of the whole gradient; 0: no clipping", least=0)
    z_loss: float = option(
        0.0,
        "times log(Z)^2 of each target's distribution is added to the loss, so that Z stays near 1",
        least=0,
        source="Chowdhery et al. 2022 (PaLM), section 5",
    )
    auxiliary_loss: float = option(
        1.0,
        "times the losses of the model's own parts, such as an indexer's, is added to the loss",
        least=0,
    )
    qk_clip: float = option(
        0.0,
        "largest attention score of a head: where a batch exceeds it, the weights of queries and "
        "keys are scaled down after the step; 0: off",
        least=0,
        source="Kimi Team 2025 (Kimi K2), section 2.1, algorithm 1",
    )
    accumulate: int = option(
        1, "parts of a batch whose gradients are accumulated one after another", least=1
    )

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.name, ScheduleFree) and not isinstance(self.schedule, Constant):
            name = next(n for n, part in SCHEDULES.items() if part is type(self.schedule))
            message = "must be 'constant' for optimizer.name='schedule_free', which has no schedule"
            raise OptionError("schedule", name, message)
        if isinstance(self.name, ScheduleFree) and self.qk_clip:
            message = "optimizer.name='schedule_free' keeps other weights beside those it would "
            raise OptionError("qk_clip", self.qk_clip, message + "scale; use 0")

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
    axes: PyTree,
    width_ratio: float = 1.0,
) -> optax.GradientTransformation:
    """Returns the optax optimizer: clipping, direction, decoupled weight decay, learning rate.

    Args:
      optimizer: the options; the arguments replace its learning rate and weight decay.
      steps: length of the schedule.
      learning_rate: the peak; may be traced.
      weight_decay: coefficient; may be traced.
      axes: tree like the parameters, with the `Axes` of each; weight decay applies to matrices.
      width_ratio: base width of muP over the model's width; 1 without muP.
    """
    fraction, rule = optimizer.fraction(steps), optimizer.name

    def rate(step: Any) -> jax.Array:
        return learning_rate * fraction(jnp.asarray(step))

    clip = [optax.clip_by_global_norm(optimizer.clip_norm)] if optimizer.clip_norm else []
    update = (
        *rule.scaling(axes),
        *([scale_by_width(width_ratio, axes)] if width_ratio != 1 else []),
        optax.add_decayed_weights(weight_decay, jax.tree.map(lambda a: a.matrix, axes)),
        optax.scale_by_learning_rate(rate),
    )
    return optax.chain(*clip, *rule.wrapped(update, rate))
