"""The forget gate of softmax attention: a bias that decays by gates of the tokens in between."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from research.attention.parameters import Constant, Parameter, matrix_axes, matrix_init, vector_axes
from research.attention.parts.biases import Bias, Index
from research.attention.parts.content_dependent import ContentDependent, PerKey, PerQuery
from research.attention.parts.masks import Mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ForgetGate(Bias, ContentDependent):
    """score + sum of log f_l over the tokens l after the key, up to and including the query's.

    f_l = sigmoid(w . x_l + b), of each head (Lin et al. 2025, "Forgetting Transformer: Softmax
    Attention with a Forget Gate", section 3: f_t = sigma(w_f^T x_t + b_f) and
    D_ij = sum_{l = j + 1 .. i} log f_l, which is added to q_i . k_j before the softmax). The mask
    has to be causal.
    """

    additive: ClassVar[bool] = True
    weight: Any  # w, a Parameter or an array (M, H)
    bias: Any  # b (H,)
    log_gates: Any = None  # log f of the keys' tokens, (B, S, H)

    def project_tokens(self, x: Float[Array, "B N M"]) -> Float[Array, "B N H"]:
        """Returns log f of each token and head."""
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        weight = self.weight.astype(x.dtype)
        gate = jnp.einsum("bnm,mh->bnh", x, weight, preferred_element_type=dtype)
        return jax.nn.log_sigmoid(gate + self.bias.astype(dtype))

    def with_tokens(self, projected: Float[Array, "B S H"]) -> "ForgetGate":
        return dataclasses.replace(self, log_gates=projected)

    def evaluate(
        self,
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K D"],
        q_index: Integer[Array | np.ndarray, " T"],
        kv_index: Integer[Array | np.ndarray, " S"],
    ) -> "ForgetBias":
        """Returns the bias with log gates summed up to each query and up to each key.

        Raises:
          ValueError: the log gates of the keys' tokens were not set by `with_tokens`.
        """
        if self.log_gates is None:
            raise ValueError("forget gate: it needs the keys' gates; see `Mechanism.with_tokens`")
        xp = np if isinstance(kv_index, np.ndarray) else jnp
        order = xp.argsort(kv_index)
        sorted_index, gates = kv_index[order], self.log_gates
        if xp is jnp or (order != np.arange(len(order))).any():
            gates = gates[:, order]
        # Empty slots of a cache have no gate.
        gates = jnp.where((sorted_index >= 0)[:, None], gates, 0)
        total = jnp.pad(jnp.cumsum(gates, axis=1), ((0, 0), (1, 0), (0, 0)))

        def up_to(index):
            both = isinstance(index, np.ndarray) and xp is np
            search = np.searchsorted if both else jnp.searchsorted
            return total[:, search(sorted_index, index, side="right")]

        return ForgetBias(PerQuery(up_to(q_index)), PerKey(up_to(kv_index)))

    def needs_all_keys(self, mask: Mask) -> bool:
        """Returns whether gates of masked tokens lie between a query and a visible key.

        They do if the mask keeps the first keys beyond its reach.
        """
        return mask.num_sink_tokens > 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ForgetBias(Bias):
    """score + c[query] - c[key], for cumulative log gates c."""

    additive: ClassVar[bool] = True
    of_queries: PerQuery  # c (B, T, H)
    of_keys: PerKey  # c (B, S, H)

    def __call__(
        self,
        score: Float[Array, "B H T S"],
        head: Index,
        q_index: Index,
        kv_index: Index,
    ) -> Float[Array, "B H T S"]:
        both = self.of_queries.values, self.of_keys.values
        query, key = (jnp.swapaxes(c, 1, 2).astype(score.dtype) for c in both)
        return score + (query[..., :, None] - key[..., None, :])


def forget_gate(width: int, num_heads: int, stddev: float = 0.02) -> ForgetGate:
    """Returns a forget gate for tokens of this width.

    w is drawn from N(0, stddev^2), or N(0, 1 / M) if stddev is 0, and b starts at 0, as in the
    authors' code.
    """
    weight = Parameter(
        (width, num_heads), matrix_init(stddev, width), matrix_axes("width", "heads")
    )
    return ForgetGate(weight, Parameter((num_heads,), Constant(0.0), vector_axes("heads")))
