"""Self-attention that uses values or keys of earlier layers; options of softmax attention."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from research.attention.errors import Unsupported
from research.attention.implementations.attend import decoding_implementation
from research.attention.mixers import cache
from research.attention.mixers.attention_options import ScoredOptions
from research.attention.mixers.mixer import AttentionTrace, HeadScores
from research.attention.mixers.mixer_options import Context, build_from
from research.attention.mixers.self_attention import (
    Earlier,
    Handed,
    SelfAttention,
    dense_trace,
)
from research.attention.parameters import Parameter, vector_axes
from research.attention.parts.masks import Mask
from research.options import OptionError, option

VALUE_RESIDUALS = ("none", "half", "learned")


@dataclasses.dataclass(frozen=True)
class AcrossLayers(SelfAttention):
    """Self-attention of a layer that looks at earlier ones.

    As the only layer it is the first one: it has nothing to add to its values.

    Attributes:
      value_residual: what becomes of its values V in all layers but the first, whose values are V1:
        "half" makes them (V + V1) / 2, and "learned" a V + b V1 with learned a and b, initially 1/2
        (Zhou et al. 2024 (Value Residual Learning), section 3: the identity and the learnable
        form).
      share_kv: queries attend to the keys and values of the nearest earlier layer that has its own
        (Brandon et al. 2024 (Cross-Layer Attention), section 3; Sun et al. 2024 (YOCO), section 2).
        The layer has no projections of keys and values, and no cache.
    """

    value_residual: str = "none"
    share_kv: bool = False

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters of `SelfAttention`.

        With "learned" there is also "value_mix" (2,), the weights of V and V1. With `share_kv`
        whatever projects or normalizes keys and values is missing.
        """
        found = super().parameters()
        if self.share_kv:
            return {n: p for n, p in found.items() if n.split("_")[0] not in ("key", "value")}
        if self.value_residual == "learned":
            half = jax.nn.initializers.constant(0.5)
            found["value_mix"] = Parameter((2,), half, vector_axes(""))
        return found

    def mix(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        state: PyTree = None,
        *,
        mask: Mask | None = None,
        earlier: Earlier | None = None,
    ) -> tuple[PyTree, Float[Array, "B T M"], Handed]:
        """Returns the new state, the output, and what later layers may use; see `SelfAttention`.

        Raises:
          Unsupported: keys and values are shared, and no earlier layer has any.
        """
        if not self.share_kv:
            return super().mix(params, x, state, mask=mask, earlier=earlier)
        tokens = _shared(earlier)
        if state is None:
            index = at = np.arange(x.shape[1])
            implementation = self.implementation
        else:
            index = cache.positions(state, x.shape[1])
            at, mask = tokens["positions"], cache.filled
            implementation = decoding_implementation(self.implementation, x.shape[1])
            state = {"step": state["step"] + x.shape[1]}
        out = self._attend(self._attend_fn(implementation), params, x, tokens, index, at, mask)
        return state, self.merge(params, x, out), Handed(None, tokens)

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """Returns the cache of `SelfAttention`; with `share_kv`, the number of tokens alone."""
        if self.share_kv:
            return {"step": jnp.zeros((), jnp.int32)}
        return super().init_state(batch, length, dtype)

    def attention_trace(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
        earlier: Earlier | None = None,
    ) -> AttentionTrace:
        """Returns the weights and values of a whole sequence; see `Mixer` and `mix`."""
        index = np.arange(x.shape[1])
        tokens = _shared(earlier) if self.share_kv else self._entries(params, x, index, earlier)[0]
        return self._attend(dense_trace, params, x, tokens, index, index, mask)

    def largest_scores(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> dict[str, HeadScores]:
        """Returns those of `SelfAttention`; {} for a layer that shares another's keys."""
        return {} if self.share_kv else super().largest_scores(params, x, mask=mask)

    def _entries(self, params, x, index, earlier=None):
        found, own = super()._entries(params, x, index)
        if self.value_residual == "none" or earlier is None or earlier.values is None:
            return found, own
        first = earlier.values.astype(own.dtype)
        a, b = params.get("value_mix", np.full(2, 0.5, np.float32)).astype(own.dtype)
        return found | {"v": jnp.where(earlier.has_values, a * own + b * first, own)}, own


def _shared(earlier):
    if earlier is None or earlier.tokens is None:
        raise Unsupported(
            "share_kv needs an earlier layer with keys and values of its own, as in "
            "model.pattern=('mask=causal', 'share_kv=true')"
        )
    return earlier.tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftmaxOptions(ScoredOptions):
    """normalizer(score(q, k) + bias, mask) v, per head"""

    source = "Vaswani et al. 2017, equation 1 and section 3.2.2"
    time = "T S H D"
    state = "2 S K D; a window of w keys: 2 w K D; with an indexer S E more"
    where = ("self", "cross", "decoder")

    value_residual: str = option(
        "none",
        "adds the values of the model's first layer to those of the others: half: the mean of "
        "both; learned: with two learned weights",
        allowed=VALUE_RESIDUALS,
        source="Zhou et al. 2024 (Value Residual Learning), section 3",
        where=("self",),
    )
    share_kv: bool = option(
        False,
        "attends to the keys and values of the nearest earlier layer of the pattern that has its "
        "own",
        source="Brandon et al. 2024 (Cross-Layer Attention), section 3; Sun et al. 2024 (YOCO), "
        "section 2",
        where=("self",),
    )

    def make(self, context: Context) -> SelfAttention:
        """Returns softmax attention, or whatever replaces its softmax.

        Raises:
          OptionError: keys and values are shared, and something of this layer's own looks at them.
        """
        made = build_from(
            AcrossLayers,
            self.sizes(context),
            self,
            context,
            mechanism=self.mechanism(context),
            rotary=self.build_rotary(context),
            implementation=self.resolved_implementation(context),
        )
        if made.share_kv and made.mechanism.has_content:
            message = "a part of this layer looks at tokens, and would see those of another layer"
            raise OptionError("share_kv", True, message)
        if made.share_kv and made.value_residual != "none":
            raise OptionError("share_kv", True, "it leaves no values to which to add a residual")
        if made.share_kv or made.value_residual != "none":
            return made
        return build_from(SelfAttention, made)
