"""How a layer's sublayers are added to the residual stream, and where the norms are."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Float

from research.models.primitives import Norm
from research.parallel.rules import constrain

HIDDEN = ("batch", "length", "")
"""Logical axes of the residual stream."""

NORM_PLACEMENTS = ("pre", "post", "sandwich", "output")
"""Where norms are, relative to a sublayer; see `residual`."""


def residual(
    c: Any,
    name: str,
    x: Float[Array, "B T M"],
    sublayer: Callable[[Array], Array],
) -> Float[Array, "B T M"]:
    """Returns the residual stream after a sublayer f, with norms by `norm_placement`.

    "pre": x + f(norm(x)) (Xiong et al. 2020). "post": norm(x + f(x)) (Vaswani et al. 2017, section
    3.1). "sandwich": x + norm(f(norm(x))) (Ding et al. 2021 (CogView), section 2.4; Gemma 2 and 3).
    "output": x + norm(f(x)) (Liu et al. 2022 (Swin V2), section 3.2; OLMo 2).

    Args:
      c: `TransformerConfig` of the layers.
      name: of the norm in the parameters; the second one of a sandwich is `name` + "_out".
      x: the residual stream.
      sublayer: f, called once, within the module that owns the norms.
    """

    x = constrain(x + branch(c, name, x, sublayer), *HIDDEN)
    return constrain(norm(c, name, x), *HIDDEN) if c.norm_placement == "post" else x


def branch(
    c: Any,
    name: str,
    x: Float[Array, "B T M"],
    sublayer: Callable[[Array], Array],
) -> Float[Array, "B T M"]:
    """Returns what a sublayer adds to the residual stream, with the norms before and after it.

    Arguments are those of `residual`.
    """
    place = c.norm_placement
    y = sublayer(norm(c, name, x) if place in ("pre", "sandwich") else x)
    if place in ("sandwich", "output"):
        y = norm(c, f"{name}_out" if place == "sandwich" else name, y)
    return y


def parallel_residual(
    c: Any,
    x: Float[Array, "B T M"],
    sublayers: Mapping[str, Callable[[Array], Array]],
) -> Float[Array, "B T M"]:
    """Returns x plus the `branch` of each sublayer on x itself, as in GPT-NeoX.

    Source: Wang and Komatsuzaki 2021 (GPT-J); Black et al. 2022, section 2.1. Each sublayer has
    norms of its own. Not with "post" norms, which come after the sum with one sublayer.

    Args:
      c: `TransformerConfig` of the layers.
      x: the residual stream.
      sublayers: {name of the norm: sublayer}; see `residual`.
    """
    branches = [branch(c, name, x, sublayer) for name, sublayer in sublayers.items()]
    return constrain(sum(branches, x), *HIDDEN)


def norm(c: Any, name: str, x: Float[Array, "B T M"]) -> Float[Array, "B T M"]:
    """Returns the norm of x of the config's type; `name` is that of its parameters."""
    return Norm(c.norm, c.use_bias, c.norm_epsilon, name=name)(x)


def final_norm(c: Any, x: Float[Array, "B T M"]) -> Float[Array, "B T M"]:
    """Returns the norm "norm" of the last layer's output, which "post" layers have normalized."""
    if c.norm_placement == "post":
        return x
    return norm(c, "norm", x)
