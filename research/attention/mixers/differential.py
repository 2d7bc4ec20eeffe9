"""Differential attention: the difference of two softmax attentions cancels their common noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from research.attention.implementations import dense
from research.attention.mixers.attention_options import AttentionOptions, with_kv_heads
from research.attention.mixers.mixer import AttentionTrace, HeadScores
from research.attention.mixers.mixer_options import Context, build_from
from research.attention.mixers.self_attention import SelfAttention
from research.attention.parameters import Normal, Parameter, vector_axes
from research.attention.parts.masks import Mask
from research.attention.parts.part_options import MechanismPart, Sizes, size_option
from research.attention.parts.positions import MODEL_POSITIONS, ROTARY_POSITIONS, Rotary
from research.attention.parts.relative_biases import BIAS_POSITIONS
from research.options import choice, option

# The paper's lambda_init depends on the depth of the layer and converges to this value; its Table 6
# finds the constant equally good.
LAMBDA = 0.8


@dataclasses.dataclass(frozen=True)
class DifferentialAttention(SelfAttention):
    """(weights_1 - lambda weights_2) v, normalized per head (Ye et al. 2024, equations 1-3).

    Query and key heads of D channels are split into two of D / 2 each, which corresponds to the
    paper's head of 2 d with d = D / 2. lambda = exp(l1 . l2) - exp(l3 . l4) + 0.8.
    """

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters of `SelfAttention`, "lambda" (4, D / 2), "norm_scale" (D,)."""
        half = self.head_width // 2
        return super().parameters() | {
            "lambda": Parameter((4, half), Normal(0.1), vector_axes("", "")),
            "norm_scale": Parameter((self.head_width,), jax.nn.initializers.ones, vector_axes("")),
        }

    def attention_trace(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> AttentionTrace:
        """Returns the differences of weights, which can be negative, and values; no scores."""
        index = np.arange(x.shape[1])
        kept = self._placed(self.cache_entries(params, x), index)
        return AttentionTrace(
            self._attend(_weights, params, x, kept, index, index, mask), kept["v"]
        )

    def largest_scores(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> dict[str, HeadScores]:
        """Returns {}: a head has two scores, and one pair of matrices."""
        return {}

    def merge(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        head_outputs: Float[Array, "B T H D"],
    ) -> Float[Array, "B T M"]:
        """Applies RMS norm to each head's output, then merges as in `SelfAttention`."""
        head_outputs = head_outputs * jax.lax.rsqrt(
            jnp.mean(jnp.square(head_outputs), -1, keepdims=True) + 1e-5
        )
        return super().merge(params, x, head_outputs * ((1 - LAMBDA) * params["norm_scale"]))

    def _attend(self, attend_fn, params, x, cached, q_index, kv_index, mask):
        """Returns `attend_fn` of each head's first half minus lambda times that of the second."""

        def difference(q, k, v, mechanism, **at):
            halves = zip(jnp.split(q, 2, -1), jnp.split(k, 2, -1), strict=True)
            first, second = (attend_fn(*half, v, mechanism, **at) for half in halves)
            dtype = jnp.promote_types(first.dtype, jnp.float32)
            l1, l2, l3, l4 = params["lambda"].astype(dtype)
            share = jnp.exp(l1 @ l2) - jnp.exp(l3 @ l4) + LAMBDA  # lambda
            return first.astype(dtype) - share * second.astype(dtype)

        return super()._attend(difference, params, x, cached, q_index, kv_index, mask)


def _weights(q, k, v, mechanism, **at):
    return dense.weights(q, k, mechanism, **at)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class HalvesRotary(Rotary):
    """Rotates each half of a head separately, as if it were a head."""

    def __call__(
        self, x: Float[Array, "B T H D"], positions: Integer[Array | np.ndarray, " T"]
    ) -> Float[Array, "B T H D"]:
        return jnp.concatenate(
            [Rotary.__call__(self, x, positions) for x in jnp.split(x, 2, -1)], -1
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DifferentialOptions(AttentionOptions):
    """norm((softmax(q1 k1) - lambda softmax(q2 k2)) v)"""

    source = "Ye et al. 2024 (Differential Transformer), equations 1-3"
    time = "T S H D"
    state = "2 S K D"

    position: MechanismPart = choice(
        {**MODEL_POSITIONS, **ROTARY_POSITIONS, **BIAS_POSITIONS},
        "none",
        "position encoding",
        others="mixer 'differential' applies no others",
    )
    num_kv_heads: int = size_option(0, "K, key/value heads; 0: num_heads")
    output_gate: bool = option(False, "multiplies the heads' outputs by sigmoid(x W)")

    def sizes(self, context: Context) -> Sizes:
        """Returns the sizes of the heads; see `HeadOptions`."""
        return with_kv_heads(super().sizes(context), self.num_kv_heads)

    def make(self, context: Context) -> DifferentialAttention:
        """Returns differential attention."""
        rotary = self.build_rotary(context)
        return build_from(
            DifferentialAttention,
            self.sizes(context),
            self,
            context,
            mechanism=self.mechanism(context),
            rotary=rotary and HalvesRotary(**vars(rotary)),
            implementation=self.resolved_implementation(context),
        )
