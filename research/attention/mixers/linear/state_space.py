"""Selective state spaces with one decay per head and token (Mamba-2, and what Mamba-3 adds)."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from research.attention.mixers.linear import decay, log_linear, short_convolution
from research.attention.mixers.linear.gated import gate, gate_parameter
from research.attention.mixers.linear.level_weights import (
    LogLinearOptions,
    level_parameter,
    level_weights,
)
from research.attention.mixers.linear.linear_time import (
    NORM_EPSILON,
    ConvolvedOptions,
    LinearTime,
    NormedOutputOptions,
    at_least_float32,
    check_groups,
)
from research.attention.mixers.mixer_options import Context
from research.attention.mixers.projections import NORM_EPSILON as QK_EPSILON
from research.attention.mixers.projections import merge_heads, rms_norm
from research.attention.parameters import Constant, Parameter, matrix_axes, matrix_init, vector_axes
from research.attention.parts.part_options import size_option
from research.options import OptionError, option

# Range of initial step sizes, log-uniform (Gu and Dao 2023, Mamba, section 3.6).
SHORTEST, LONGEST = 1e-3, 0.1
# Range of initial rates A, uniform.
SLOWEST, FASTEST = 1.0, 16.0


def step_bias_init(key: Array, shape: tuple[int, ...], dtype: Any = "float32") -> Array:
    """Draws b with softplus(b) log-uniform in [0.001, 0.1] (Gu and Dao 2023, section 3.6)."""
    low, high = math.log(SHORTEST), math.log(LONGEST)
    step = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
    # The inverse of softplus, log(exp(y) - 1), in a form that is accurate for small y.
    return step + jnp.log(-jnp.expm1(-step))


def log_rate_init(key: Array, shape: tuple[int, ...], dtype: Any = "float32") -> Array:
    """Draws log A with A uniform in [1, 16], as in the code of Dao and Gu 2024."""
    return jnp.log(jax.random.uniform(key, shape, dtype, SLOWEST, FASTEST))


def step_parameters(mixer: LinearTime) -> dict[str, Parameter]:
    """Returns "step" (M, H), W, and "step_bias" (H,), b, of the steps; "log_rate" (H,), log A."""
    heads, matrix = (mixer.num_heads,), matrix_init(mixer.init_stddev, mixer.width)
    return {
        "step": Parameter((mixer.width, *heads), matrix, matrix_axes("width", "heads")),
        "step_bias": Parameter(heads, step_bias_init, vector_axes("heads")),
        "log_rate": Parameter(heads, log_rate_init, vector_axes("heads")),
    }


def steps(
    params: dict[str, Array], x: Float[Array, "B T M"]
) -> tuple[Float[Array, "B T H"], Float[Array, "B T H"]]:
    """Returns the steps dt = softplus(x W + b), and the logarithms of the decays, -dt A."""
    dtype = at_least_float32(x.dtype)
    step = (x @ params["step"].astype(x.dtype)).astype(dtype)
    step = jax.nn.softplus(step + params["step_bias"].astype(dtype))
    return step, -step * jnp.exp(params["log_rate"].astype(dtype))


def turned(x: Float[Array, "B T H N"], angle: Float[Array, "B T H N/2"]) -> Float[Array, "B T H N"]:
    """Rotates the pairs of channels (n, n + N / 2) by angles in radians."""
    (a, b), cos, sin = jnp.split(x, 2, axis=-1), jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateSpace(LinearTime):
    """Selective state space with scalar decays (Dao and Gu 2024, Mamba-2, sections 6 and 7).

    With steps dt = softplus(x W + b): S_t = exp(-dt_t A) S_{t-1} + dt_t B_t x_t^T, y_t = S_t^T C_t
    + skip x_t, then RMS norm over all heads of y swish(z). B and C ("key", "query") are shared by
    the heads, as in the paper (multi-value attention, section 7.2); A, dt and skip are each head's
    own. H D, the paper's inner width, is the model's width by default (in the paper twice that).

    Three options are Mamba-3's (Lahoti et al. 2026, section 3), without its several inputs and
    outputs (MIMO) and with A fixed as in Mamba-2. In the authors' code A depends on the token,
    rates of angles are pi tanh(x W), half of the state is rotated, and the output norm is off.

    Attributes:
      state_width: N, the width of B and C.
      log_levels: L, levels of log-linear attention, each with an S and a weight of its own (Guo et
        al. 2025, section 3.3); see `log_linear`. 0: one S for all of the past.
      trapezoidal: adds to S_t what the token before put in: S_t = a_t S_{t-1} + (1 - l_t) dt_t a_t
        B_{t-1} x_{t-1}^T + l_t dt_t B_t x_t^T with a_t = exp(-dt_t A) and l_t = sigmoid(x w), the
        exponential-trapezoidal rule (section 3).
      rotating: rotates S by angles dt_t x W in N / 2 planes, which is a state of complex numbers
        (section 3); B and C are rotated by the sums of the angles instead.
      biased_state: B and C are RMS-normalized with gains, and each head adds biases that start at 1
        (section 3).
      convolution_bias: adds a bias to the short convolution, before SiLU, as in the authors' code.
      state_groups: G, groups of heads; each has B and C and a norm of its own (section 8.2).
      output_norm_gain: whether the norm has learned gains. The output projection can absorb them.
      output_norm_epsilon: added to the mean square in the norm.
    """

    state_width: int
    log_levels: int = 0
    trapezoidal: bool = False
    rotating: bool = False
    biased_state: bool = False
    convolution_bias: bool = False
    state_groups: int = 1
    output_norm_gain: bool = False
    output_norm_epsilon: float = NORM_EPSILON

    @property
    def name(self) -> str:
        """The mixer's name in the registry."""
        return "state_space"

    @property
    def head_shapes(self) -> dict[str, tuple[int, int]]:
        """{name: (heads, width)}; C ("query") and B ("key") are G heads of width N."""
        shared = (self.state_groups, self.state_width)
        return {"query": shared, "key": shared, "value": (self.num_heads, self.head_width)}

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters by name.

        Projections "query" and "key" (M, G, N), "value" (M, H, D), "out" (H, D, M), and taps with
        their biases if any; "gate" (M, H, D); "step" (M, H) and "step_bias" (H,) for dt;
        "log_rate" (H,), which is log A; "skip" (H,); and "norm_scale" (H, D) with a gain. With a
        trapezoidal rule "present" (M, H), which is w; with rotations "angle" (M, N / 2); with
        biases of the state "query_scale", "key_scale" (N,), "state_query_bias", "state_key_bias"
        (H, N); with levels "level" (M, H, L).
        """
        skip = Parameter((self.num_heads,), Constant(1.0), vector_axes("heads"))
        channels = self._channels() if self.convolution_bias else {}
        shape, axes = (self.num_heads, self.head_width), vector_axes("heads", "head_width")
        gain = {"norm_scale": Parameter(shape, Constant(1.0), axes)}
        return {
            **self.projection_parameters(),
            **short_convolution.biases(channels),
            **(gain if self.output_norm_gain else {}),
            "gate": gate_parameter(self),
            **step_parameters(self),
            **({"level": level_parameter(self, self.log_levels)} if self.log_levels else {}),
            **self._parameters_of_mamba3(),
            "skip": skip,
        }

    def _parameters_of_mamba3(self) -> dict[str, Parameter]:
        init, found = matrix_init(self.init_stddev, self.width), {}
        if self.trapezoidal:
            shape = (self.width, self.num_heads)
            found["present"] = Parameter(shape, init, matrix_axes("width", "heads"))
        if self.rotating:
            shape = (self.width, self.state_width // 2)
            found["angle"] = Parameter(shape, init, matrix_axes("width", ""))
        if self.biased_state:
            heads, one = (self.num_heads, self.state_width), Constant(1.0)
            for name in ("query", "key"):
                scale = Parameter((self.state_width,), one, vector_axes(""))
                bias = Parameter(heads, one, vector_axes("heads", ""))
                found |= {f"{name}_scale": scale, f"state_{name}_bias": bias}
        return found

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """Returns the state of `LinearTime`, with rotations "angle" (batch, H, N / 2).

        With levels it also has "step" (), the place of the next token.
        """
        state = super().init_state(batch, length, dtype)
        if self.log_levels:
            state["step"] = jnp.zeros((), jnp.int32)
        if self.rotating:
            shape = (batch, self.num_heads, self.state_width // 2)
            state["angle"] = jnp.zeros(shape, at_least_float32(dtype))
        return state

    def init_memory(self, batch: int, value_width: int, dtype: Any) -> PyTree:
        """Returns S, of zeros, (B, H, N, D), or (B, H, L, N, D) with levels.

        With a trapezoidal rule it is {"sum": S, "key": B, "value": x}, B and x of the token before.
        """
        memory = super().init_memory(batch, value_width, dtype)
        memory = log_linear.with_levels(memory, self.log_levels)
        if not self.trapezoidal:
            return memory
        key, value = jnp.zeros(memory.shape[:-1], memory.dtype), jnp.zeros_like(memory[:, :, 0])
        return {"sum": memory, "key": key, "value": value}

    def prepare(
        self,
        params: dict[str, Array],
        state: PyTree,
        x: Float[Array, "B T M"],
        places: Int[Array, "B T"] | None,
    ) -> tuple[tuple[Any, ...], Float[Array, "B T H D"], dict[str, Any]]:
        """Returns (C, B, steps, l, levels, decays), values and new state; see `LinearTime`."""
        dtype = at_least_float32(x.dtype)
        heads, inputs = self.project_qkv(params, state["inputs"], x, places)
        q, k, v = (heads[name].astype(dtype) for name in ("query", "key", "value"))
        if self.biased_state:
            q, k = (
                rms_norm(y, params[f"{n}_scale"], QK_EPSILON) for n, y in (("query", q), ("key", k))
            )
        # Without groups the heads share B and C, until something of their own is added.
        if self.state_groups > 1 or self.biased_state or self.rotating:
            each = self.num_heads // self.state_groups
            q, k = jnp.repeat(q, each, axis=2), jnp.repeat(k, each, axis=2)
        step, decays = steps(params, x)
        new = {"inputs": inputs}
        if self.biased_state:
            q = q + params["state_query_bias"].astype(dtype)
            k = k + params["state_key_bias"].astype(dtype)
        if self.rotating:
            rates = (x @ params["angle"].astype(x.dtype)).astype(dtype)
            angle = jnp.cumsum(step[..., None] * rates[:, :, None], axis=1)
            angle = angle + state["angle"][:, None]
            q, k = turned(q, angle), turned(k, angle)
            # A sum of many tokens would round its angle: whole turns take up the digits.
            new["angle"] = angle[:, -1] % (2 * math.pi)
        share = None
        if self.trapezoidal:
            share = jax.nn.sigmoid((x @ params["present"].astype(x.dtype)).astype(dtype))
        levels = None
        if self.log_levels:
            levels = log_linear.levels_of(level_weights(params, x), state["step"], places)
            new["step"] = state["step"] + x.shape[1]
        return (q, k, step, share, levels, decays), v, new

    def recur(
        self,
        params: dict[str, Array],
        queries_keys: Any,
        v: Float[Array, "B T H Dv"],
        memory: PyTree,
        form: str,
    ) -> tuple[PyTree, Float[Array, "B T H Dv"]]:
        """Runs the recurrence and adds the skip connection; see `LinearTime`."""
        q, k, step, share, levels, decays = queries_keys
        run = functools.partial(decay.FORMS[form], **self.form_options(form))
        if levels is not None:
            run = functools.partial(log_linear.FORMS[form], levels=levels, **run.keywords)
        if share is None:
            memory, y = run(q, k, v * step[..., None], decays, memory)
        else:
            memory, y = _trapezoidal(run, q, k, v, step, share, decays, memory)
        return memory, y + params["skip"].astype(y.dtype)[:, None] * v

    def merge(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        head_outputs: Float[Array, "B T H D"],
    ) -> Float[Array, "B T M"]:
        """Gates the heads, applies RMS norm over those of each group, and projects; see `Mixer`."""
        y = head_outputs * gate(params, x).astype(head_outputs.dtype)
        grouped = y.reshape(*y.shape[:2], self.state_groups, -1, y.shape[-1])
        squares = jnp.square(grouped).mean((-2, -1), keepdims=True)
        y = (grouped * jax.lax.rsqrt(squares + self.output_norm_epsilon)).reshape(y.shape)
        if self.output_norm_gain:
            y = y * params["norm_scale"].astype(y.dtype)
        return merge_heads(params, y.astype(x.dtype))


def _trapezoidal(run, q, k, v, step, share, decays, memory):
    """Runs the recurrence in which a token is put in twice, with itself and with the next one.

    Later tokens read what a token puts in with weight l_t dt_t + (1 - l_{t+1}) dt_{t+1}, times the
    decays after it: both terms decay by a_{t+1} and by all later ones. So it is one recurrence, but
    for the token's own output, which does not have the second term yet.
    """
    earlier = (1 - share) * step
    own = jnp.broadcast_to(k, (*k.shape[:2], v.shape[2], k.shape[3]))
    before = memory["key"][..., :, None] * memory["value"][..., None, :]
    start = memory["sum"] + earlier[:, 0, :, None, None] * before
    later = jnp.concatenate([earlier[:, 1:], jnp.zeros_like(earlier[:, :1])], axis=1)
    total, y = run(q, k, v * (share * step + later)[..., None], decays, start)
    y = y - (jnp.sum(q * k, axis=-1) * later)[..., None] * v
    return {"sum": total, "key": own[:, -1], "value": v[:, -1]}, y


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateSpaceOptions(ConvolvedOptions, NormedOutputOptions, LogLinearOptions):
    """S_t = exp(-dt A) S_(t-1) + dt B_t x_t^T, y = norm((S^T C + skip x) swish(z)) W"""

    source = "Dao and Gu 2024 (Mamba-2), sections 6 and 7"
    implementations = tuple(decay.FORMS)
    time = "T C N + T N D in chunks of C"
    state = "H N D, times L of log_levels"

    feature_width: int = size_option(0, "N, width of the state; 0: head_width")
    trapezoidal: bool = option(
        False,
        "S also gets what the token before puts in: the exponential-trapezoidal rule",
        source="Lahoti et al. 2026 (Mamba-3), section 3",
    )
    rotating: bool = option(
        False,
        "rotates S by data-dependent angles, as complex numbers do",
        source="Lahoti et al. 2026 (Mamba-3), section 3",
    )
    biased_state: bool = option(
        False,
        "normalizes B and C, and adds biases of each head that start at 1",
        source="Lahoti et al. 2026 (Mamba-3), section 3",
    )
    convolution_bias: bool = option(False, "adds a bias to the short convolution")
    state_groups: int = size_option(
        1, "G, groups of heads that share B and C and are normalized together", least=1
    )

    def make(self, context: Context) -> StateSpace:
        """Returns the mixer.

        Raises:
          OptionError: there is no short convolution to add a bias to, groups do not divide the
            heads, rotations have an odd state, or levels a trapezoidal rule.
        """
        check_groups("state_groups", self.state_groups, self.sizes(context))
        if self.convolution_bias and not self.short_convolution:
            message = "there is no short convolution to add it to; set short_convolution"
            raise OptionError("convolution_bias", True, message)
        width = self.feature_width or self.sizes(context).head_width
        if self.rotating and width % 2:
            name = "feature_width" if self.feature_width else "head_width"
            raise OptionError(
                name, width, "rotating turns channels of the state in pairs; make it even"
            )
        if self.trapezoidal and self.log_levels:
            message = "levels have no trapezoidal rule; set log_levels=0"
            raise OptionError("trapezoidal", True, message)
        return self.build_from(
            StateSpace, context, state_width=width, log_levels=self.levels(context)
        )
