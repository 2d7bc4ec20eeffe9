"""DeltaProduct: several steps of the delta rule for every token."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from research.attention.mixers.linear import decay
from research.attention.mixers.linear.delta import DeltaNet, DeltaOptions
from research.attention.mixers.linear.delta_rule import FORMS
from research.attention.mixers.linear.gated import gate, gate_parameter
from research.attention.mixers.linear.linear_time import at_least_float32
from research.attention.mixers.linear.state_space import step_parameters, steps
from research.attention.mixers.mixer import AttentionTrace, places_of
from research.attention.mixers.mixer_options import Context
from research.attention.parameters import Parameter, matrix_axes, matrix_init
from research.attention.parts.masks import Mask
from research.attention.parts.part_options import size_option
from research.options import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeltaProduct(DeltaNet):
    """DeltaProduct (Siems et al. 2025, section 3).

    Like `DeltaNet`, but every token has n keys, values and betas, each with a projection of its
    own, and takes n steps of the delta rule with them before its query reads the state. So the
    state is multiplied by a product of n generalized Householder matrices. All forms are those of
    the delta rule on a sequence of n T steps.

    Attributes:
      householder_steps: n.
      negative_eigenvalues: beta is 2 sigmoid(x W), in (0, 2), so that a step may reflect the state;
        else sigmoid(x W).
      gated: the state decays by exp(-A softplus(x W + b)) before a token's first step, and the
        outputs are multiplied by swish(x W'), as in `GatedDeltaNet` (Gated DeltaProduct).
    """

    householder_steps: int = 2
    negative_eigenvalues: bool = True
    gated: bool = False

    @property
    def name(self) -> str:
        """The mixer's name in the registry."""
        return "delta_product"

    @property
    def chunk(self) -> int:
        """The number of tokens per chunk in the chunkwise form."""
        return self.block_size or max(1, decay.CHUNK // self.householder_steps)

    @property
    def head_shapes(self) -> dict[str, tuple[int, int]]:
        """{name: (heads, width)}; the n keys and values of a head are next to each other."""
        found, count = super().head_shapes, self.num_heads * self.householder_steps
        return found | {name: (count, found[name][1]) for name in ("key", "value")}

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters of `DeltaNet`, H n heads of "key", "value" and "beta" (M, H n).

        If gated, also "gate" (M, H, Dv), "step" (M, H), "step_bias" (H,) and "log_rate" (H,), as
        `GatedDeltaNet`.
        """
        matrix = matrix_init(self.init_stddev, self.width)
        shape = (self.width, self.num_heads * self.householder_steps)
        beta = Parameter(shape, matrix, matrix_axes("width", "heads"))
        found = super().parameters() | {"beta": beta}
        if self.gated:
            found |= {"gate": gate_parameter(self), **step_parameters(self)}
        return found

    def prepare(
        self,
        params: dict[str, Array],
        state: PyTree,
        x: Float[Array, "B T M"],
        places: Int[Array, "B T"] | None,
    ) -> tuple[tuple[Any, ...], Float[Array, "B T Hn Dv"], dict[str, Any]]:
        """Returns (queries, keys, beta, decays), values and new state; see `LinearTime`."""
        (q, k, beta, log_decay), v, inputs = super().prepare(params, state, x, places)
        return (q, k, 2 * beta if self.negative_eigenvalues else beta, log_decay), v, inputs

    def recur(
        self,
        params: dict[str, Array],
        queries_keys: Any,
        v: Float[Array, "B T Hn Dv"],
        memory: PyTree,
        form: str,
    ) -> tuple[PyTree, Float[Array, "B T H Dv"]]:
        """Runs n steps of the delta rule per token; see `LinearTime`.

        The state decays at a token's first step, and its outputs are those of the last.
        """
        n = self.householder_steps
        q, k, beta, log_decay = queries_keys
        k, v, beta = (self._in_steps(a) for a in (k, v, beta))
        q = _padded(q, n - 1, 0)
        log_decay = None if log_decay is None else _padded(log_decay, 0, n - 1)
        memory, y = FORMS[form](q, k, v, beta, log_decay, memory, **self.form_options(form))
        return memory, y.reshape(y.shape[0], -1, n, *y.shape[2:])[:, :, -1]

    def _in_steps(self, a):
        """Reshapes (B, T, H n, ...) to (B, T n, H, ...)."""
        batch, length, _, *rest = a.shape
        a = a.reshape(batch, length, self.num_heads, self.householder_steps, *rest)
        return jnp.swapaxes(a, 2, 3).reshape(batch, -1, self.num_heads, *rest)

    def form_options(self, form: str) -> dict[str, int]:
        """Returns the keyword arguments of a form, in which chunks are counted in steps."""
        found = super().form_options(form)
        return {name: tokens * self.householder_steps for name, tokens in found.items()}

    def log_decay(self, params: dict[str, Array], x: Float[Array, "B T M"]) -> decay.Decay:
        """Returns -A softplus(x W + b) if gated, else None."""
        return steps(params, x)[1] if self.gated else None

    def gated_output(
        self, params: dict[str, Array], x: Float[Array, "B T M"], y: Float[Array, "B T H Dv"]
    ) -> Float[Array, "B T H Dv"]:
        """Returns y swish(x W') if gated, else y."""
        return y * gate(params, x) if self.gated else y

    def attention_trace(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> AttentionTrace:
        """Returns the implied weights of each head and step, (B, H n, T, T), and the values.

        As in `LinearTime` the recurrence runs on one-hot values, which mark step and position.
        """
        (batch, length), places = x.shape[:2], places_of(self.name, mask)
        heads, n = self.num_heads, self.householder_steps
        state = self.init_state(batch, length, x.dtype)
        queries_keys, v, _ = self._prepared(params, state, x, places)
        marks = jnp.eye(n * length, dtype=at_least_float32(x.dtype))
        # (n, T, n T) to (B, T, H n, n T).
        marks = jnp.tile(jnp.swapaxes(marks.reshape(n, length, -1), 0, 1), (1, heads, 1))
        marks = jnp.broadcast_to(marks, (batch, *marks.shape))
        memory = self.init_memory(batch, n * length, x.dtype)
        form = "chunkwise" if self.implementation == "ring" else self.implementation
        weights = self.recur(params, queries_keys, marks, memory, form)[1]
        weights = weights.reshape(batch, length, heads * n, length)
        return AttentionTrace(jnp.swapaxes(weights, 1, 2), v)

    def merge(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        head_outputs: Float[Array, "B T Hn Dv"],
    ) -> Float[Array, "B T M"]:
        """Adds up the steps of each head if they are apart, and goes on as `DeltaNet`."""
        batch, length, count, width = head_outputs.shape
        if count != self.num_heads:
            apart = head_outputs.reshape(batch, length, self.num_heads, -1, width)
            head_outputs = apart.sum(axis=3)
        return super().merge(params, x, head_outputs)


def _padded(a, before, after):
    """Returns (B, T n, ...): the steps of each token, zero but for one of them."""
    a = jnp.pad(a[:, :, None], ((0, 0), (0, 0), (before, after), *[(0, 0)] * (a.ndim - 2)))
    return a.reshape(a.shape[0], -1, *a.shape[3:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeltaProductOptions(DeltaOptions):
    """n delta steps a token: S_{t,j} = S_{t,j-1} (I - b_{t,j} k_{t,j} k_{t,j}^T) +
    b_{t,j} v_{t,j} k_{t,j}^T, y_t = S_{t,n} q_t / sqrt(D)"""

    source = "Siems et al. 2025 (DeltaProduct), section 3"
    time = (
        "chunkwise n T (D Dv + C (D + Dv) + C^2), chunk C of steps; recurrent n T D Dv; "
        "parallel (n T)^3"
    )

    householder_steps: int = size_option(2, "n, delta steps for every token", least=1, most=64)
    negative_eigenvalues: bool = option(
        True, "beta of a delta step in (0, 2), so that it may reflect; else in (0, 1)"
    )
    gated: bool = option(False, "state decays and outputs are gated, as in gated_delta")

    def make(self, context: Context) -> DeltaProduct:
        """Returns the mixer."""
        return self.build_from(DeltaProduct, context)
