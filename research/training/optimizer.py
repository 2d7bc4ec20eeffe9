"""AdamW with warmup and decay, as a function of values that may be traced.

The learning rate and the weight decay differ between the members of a population, so they are
arguments of the transformation and not constants in it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from research.errors import UserError, check_name

NAMES = ("adamw", "sgd")
SCHEDULES = ("constant", "cosine", "linear", "rsqrt")


def check_optimizer(config: ConfigDict) -> None:
    """Raises UserError for an optimizer config that makes no sense."""
    check_name("optimizer.name", config.name, NAMES)
    check_name("optimizer.schedule", config.schedule, SCHEDULES)
    for key in ("learning_rate", "epsilon"):
        if not config[key] > 0:
            raise UserError(f"optimizer.{key}={config[key]} must be positive.")
    for key in ("weight_decay", "clip_norm", "warmup_steps"):
        if not config[key] >= 0:
            raise UserError(f"optimizer.{key}={config[key]} must be at least 0.")
    for key in ("beta1", "beta2"):
        if not 0 <= config[key] < 1:
            raise UserError(f"optimizer.{key}={config[key]} must be in [0, 1).")
    if not 0 <= config.final_fraction <= 1:
        raise UserError(f"optimizer.final_fraction={config.final_fraction} must be in [0, 1].")
    if config.accumulate < 1:
        raise UserError(f"optimizer.accumulate={config.accumulate} must be at least 1.")


def schedule(config: ConfigDict, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Returns step -> fraction of the peak learning rate, in [0, 1].

    Linear warmup, then: constant; cosine or linear decay to `final_fraction` at the last step; or
    rsqrt, sqrt(warmup / step) (Vaswani 2017, eq. 3, with the peak factored out).
    """
    warmup = max(config.warmup_steps, 1)

    def fraction(step: jax.Array) -> jax.Array:
        done = step + 1.0
        ramp = jnp.minimum(done / warmup, 1.0)
        progress = jnp.clip((done - warmup) / max(steps - warmup, 1), 0.0, 1.0)
        final = config.final_fraction
        decay = {
            "constant": lambda: 1.0,
            "cosine": lambda: final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress)),
            "linear": lambda: 1 - (1 - final) * progress,
            "rsqrt": lambda: jnp.sqrt(warmup / jnp.maximum(done, warmup)),
        }[config.schedule]()
        return ramp * decay

    return fraction


def make_optimizer(
    config: ConfigDict,
    steps: int,
    learning_rate: jax.Array | float,
    weight_decay: jax.Array | float,
    matrices: PyTree,
) -> optax.GradientTransformation:
    """Returns clip, Adam (or for "sgd" the plain gradient), decoupled weight decay, scheduled rate.

    Loshchilov and Hutter 2019, algorithms 1 and 2; "sgd" is without momentum.

    Args:
      config: `config.optimizer`.
      steps: length of the schedule.
      learning_rate: the peak; may be traced.
      weight_decay: may be traced.
      matrices: bools like the parameters: which of them decay.
    """
    fraction = schedule(config, steps)
    chain = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.name == "adamw":
        chain.append(optax.scale_by_adam(config.beta1, config.beta2, config.epsilon))
    return optax.chain(
        *chain,
        optax.add_decayed_weights(weight_decay, matrices),
        optax.scale_by_learning_rate(lambda step: learning_rate * fraction(jnp.asarray(step))),
    )
