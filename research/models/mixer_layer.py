"""The Flax layer around a mixer, and what it reports beside the output.

A mixer's losses travel out of the scan over layers, `vmap` over members and recomputation as a
Flax collection, which is filled where `Model.apply` is told that it is mutable.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from research.attention.mixers.mixer import Mixer
from research.attention.mixers.self_attention import Earlier, Handed, SelfAttention
from research.attention.parts.masks import Mask

LOSSES = "losses"
"""The collection of `Mixer.losses`."""
SCORES = "largest_scores"
"""The collection of `Mixer.largest_scores`."""


class MixerLayer(nn.Module):
    """Owns the parameters that a mixer declares."""

    mixer: Mixer

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T M"],
        state: Any,
        mask: Mask | None = None,
        earlier: Earlier | None = None,
    ) -> tuple[Float[Array, "B T M"], Any, Handed | None]:
        """Returns the output, the new state, and what later layers may use, if `earlier` is given.

        Args:
          x: a whole sequence or, with a state, its next tokens.
          state: decoding state; None for a whole sequence.
          mask: as mixers take it.
          earlier: what earlier layers handed over; None: no layer of the model uses another's.
        """
        params = {
            name: self.param(name, p.init, p.shape) for name, p in self.mixer.parameters().items()
        }
        # While parameters are made, every collection is mutable.
        if state is None and not self.is_initializing():
            self.report(params, x, mask)
        if earlier is not None and isinstance(self.mixer, SelfAttention):
            state, y, handed = self.mixer.mix(params, x, state, mask=mask, earlier=earlier)
            return y, state, handed
        if state is None:
            return self.mixer(params, x, mask=mask), None, None
        state, y = self.mixer.extend(params, state, x)
        return y, state, None

    def report(self, params: dict[str, Array], x: Float[Array, "B T M"], mask: Any) -> None:
        """Fills the collections that are asked for."""
        if self.is_mutable_collection(LOSSES):
            for name, value in self.mixer.losses(params, x, mask=mask).items():
                self.put_variable(LOSSES, name, value)
        if self.is_mutable_collection(SCORES):
            for name, found in self.mixer.largest_scores(params, x, mask=mask).items():
                self.put_variable(SCORES, name, found)


def losses_of_layers(found: Mapping[str, Any]) -> dict[str, Float[Array, " L"]]:
    """Returns the losses of all layers that have them, by name.

    Args:
      found: the collections that a model's `apply` returned.
    """
    by_name: dict[str, list[jax.Array]] = {}
    for path, value in flatten_dict(dict(found.get(LOSSES, {}))).items():
        by_name.setdefault(path[-1], []).append(value.ravel())
    return {name: jnp.concatenate(values) for name, values in by_name.items()}
