"""Retention and gated linear attention: decay fixed per head, or data-dependent per channel."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from research.attention.mixers.linear import decay
from research.attention.mixers.linear.linear_time import (
    ConvolvedOptions,
    LinearTime,
    WideValues,
    WideValuesOptions,
    at_least_float32,
    standardize_heads,
)
from research.attention.mixers.mixer_options import Context
from research.attention.mixers.projections import merge_heads
from research.attention.parameters import Constant, Parameter, matrix_axes, matrix_init, vector_axes
from research.attention.parts.positions import rope
from research.options import OptionError


def gate(params: dict[str, Array], x: Float[Array, "B T M"]) -> Float[Array, "B T H Dv"]:
    """Returns swish(x W) with W = `params["gate"]` (M, H, Dv), in the dtype of x."""
    return jax.nn.silu(jnp.einsum("btm,mhd->bthd", x, params["gate"].astype(x.dtype)))


def gate_parameter(mixer: LinearTime) -> Parameter:
    """Returns the description of the matrix W of `gate`."""
    shape = (mixer.width, mixer.num_heads, mixer.head_shapes["value"][1])
    init = matrix_init(mixer.init_stddev, mixer.width)
    return Parameter(shape, init, matrix_axes("width", "heads", "head_width"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retention(WideValues):
    """Multi-scale retention (Sun et al. 2023, RetNet, equations 5-8).

    Head h decays by 1 - 2^(-5-h) per token; queries and keys are rotated by their positions, base
    10000, and keys are divided by sqrt(D). In the paper values are twice as wide as keys.
    The group norm has no scale or shift: the output projection can absorb the scale.
    """

    @property
    def name(self) -> str:
        """The mixer's name in the registry."""
        return "retention"

    def parameters(self) -> dict[str, Parameter]:
        """Returns the projections of `SelfAttention`, and "gate" (M, H, Dv)."""
        return {**self.projection_parameters(), "gate": gate_parameter(self)}

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """Returns "memory" (batch, H, D, Dv), float32 or wider, and "step", the tokens so far."""
        memory = self.init_memory(batch, self.head_shapes["value"][1], dtype)
        return {"memory": memory, "step": jnp.zeros((), jnp.int32)}

    def prepare(
        self,
        params: dict[str, Array],
        state: PyTree,
        x: Float[Array, "B T M"],
        places: Int[Array, "B T"] | None,
    ) -> tuple[tuple[Any, ...], Float[Array, "B T H Dv"], dict[str, Any]]:
        """Returns (rotated queries and keys, decays), values and new state; see `LinearTime`."""
        length = x.shape[1]
        heads, _ = self.project_qkv(params, {}, x, places)
        q, k, v = (
            heads[name].astype(at_least_float32(x.dtype)) for name in ("query", "key", "value")
        )
        index = state["step"] + jnp.arange(length, dtype=jnp.int32)
        q, k = rope(q, index), rope(k * self.head_width**-0.5, index)
        rates = np.log1p(-(2.0 ** (-5.0 - np.arange(self.num_heads))))
        decays = jnp.broadcast_to(jnp.asarray(rates, q.dtype), (1, length, self.num_heads))
        return (q, k, decays), v, {"step": state["step"] + length}

    def merge(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        head_outputs: Float[Array, "B T H Dv"],
    ) -> Float[Array, "B T M"]:
        """Normalizes and gates the heads; see `Mixer`."""
        return merge_heads(
            params, standardize_heads(head_outputs).astype(x.dtype) * gate(params, x)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedLinearAttention(WideValues):
    """Gated linear attention (Yang et al. 2024, GLA, equation 3 and section 4.4).

    Each channel of the keys decays by sigmoid(x W W' + b)^(1/16), with W W' of rank 16. Queries are
    divided by sqrt(D). In the paper values are twice as wide as keys. The norm over a head has no
    learned scale or shift: the output projection can absorb the scale.
    """

    RANK = 16
    TEMPERATURE = 16.0
    # Scores with per-channel decays take log C rounds, so shorter chunks are faster here.
    CHUNK = 32

    @property
    def name(self) -> str:
        """The mixer's name in the registry."""
        return "gated_linear"

    @property
    def chunk(self) -> int:
        """The number of tokens per chunk in the chunkwise form."""
        return self.block_size or self.CHUNK

    def parameters(self) -> dict[str, Parameter]:
        """Returns the projections of `SelfAttention`, taps, and the parameters of the gates.

        The gates have "gate" (M, H, Dv), "decay_in" (M, 16), "decay_out" (16, H, D) and
        "decay_bias" (H, D).
        """
        shape, axes = (self.num_heads, self.head_width), ("heads", "head_width")
        down = matrix_init(self.init_stddev, self.width)
        up = matrix_init(self.init_stddev, self.RANK)
        return {
            **self.projection_parameters(),
            "gate": gate_parameter(self),
            "decay_in": Parameter((self.width, self.RANK), down, matrix_axes("width", "")),
            "decay_out": Parameter((self.RANK, *shape), up, matrix_axes("", *axes)),
            "decay_bias": Parameter(shape, Constant(0.0), vector_axes(*axes)),
        }

    def prepare(
        self,
        params: dict[str, Array],
        state: PyTree,
        x: Float[Array, "B T M"],
        places: Int[Array, "B T"] | None,
    ) -> tuple[tuple[Any, ...], Float[Array, "B T H Dv"], dict[str, Any]]:
        """Returns (queries, keys, decays), values and new state; see `LinearTime`."""
        dtype = at_least_float32(x.dtype)
        heads, inputs = self.project_qkv(params, state["inputs"], x, places)
        q, k, v = (heads[name].astype(dtype) for name in ("query", "key", "value"))
        low = x @ params["decay_in"].astype(x.dtype)
        logits = jnp.einsum("btr,rhd->bthd", low, params["decay_out"].astype(x.dtype))
        logits = logits.astype(dtype) + params["decay_bias"].astype(dtype)
        decays = jax.nn.log_sigmoid(logits) / self.TEMPERATURE
        return (q * self.head_width**-0.5, k, decays), v, {"inputs": inputs}

    def merge(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        head_outputs: Float[Array, "B T H Dv"],
    ) -> Float[Array, "B T M"]:
        """Normalizes and gates the heads; see `Mixer`."""
        return merge_heads(
            params, standardize_heads(head_outputs).astype(x.dtype) * gate(params, x)
        )


def _check_norm(name, head_width, value_width):
    """Refuses values of width 1, which a norm over the head would make constant."""
    field, width = ("value_width", value_width) if value_width else ("head_width", head_width)
    if width < 2:
        raise OptionError(field, width, f"{name} normalizes each head; make it 2 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetentionOptions(WideValuesOptions):
    """S_t = (1 - 2^(-5-h)) S_(t-1) + k_t v_t^T, y = norm(S^T q / sqrt(D)) swish(x W),
    q, k rotated"""

    source = "Sun et al. 2023 (RetNet), equations 5-8"
    implementations = tuple(decay.FORMS)
    time = "T C (D + Dv) + T D Dv in chunks of C"
    state = "H D Dv"

    def make(self, context: Context) -> Retention:
        """Returns the mixer.

        Raises:
          OptionError: the head width is odd, or a head has values of width 1.
        """
        width = self.sizes(context).head_width
        if width % 2:
            message = "retention rotates channels in pairs; make it even"
            raise OptionError("head_width", width, message)
        _check_norm("retention", width, self.value_width)
        return self.build_from(Retention, context)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedLinearOptions(WideValuesOptions, ConvolvedOptions):
    """S_t = diag(a_t) S_(t-1) + k_t v_t^T, a_t = sigmoid(x W W')^(1/16),
    y = norm(S^T q / sqrt(D)) swish(x W'')"""

    source = "Yang et al. 2024 (GLA), equation 3, sections 4.3 and 4.4"
    implementations = tuple(decay.FORMS)
    time = "T C (D + Dv) + T D Dv in chunks of C"
    state = "H D Dv"

    def make(self, context: Context) -> GatedLinearAttention:
        """Returns the mixer.

        Raises:
          OptionError: a head has values of width 1.
        """
        _check_norm("gated_linear", self.sizes(context).head_width, self.value_width)
        return self.build_from(GatedLinearAttention, context)
