"""The delta rule, plain and gated: linear attention that overwrites the value stored for a key."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from research.attention.mixers.linear import decay, log_linear, log_linear_delta
from research.attention.mixers.linear.delta_rule import FORMS, unit
from research.attention.mixers.linear.gated import gate, gate_parameter
from research.attention.mixers.linear.level_weights import (
    LogLinearOptions,
    level_parameter,
    level_weights,
)
from research.attention.mixers.linear.linear_time import (
    NORM_EPSILON,
    ConvolvedOptions,
    NormedOutputOptions,
    WideValues,
    WideValuesOptions,
    at_least_float32,
    check_groups,
)
from research.attention.mixers.linear.state_space import step_parameters, steps
from research.attention.mixers.mixer_options import Context
from research.attention.mixers.projections import merge_heads
from research.attention.parameters import Constant, Parameter, matrix_axes, matrix_init, vector_axes
from research.attention.parts.part_options import size_option


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeltaNet(WideValues):
    """The delta rule (Schlag et al. 2021, section 4.2) as in Yang et al. 2024, section 3.3.

    q, k and v go through SiLU, after a short convolution if there is one; q and k are normalized to
    length 1, and q is divided by sqrt(D) too, as in the authors' code; beta is a sigmoid of x W.
    Each head's output goes through RMS norm, which would cancel the sqrt(D) were it not for the
    epsilon of that norm.

    Attributes:
      output_norm_gain: whether that norm has a learned gain per channel, shared by the heads. The
        output projection can absorb it.
      output_norm_epsilon: added to the mean square in that norm.
    """

    output_norm_gain: bool = False
    output_norm_epsilon: float = NORM_EPSILON

    @property
    def name(self) -> str:
        """The mixer's name in the registry."""
        return "delta"

    def parameters(self) -> dict[str, Parameter]:
        """Returns the projections of `SelfAttention`, taps, and "beta" (M, H).

        With a gain there is also "norm_scale" (Dv,).
        """
        matrix = matrix_init(self.init_stddev, self.width)
        beta = Parameter((self.width, self.num_heads), matrix, matrix_axes("width", "heads"))
        found = {**self.projection_parameters(), "beta": beta}
        if self.output_norm_gain:
            shape = self.head_shapes["value"][1:]
            found["norm_scale"] = Parameter(shape, Constant(1.0), vector_axes(""))
        return found

    def prepare(
        self,
        params: dict[str, Array],
        state: PyTree,
        x: Float[Array, "B T M"],
        places: Int[Array, "B T"] | None,
    ) -> tuple[tuple[Any, ...], Float[Array, "B T H Dv"], dict[str, Any]]:
        """Returns (queries, keys, beta, decays), values and new state; see `LinearTime`."""
        dtype = at_least_float32(x.dtype)
        heads, inputs = self.project_qkv(params, state["inputs"], x, places)
        q, k, v = (heads[name].astype(dtype) for name in ("query", "key", "value"))
        if not self.short_convolution:  # it includes SiLU
            q, k, v = jax.nn.silu(q), jax.nn.silu(k), jax.nn.silu(v)
        beta = jax.nn.sigmoid((x @ params["beta"].astype(x.dtype)).astype(dtype))
        q = unit(q) * self.head_width**-0.5
        return (q, unit(k), beta, self.log_decay(params, x)), v, {"inputs": inputs}

    def recur(
        self,
        params: dict[str, Array],
        queries_keys: Any,
        v: Float[Array, "B T H Dv"],
        memory: PyTree,
        form: str,
    ) -> tuple[PyTree, Float[Array, "B T H Dv"]]:
        """Runs the delta rule; see `LinearTime`."""
        q, k, beta, log_decay = queries_keys
        return FORMS[form](q, k, v, beta, log_decay, memory, **self.form_options(form))

    def merge(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        head_outputs: Float[Array, "B T H Dv"],
    ) -> Float[Array, "B T M"]:
        """Normalizes and gates the heads; see `Mixer`."""
        y = head_outputs * lax.rsqrt(
            jnp.square(head_outputs).mean(-1, keepdims=True) + self.output_norm_epsilon
        )
        if self.output_norm_gain:
            y = y * params["norm_scale"].astype(y.dtype)
        return merge_heads(params, self.gated_output(params, x, y.astype(x.dtype)))

    def log_decay(self, params: dict[str, Array], x: Float[Array, "B T M"]) -> decay.Decay:
        """Returns the logarithms of the decays, (B, T, H) or (B, T, H, D); None for no decay."""
        return None

    def gated_output(
        self, params: dict[str, Array], x: Float[Array, "B T M"], y: Float[Array, "B T H Dv"]
    ) -> Float[Array, "B T H Dv"]:
        """Applies the output gate to the normalized heads; here there is none."""
        return y


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedDeltaNet(DeltaNet):
    """The gated delta rule (Yang, Kautz, Hatamizadeh 2024, section 3).

    Like `DeltaNet`, but the memory first decays by exp(-A softplus(x W + b)), as in Mamba-2, and
    the outputs are multiplied by swish(x W'). In the authors' code values are twice as wide as
    keys.

    Attributes:
      num_key_heads: K, heads of queries and keys; 0 is H. Value heads g H/K .. (g+1) H/K - 1 share
        the g-th (Qwen3-Next).
      log_levels: L, levels of log-linear attention, each with an S and a weight of its own (Guo et
        al. 2025, section 3.3); see `log_linear`. 0: one S for all of the past.
    """

    num_key_heads: int = 0
    log_levels: int = 0

    @property
    def name(self) -> str:
        """The mixer's name in the registry."""
        return "gated_delta"

    @property
    def head_shapes(self) -> dict[str, tuple[int, int]]:
        """{name: (heads, width)} of "query", "key" and "value"."""
        keys = (self.num_key_heads or self.num_heads, self.head_width)
        return super().head_shapes | {"query": keys, "key": keys}

    def prepare(
        self,
        params: dict[str, Array],
        state: PyTree,
        x: Float[Array, "B T M"],
        places: Int[Array, "B T"] | None,
    ) -> tuple[tuple[Any, ...], Float[Array, "B T H Dv"], dict[str, Any]]:
        """Returns (queries, keys, beta, decays), values and new state; see `LinearTime`."""
        (q, k, *rates), v, inputs = super().prepare(params, state, x, places)
        each = self.num_heads // q.shape[2]
        if each > 1:
            q, k = jnp.repeat(q, each, axis=2), jnp.repeat(k, each, axis=2)
        if not self.log_levels:
            return (q, k, *rates), v, inputs
        beta, decays = rates
        levels = log_linear.levels_of(level_weights(params, x), state["step"], places)
        inputs["step"] = state["step"] + x.shape[1]
        return (q, k, beta, levels, decays), v, inputs

    def recur(
        self,
        params: dict[str, Array],
        queries_keys: Any,
        v: Float[Array, "B T H Dv"],
        memory: PyTree,
        form: str,
    ) -> tuple[PyTree, Float[Array, "B T H Dv"]]:
        """Runs the gated delta rule; see `LinearTime`."""
        if not self.log_levels:
            return super().recur(params, queries_keys, v, memory, form)
        q, k, beta, levels, decays = queries_keys
        run = log_linear_delta.FORMS[form]
        return run(q, k, v, beta, decays, memory, levels, **self.form_options(form))

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """Returns the state of `LinearTime`; with levels also "step" (), the next token's place."""
        state = super().init_state(batch, length, dtype)
        return state | {"step": jnp.zeros((), jnp.int32)} if self.log_levels else state

    def init_memory(self, batch: int, value_width: int, dtype: Any) -> PyTree:
        """Returns S, of zeros, (B, H, D, Dv), or (B, H, L, D, Dv) with levels."""
        memory = super().init_memory(batch, value_width, dtype)
        return log_linear.with_levels(memory, self.log_levels)

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters of `DeltaNet`, "gate" (M, H, Dv), and those of the decay.

        The decay has "step" (M, H) and "step_bias" (H,), and "log_rate" (H,), which is log A. With
        levels there is also "level" (M, H, L).
        """
        levels = {"level": level_parameter(self, self.log_levels)} if self.log_levels else {}
        own = {"gate": gate_parameter(self), **step_parameters(self), **levels}
        return super().parameters() | own

    def log_decay(self, params: dict[str, Array], x: Float[Array, "B T M"]) -> decay.Decay:
        """Returns -A softplus(x W + b)."""
        return steps(params, x)[1]

    def gated_output(
        self, params: dict[str, Array], x: Float[Array, "B T M"], y: Float[Array, "B T H Dv"]
    ) -> Float[Array, "B T H Dv"]:
        """Returns y swish(x W')."""
        return y * gate(params, x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeltaOptions(WideValuesOptions, ConvolvedOptions, NormedOutputOptions):
    """S_t = S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T, y_t = S_t q_t / sqrt(D)"""

    source = 'Schlag et al. 2021, section 4.2; Yang et al. 2024, "Parallelizing...", section 3'
    implementations = tuple(FORMS)
    time = "chunkwise T (D Dv + C (D + Dv) + C^2), chunk C; recurrent T D Dv; parallel T^3"
    state = "H D Dv"

    def make(self, context: Context) -> DeltaNet:
        """Returns the mixer."""
        return self.build_from(DeltaNet, context)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedDeltaOptions(DeltaOptions, LogLinearOptions):
    """S_t = S_{t-1} a_t (I - b_t k_t k_t^T) + b_t v_t k_t^T, y_t = S_t q_t / sqrt(D)"""

    source = "Yang, Kautz, Hatamizadeh 2024, section 3.1"
    state = "H D Dv, times L of log_levels"

    num_key_heads: int = size_option(
        0, "K, heads of queries and keys, each shared by a group of value heads; 0: num_heads"
    )

    def make(self, context: Context) -> GatedDeltaNet:
        """Returns the mixer.

        Raises:
          OptionError: the heads of keys do not divide the heads.
        """
        check_groups("num_key_heads", self.num_key_heads, self.sizes(context))
        return self.build_from(GatedDeltaNet, context, log_levels=self.levels(context))
