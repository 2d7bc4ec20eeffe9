"""Stick-breaking attention: each key takes a share of what the keys after it have left."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from research.attention.parts.content_dependent import ContentDependent, key_order, sums_of_later
from research.attention.parts.masks import Mask
from research.attention.parts.normalizers import Normalizer, Parts
from research.attention.parts.part_options import MechanismPart, Sizes
from research.options import OptionError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StickBreaking(Normalizer, ContentDependent):
    """sigma(s_j) times the product of 1 - sigma(s_m) over the allowed keys m after key j.

    Stick-breaking attention (Tan et al. 2024, "Scaling Stick-Breaking Attention: An Efficient
    Implementation and In-depth Study", equations 2-3). Weights of a row sum to less than 1: what is
    left of the stick goes to no value. The paper breaks it among the keys before the query only;
    here the mask alone says which keys take part, and causal masks allow the query's own, as the
    authors' code does with `attend_current`. The mask has to be causal.

    It needs the positions of the keys, and `evaluate` gives it their order.
    """

    name: ClassVar[str] = "stick_breaking"

    def evaluate(
        self,
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K D"],
        q_index: Integer[Array | np.ndarray, " T"],
        kv_index: Integer[Array | np.ndarray, " S"],
    ) -> "OrderedStickBreaking":
        """Returns the normalizer for keys at these positions."""
        return OrderedStickBreaking(key_order(kv_index))

    def needs_all_keys(self, mask: Mask) -> bool:
        """Returns False: only keys that the query sees take of the stick."""
        return False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OrderedStickBreaking(Normalizer):
    """`StickBreaking` of keys in this order."""

    name: ClassVar[str] = StickBreaking.name
    order: Any  # of the keys, (S,); None if they are sorted

    def numerator_and_divisor(
        self, scores: Float[Array, "B H T S"], mask: Bool[Array, "..."] | None = None
    ) -> Parts:
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        # Products of many factors less than 1 underflow, and sums of their logs do not.
        kept = jax.nn.log_sigmoid(-scores)
        kept = kept if mask is None else jnp.where(mask, kept, 0)
        weights = jnp.exp(jax.nn.log_sigmoid(scores) + sums_of_later(kept, self.order))
        weights = weights if mask is None else jnp.where(mask, weights, 0)
        return weights, jnp.ones((*weights.shape[:-1], 1), weights.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StickBreakingChoice(MechanismPart):
    """sigma(s) prod (1 - sigma(s')) over the keys between key and query; not normalized"""

    source = "Tan et al. 2024 (stick-breaking attention), equations 2-3"
    where = ("self",)

    def build(self, sizes: Sizes) -> Normalizer:
        """Returns the normalizer for heads of these sizes.

        Raises:
          OptionError: a query sees later keys.
        """
        if sizes.bidirectional:
            message = "it breaks the stick from the query back, and the mask is not causal"
            raise OptionError("normalizer", "stick_breaking", message)
        return StickBreaking()


ORDERED_NORMALIZERS: dict[str, type[MechanismPart]] = {"stick_breaking": StickBreakingChoice}
