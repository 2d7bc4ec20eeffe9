"""Differential attention: the difference of two softmax attentions cancels what both look at."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from research.attention.implementations import dense
from research.attention.implementations.attend import attend
from research.attention.mixers.attention_options import AttentionOptions, shared_heads
from research.attention.mixers.choice import Context, fill
from research.attention.mixers.mixer import Look
from research.attention.mixers.self_attention import SelfAttention
from research.attention.parameters import Normal, Parameter, vector_axes
from research.attention.parts.choice import MechanismPart, Sizes, size
from research.attention.parts.masks import Mask
from research.attention.parts.positions import MODEL_POSITIONS, ROTARY_POSITIONS
from research.attention.parts.relative_biases import BIAS_POSITIONS
from research.options import choice, option

# lambda_init of the paper depends on the layer's depth and tends to this; its Table 6 finds the
# constant as good.
LAMBDA = 0.8


@dataclasses.dataclass(frozen=True)
class DifferentialAttention(SelfAttention):
    """(weights_1 - lambda weights_2) v, normalized per head (Ye et al. 2024, equations 1-3).

    Query and key heads of D channels are cut into two of D / 2, which is the paper's head of 2 d
    with d = D / 2. lambda = exp(l1 . l2) - exp(l3 . l4) + 0.8.
    """

    def parameters(self) -> dict[str, Parameter]:
        """Those of ``SelfAttention``, "lambda" (4, D / 2), and the scale of the norm, (D,)."""
        half = self.head_width // 2
        return super().parameters() | {
            "lambda": Parameter((4, half), Normal(0.1), vector_axes("", "")),
            "norm_scale": Parameter((self.head_width,), jax.nn.initializers.ones, vector_axes("")),
        }

    def look(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> Look:
        """The differences that the values are summed with, some of them negative; no scores."""
        index = np.arange(x.shape[1])
        q, kept = self._query(params, x, index), self._remembered(params, x, index)
        allowed = self.mask if mask is None else self.mask & mask
        mechanism = self._mechanism(params, q, allowed, index, index)
        first, second = (dense.weights(*half, **mechanism) for half in _halves(q, kept["k"]))
        return Look(first - self._share(params, first.dtype) * second, kept["v"])

    def merge(
        self, params: dict[str, Array], x: Float[Array, "B T M"], read: Float[Array, "B T H D"]
    ) -> Float[Array, "B T M"]:
        """Normalizes each head's difference, then as ``SelfAttention``."""
        read = read * jax.lax.rsqrt(jnp.mean(jnp.square(read), -1, keepdims=True) + 1e-5)
        return super().merge(params, x, read * ((1 - LAMBDA) * params["norm_scale"]))

    def _rotated(self, x, index):
        # Each half is a head of its own, whose channels turn in pairs.
        if self.rotary is None:
            return x
        return jnp.concatenate([self.rotary(half, index) for half in jnp.split(x, 2, -1)], -1)

    def _read(self, params, q, kept, mask, implementation, q_index, kv_index):
        mechanism = self._mechanism(params, q, mask, q_index, kv_index)
        mechanism |= {"implementation": implementation, "block_size": self.block_size}
        halves = _halves(q, kept["k"])
        first, second = (attend(*half, kept["v"], **mechanism) for half in halves)
        dtype = jnp.promote_types(first.dtype, jnp.float32)
        return first.astype(dtype) - self._share(params, dtype) * second.astype(dtype)

    def _share(self, params, dtype):
        """lambda."""
        l1, l2, l3, l4 = params["lambda"].astype(dtype)
        return jnp.exp(l1 @ l2) - jnp.exp(l3 @ l4) + LAMBDA


def _halves(q: Array, k: Array) -> list[tuple[Array, Array]]:
    return list(zip(jnp.split(q, 2, -1), jnp.split(k, 2, -1), strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DifferentialOptions(AttentionOptions):
    """norm((softmax(q1 k1) - lambda softmax(q2 k2)) v)"""

    source = "Ye et al. 2024 (Differential Transformer), equations 1-3"
    time = "T S H D"
    state = "2 S K D"

    position: MechanismPart = choice(
        {**MODEL_POSITIONS, **ROTARY_POSITIONS, **BIAS_POSITIONS},
        "none",
        "how a query knows where a key is",
        others="mixer 'differential' applies no others",
    )
    num_kv_heads: int = size(0, "heads of keys and values; 0: num_heads")
    output_gate: bool = option(False, "what the heads read times sigmoid(x W)")

    def sizes(self, context: Context) -> Sizes:
        """Returns the sizes of the heads; see ``HeadOptions``."""
        return shared_heads(super().sizes(context), self.num_kv_heads)

    def make(self, context: Context) -> DifferentialAttention:
        """Returns differential attention."""
        return fill(
            DifferentialAttention,
            self.sizes(context),
            self,
            context,
            **self.parts(context),
            rotary=self.build_rotary(context),
            implementation=self.resolved(context),
        )
