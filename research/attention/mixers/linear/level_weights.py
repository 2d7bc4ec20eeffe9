"""How a mixer weights the levels of log-linear attention, and the option that turns them on."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.attention.mixers.linear import log_linear
from research.attention.mixers.linear.linear_time import (
    LinearTime,
    LinearTimeOptions,
    at_least_float32,
)
from research.attention.mixers.mixer_options import Context
from research.attention.parameters import Parameter, matrix_axes, matrix_init
from research.attention.parts.part_options import size_option


def level_parameter(mixer: LinearTime, levels: int) -> Parameter:
    """Returns "level" (M, H, L), W of the weights."""
    init = matrix_init(mixer.init_stddev, mixer.width)
    shape = (mixer.width, mixer.num_heads, levels)
    return Parameter(shape, init, matrix_axes("width", "heads", ""))


def level_weights(params: dict[str, Array], x: Float[Array, "B T M"]) -> Float[Array, "B T H L"]:
    """Returns the levels' weights softplus(x W), float32 or wider.

    In the authors' code each column of W also has a learned factor, which it can absorb.
    """
    logits = jnp.einsum("btm,mhl->bthl", x, params["level"].astype(x.dtype))
    return jax.nn.softplus(logits.astype(at_least_float32(x.dtype)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogLinearOptions(LinearTimeOptions):
    """Options of mixers whose state can be split over levels."""

    log_levels: int = size_option(
        0,
        "L, most levels of log-linear attention, each with a state of its own for a part of the "
        "past, the last for all that is older; log2 of the longest sequence, rounded up, + 1 or "
        "more: as many as it has, as in the paper; 0: off",
        source='Guo et al. 2025, "Log-Linear Attention", section 3',
    )

    def levels(self, context: Context) -> int:
        """Returns L, at most what the longest sequence has."""
        return min(self.log_levels, log_linear.count(context.max_length))
