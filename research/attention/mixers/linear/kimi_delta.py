"""Kimi Delta Attention: the gated delta rule with a decay for every channel of the keys."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.attention.mixers.linear import decay
from research.attention.mixers.linear.delta import DeltaNet, DeltaOptions
from research.attention.mixers.linear.linear_time import at_least_float32
from research.attention.mixers.linear.state_space import log_rate_init, step_bias_init
from research.attention.mixers.mixer_options import Context
from research.attention.parameters import Parameter, matrix_axes, matrix_init, vector_axes


@dataclasses.dataclass(frozen=True, kw_only=True)
class KimiDelta(DeltaNet):
    """Kimi Delta Attention (Kimi Team 2025, Kimi Linear, section 3).

    Like `DeltaNet`, but every channel of the keys first decays by exp(-A softplus(x W W' + b)) with
    one A per head, and the normalized outputs are multiplied by sigmoid(x V V'). W W' and V V' have
    the rank Dv, as in the authors' code. The correction of the delta rule reads the decayed state.
    """

    # Scores with per-channel decays take log C rounds, so shorter chunks are faster here.
    CHUNK = 32

    @property
    def name(self) -> str:
        """The mixer's name in the registry."""
        return "kimi_delta"

    @property
    def chunk(self) -> int:
        """The number of tokens per chunk in the chunkwise form."""
        return self.block_size or self.CHUNK

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters of `DeltaNet`, and those of the decay and of the output gate.

        The decay has "step_in" (M, Dv), "step_out" (Dv, H, D), "step_bias" (H, D), and "log_rate"
        (H,), which is log A. The gate has "gate_in" (M, Dv) and "gate_out" (Dv, H, Dv).
        """
        heads, rank = self.head_shapes["value"]
        keys, axes = (heads, self.head_width), ("heads", "head_width")
        down = matrix_init(self.init_stddev, self.width)
        up = matrix_init(self.init_stddev, rank)
        inward = Parameter((self.width, rank), down, matrix_axes("width", ""))
        return super().parameters() | {
            "step_in": inward,
            "step_out": Parameter((rank, *keys), up, matrix_axes("", *axes)),
            "step_bias": Parameter(keys, step_bias_init, vector_axes(*axes)),
            "log_rate": Parameter((heads,), log_rate_init, vector_axes("heads")),
            "gate_in": inward,
            "gate_out": Parameter((rank, heads, rank), up, matrix_axes("", *axes)),
        }

    def log_decay(self, params: dict[str, Array], x: Float[Array, "B T M"]) -> decay.Decay:
        """Returns -A softplus(x W W' + b)."""
        dtype = at_least_float32(x.dtype)
        logits = _low_rank(params, "step", x).astype(dtype) + params["step_bias"].astype(dtype)
        rates = jnp.exp(params["log_rate"].astype(dtype))
        return -rates[:, None] * jax.nn.softplus(logits)

    def gated_output(
        self, params: dict[str, Array], x: Float[Array, "B T M"], y: Float[Array, "B T H Dv"]
    ) -> Float[Array, "B T H Dv"]:
        """Returns y sigmoid(x V V')."""
        return y * jax.nn.sigmoid(_low_rank(params, "gate", x))


def _low_rank(params, name, x):
    """Returns x times the named pair of matrices, (B, T, H, D), in the dtype of x."""
    low = x @ params[f"{name}_in"].astype(x.dtype)
    return jnp.einsum("btr,rhd->bthd", low, params[f"{name}_out"].astype(x.dtype))


@dataclasses.dataclass(frozen=True, kw_only=True)
class KimiDeltaOptions(DeltaOptions):
    """S_t = S_{t-1} diag(a_t) (I - b_t k_t k_t^T) + b_t v_t k_t^T,
    a_t = exp(-A softplus(x W W' + b)), y = norm(S_t q_t / sqrt(D)) sigmoid(x V V')"""

    source = "Kimi Team 2025 (Kimi Linear), section 3"

    def make(self, context: Context) -> KimiDelta:
        """Returns the mixer."""
        return self.build_from(KimiDelta, context)
