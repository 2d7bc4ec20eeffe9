"""Recurrent networks: GRU and LSTM cells as pure functions, and mixers that run them.

Both are nonlinear in their state, so tokens have to be processed sequentially. A cell is called as
`cell(params, state, x) -> (state, output)`. The contribution of the inputs to the gates does not
depend on the state, so it is one matrix product for a whole sequence.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from research.attention.mixers.mixer import Mixer, places_of
from research.attention.mixers.mixer_options import Context, InputPositionOptions, build_from
from research.attention.parameters import Constant, Parameter, matrix_axes, matrix_init, vector_axes
from research.attention.parts.masks import Mask

State = dict[str, Array]


def gru_parameters(inputs: int, hidden: int, init_stddev: float = 0.0) -> dict[str, Parameter]:
    """Returns the parameters of a GRU; gates are ordered reset, update, candidate.

    Args:
      inputs: M, the width of x.
      hidden: N, the width of the state.
      init_stddev: initial standard deviation of the input matrix; 0 is 1 / sqrt(M).

    Returns:
      "input" (M, 3, N), "recurrent" (N, 3, N), "bias" (3, N) and "candidate_bias" (N,).
    """
    found = _gates(inputs, hidden, init_stddev, (0.0, 0.0, 0.0))
    return found | {"candidate_bias": Parameter((hidden,), Constant(0.0), vector_axes("hidden"))}


def lstm_parameters(inputs: int, hidden: int, init_stddev: float = 0.0) -> dict[str, Parameter]:
    """Returns the parameters of an LSTM; gates are ordered input, forget, candidate, output.

    The forget gate's bias starts at 1 (Jozefowicz et al. 2015).

    Args:
      inputs: M, the width of x.
      hidden: N, the width of the state.
      init_stddev: initial standard deviation of the input matrix; 0 is 1 / sqrt(M).

    Returns:
      "input" (M, 4, N), "recurrent" (N, 4, N) and "bias" (4, N).
    """
    return _gates(inputs, hidden, init_stddev, (0.0, 1.0, 0.0, 0.0))


def _gates(inputs, hidden, init_stddev, bias):
    gates = len(bias)
    return {
        "input": Parameter(
            (inputs, gates, hidden),
            matrix_init(init_stddev, inputs),
            matrix_axes("width", "", "hidden", roles="iso"),
        ),
        "recurrent": Parameter(
            (hidden, gates, hidden),
            matrix_init(0.0, hidden),
            matrix_axes("", "", "hidden", roles="iso"),
        ),
        "bias": Parameter((gates, hidden), Constant(bias), vector_axes("", "hidden")),
    }


def gru_state(batch: int, hidden: int, dtype: Any) -> State:
    """Returns the initial state of a GRU: zeros "h" (B, N), float32 or wider."""
    return {"h": jnp.zeros((batch, hidden), jnp.promote_types(dtype, jnp.float32))}


def lstm_state(batch: int, hidden: int, dtype: Any) -> State:
    """Returns the initial state of an LSTM: zeros "h" and "c" (B, N), float32 or wider."""
    zeros = jnp.zeros((batch, hidden), jnp.promote_types(dtype, jnp.float32))
    return {"h": zeros, "c": zeros}


def project(params: dict[str, Array], x: Float[Array, "*b M"]) -> Float[Array, "*b G N"]:
    """Returns the contribution of the inputs to the G gates, x W + b, in the dtype of x."""
    kernel = params["input"].astype(x.dtype)
    return jnp.einsum("...m,mgn->...gn", x, kernel) + params["bias"].astype(x.dtype)


def _recurrent_gates(params, h, dtype):
    """Returns the contribution of the state to the gates, (B, gates, N).

    The operands are cast to `dtype`, and products are accumulated in the dtype of h.
    """
    kernel = params["recurrent"].astype(dtype)
    return jnp.einsum("bn,ngk->bgk", h.astype(dtype), kernel, preferred_element_type=h.dtype)


def _gru_step(params, state, gates):
    """Returns the next state and h of a GRU (Cho et al. 2014, section 2.3).

    r = sigma(x W_r + h U_r + b_r), z = sigma(x W_z + h U_z + b_z),
    n = tanh(x W_n + b_n + r * (h U_n + c_n)), h' = (1 - z) * n + z * h.

    As in the paper, z weights the old state. As in `torch.nn.GRU`, the reset gate is applied after
    the recurrent product, not before it.
    """
    h, dtype = state["h"], gates.dtype
    recalled, gates = _recurrent_gates(params, h, dtype), gates.astype(h.dtype)
    reset, update = jnp.moveaxis(jax.nn.sigmoid(gates[:, :2] + recalled[:, :2]), 1, 0)
    inner = recalled[:, 2] + params["candidate_bias"].astype(h.dtype)
    candidate = jnp.tanh(gates[:, 2] + reset * inner)
    h = (1 - update) * candidate + update * h
    return {"h": h}, h.astype(dtype)


def _lstm_step(params, state, gates):
    """Returns the next state and h of an LSTM (Gers et al. 2000, section 3; `torch.nn.LSTM`).

    i, f, o = sigma(x W + h U + b), g = tanh(x W_g + h U_g + b_g),
    c' = f * c + i * g, h' = o * tanh(c').
    """
    c, dtype = state["c"], gates.dtype
    gates = gates.astype(c.dtype) + _recurrent_gates(params, state["h"], dtype)
    written, kept, candidate, shown = jnp.moveaxis(gates, 1, 0)
    c = jax.nn.sigmoid(kept) * c + jax.nn.sigmoid(written) * jnp.tanh(candidate)
    h = jax.nn.sigmoid(shown) * jnp.tanh(c)
    return {"h": h, "c": c}, h.astype(dtype)


class Cell(NamedTuple):
    """The functions of a recurrent network.

    Attributes:
      parameters: `parameters(inputs, hidden, init_stddev)` returns the parameters by name.
      init_state: `init_state(batch, hidden, dtype)` returns the state before the first token.
      step: `step(params, state, gates)` returns the new state and the output; `gates` are the
        result of `project`.
    """

    parameters: Callable[[int, int, float], dict[str, Parameter]]
    init_state: Callable[[int, int, Any], State]
    step: Callable[..., tuple[State, Array]]


CELLS = {
    "gru": Cell(gru_parameters, gru_state, _gru_step),
    "lstm": Cell(lstm_parameters, lstm_state, _lstm_step),
}


def run(
    cell: str,
    params: dict[str, Array],
    state: State,
    x: Float[Array, "B T M"],
    *,
    lengths: Int[Array, " B"] | None = None,
    places: Int[Array, "B T"] | None = None,
    reverse: bool = False,
) -> tuple[State, Float[Array, "B T N"]]:
    """Runs a recurrent network over a sequence.

    Args:
      cell: a name in `CELLS`.
      params: the arrays of the cell.
      state: the state before the first token processed.
      x: the tokens.
      lengths: number of tokens per row; padding after them does not change the state. None means
        no padding.
      places: places of the tokens in their segments; before one at place 0, the state becomes
        zeros, from which every network starts. None means a single segment. Not with `reverse`.
      reverse: processes each row from its last token to its first.

    Returns:
      The state after the last token processed, and h after every token, at the token's position,
      in the dtype of x; zeros at padding.
    """
    options = {"lengths": lengths, "places": places, "reverse": reverse}
    return run_gates(cell, params, state, project(params, x), **options)


def run_gates(
    cell: str,
    params: dict[str, Array],
    state: State,
    gates: Float[Array, "B T G N"],
    *,
    lengths: Int[Array, " B"] | None = None,
    places: Int[Array, "B T"] | None = None,
    reverse: bool = False,
) -> tuple[State, Float[Array, "B T N"]]:
    """Runs a network as `run` does, given `project(params, x)`; returns the dtype of the gates."""
    # Cast once here instead of in every step.
    params = params | {"recurrent": params["recurrent"].astype(gates.dtype)}
    step = CELLS[cell].step
    gates, starts, there = jnp.moveaxis(gates, 1, 0), None, None
    if places is not None:
        starts = (places.T == 0)[..., None]
    if lengths is not None:
        there = (jnp.arange(len(gates))[:, None] < lengths)[..., None]

    def one(state, now):
        gates, starts, there = now
        if starts is not None:
            state = jax.tree.map(lambda s: jnp.where(starts, 0, s), state)
        new, out = step(params, state, gates)
        if there is None:
            return new, out
        new = jax.tree.map(lambda n, s: jnp.where(there, n, s), new, state)
        return new, jnp.where(there, out, 0)

    state, out = lax.scan(one, state, (gates, starts, there), reverse=reverse)
    return state, jnp.moveaxis(out, 0, 1)


@dataclasses.dataclass(frozen=True)
class Recurrent(Mixer):
    """A GRU or LSTM as wide as the model, followed by an output projection.

    There is only the recurrent form, because a recurrence that is nonlinear in its state cannot be
    parallelized.

    Attributes:
      width: M, of the sequence and of the state.
      cell: a name in `CELLS`.
      use_bias: adds a bias to the output projection; gates always have biases.
      init_stddev: initial standard deviation of the input and output projections; 0 is
        1 / sqrt(M). Recurrent matrices always start at 1 / sqrt(M), which preserves the norm of
        the state.
      out_scale: multiplies the initial output projection.
    """

    width: int
    cell: str
    use_bias: bool = False
    init_stddev: float = 0.02
    out_scale: float = 1.0

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters of the cell, "out" (M, M), and "out_bias" (M,) if any."""
        width = self.width
        outward = matrix_init(self.init_stddev, width, self.out_scale)
        found = CELLS[self.cell].parameters(width, width, self.init_stddev)
        found |= {"out": Parameter((width, width), outward, matrix_axes("hidden", "width"))}
        if self.use_bias:
            found["out_bias"] = Parameter((width,), Constant(0.0), vector_axes("width"))
        return found

    def __call__(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> Float[Array, "B T M"]:
        """Runs the network over a whole sequence; see `Mixer`."""
        places = places_of(self.cell, mask)
        return self._run(params, self.init_state(x.shape[0], x.shape[1], x.dtype), x, places)[1]

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """Returns "h", and "c" for an LSTM: (batch, M), float32 or wider, for any length."""
        return CELLS[self.cell].init_state(batch, self.width, dtype)

    def extend(
        self, params: dict[str, Array], state: PyTree, x: Float[Array, "B T M"]
    ) -> tuple[PyTree, Float[Array, "B T M"]]:
        """Mixes the next T tokens; see `Mixer`."""
        return self._run(params, state, x, None)

    def _run(self, params, state, x, places):
        state, y = run(self.cell, params, state, x, places=places)
        y = y @ params["out"].astype(x.dtype)
        return state, y + params["out_bias"].astype(x.dtype) if self.use_bias else y


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentOptions(InputPositionOptions):
    """Options of recurrent networks as mixers."""

    implementations = ("recurrent",)
    time = "T M^2, sequential"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GruOptions(RecurrentOptions):
    """h_t = (1 - z_t) tanh(x_t W + r_t (h_{t-1} U)) + z_t h_{t-1}, y_t = h_t W_o"""

    source = "Cho et al. 2014, section 2.3; reset gate as in torch.nn.GRU"
    state = "M"

    def make(self, context: Context) -> Recurrent:
        """Returns a GRU."""
        return build_from(Recurrent, context, cell="gru")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LstmOptions(RecurrentOptions):
    """c_t = f_t c_{t-1} + i_t tanh(x_t W + h_{t-1} U), h_t = o_t tanh(c_t), y_t = h_t W_o"""

    source = "Hochreiter and Schmidhuber 1997; forget gates of Gers et al. 2000, section 3"
    state = "2 M"

    def make(self, context: Context) -> Recurrent:
        """Returns an LSTM."""
        return build_from(Recurrent, context, cell="lstm")
