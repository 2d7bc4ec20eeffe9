"""The recurrent encoder and decoder as pure functions of parameters.

`encoder_parameters` and `decoder_parameters` declare the parameters, with layers numbered from the
bottom.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.attention.mixers.rnn import CELLS, project, run, run_gates
from research.attention.parameters import Constant, Parameter, matrix_axes, matrix_init, vector_axes
from research.models.recurrent.attention import DecoderAttention

Drop = Callable[[jax.Array], jax.Array]
DIRECTIONS = ("forward", "backward")


class Sizes(NamedTuple):
    """Sizes and structure of the networks.

    Attributes:
      cell: a name in `CELLS`.
      width: N, width of the decoder's states, and of the encoder's with all directions together.
      inputs: E, width of the embeddings.
      num_layers: number of layers of the encoder, and of the decoder.
      init_stddev: initial standard deviation of non-recurrent matrices; 0: 1 / sqrt(fan in).
      decoder_attention: attention to the encoder's states; None for no attention.
      input_feeding: whether the previous step's output h~ is an input of the step.
      every_step: whether the fixed vector is an input of every step and of the output.
      dtype: dtype of activations; states are float32.
      directions: directions of the encoder; each has an equal share of the width.
    """

    cell: str
    width: int
    inputs: int
    num_layers: int
    init_stddev: float
    decoder_attention: DecoderAttention | None
    input_feeding: bool
    every_step: bool
    dtype: str
    directions: tuple[str, ...] = DIRECTIONS

    @property
    def direction_width(self) -> int:
        """The width of the encoder's states in one direction."""
        return self.width // len(self.directions)


def encoder_parameters(s: Sizes) -> dict[str, Any]:
    """Declares the encoder's parameters: {"0": {"forward": a cell's, "backward": ...}, ...}."""
    make = CELLS[s.cell].parameters
    return {
        str(i): {
            d: make(s.width if i else s.inputs, s.direction_width, s.init_stddev)
            for d in s.directions
        }
        for i in range(s.num_layers)
    }


def decoder_parameters(s: Sizes) -> dict[str, Any]:
    """Declares the decoder's parameters.

    Returns {"0": a cell's, ..., "bridge": {...}, "attention": {...}, "combine": ...}, the last two
    only where they are used.
    """
    cell, n = CELLS[s.cell], s.width
    extra = n if s.input_feeding or s.every_step else 0
    found: dict[str, Any] = {
        str(i): cell.parameters(n if i else s.inputs + extra, n, s.init_stddev)
        for i in range(s.num_layers)
    }
    matrix = Parameter(
        (s.num_layers, n, n),
        matrix_init(s.init_stddev, n),
        matrix_axes("", "width", "hidden", roles="sio"),
    )
    bias = Parameter((s.num_layers, n), Constant(0.0), vector_axes("", "hidden"))
    parts = cell.init_state(1, 1, "float32")
    found["bridge"] = {p: matrix for p in parts} | {f"{p}_bias": bias for p in parts}
    if s.decoder_attention is not None:
        found["attention"] = s.decoder_attention.parameters()
    if s.decoder_attention is not None or s.every_step:
        init = matrix_init(s.init_stddev, 2 * n)
        found["combine"] = Parameter((2 * n, n), init, matrix_axes("", "width"))
    return found


def encode(
    s: Sizes,
    params: dict[str, Any],
    x: Float[Array, "B S E"],
    lengths: Int[Array, " B"],
    drop: Drop,
) -> tuple[Float[Array, "B S N"], tuple[dict[str, Float[Array, "B N"]], ...]]:
    """Runs the encoder in each of its directions.

    Returns:
      The states of the top layer, directions concatenated, zeros at padding; and for each layer its
      final states: the forward state at the last token concatenated with the backward state at the
      first.
    """
    cell, last = CELLS[s.cell], []
    for i in range(s.num_layers):
        x = drop(x) if i else x
        zeros = cell.init_state(x.shape[0], s.direction_width, x.dtype)
        found = [
            run(s.cell, params[str(i)][d], zeros, x, lengths=lengths, reverse=d == "backward")
            for d in s.directions
        ]
        states, outs = zip(*found, strict=True)
        x = jnp.concatenate(outs, axis=-1)
        last.append(jax.tree.map(lambda *a: jnp.concatenate(a, axis=-1), *states))
    return x, tuple(last)


def make_memory(
    s: Sizes,
    params: dict[str, Any],
    states: Float[Array, "B S N"],
    last: tuple[dict[str, Float[Array, "B N"]], ...],
    lengths: Int[Array, " B"],
) -> dict[str, Any]:
    """Returns the memory: everything the decoder needs from the source.

    "initial": the decoder's initial states, tanh(W v + b) of the encoder's final states v, layer by
    layer (Bahdanau et al. 2015, appendix A.2.2, where v is only the backward half). "valid" (B, S):
    False at source padding. "source": the reader's keys and values, only with attention. "fixed": v
    of the top layer, only if it is an input of every step.

    `params` are the decoder's parameters.
    """
    bridge = params["bridge"]
    initial = tuple(
        {
            name: jnp.tanh(_dot(v, bridge[name][i], s.dtype) + bridge[f"{name}_bias"][i])
            for name, v in state.items()
        }
        for i, state in enumerate(last)
    )
    valid = jnp.arange(states.shape[1]) < lengths[:, None]
    memory: dict[str, Any] = {"initial": initial, "valid": valid}
    if s.every_step:
        memory["fixed"] = last[-1]["h"].astype(s.dtype)
    if s.decoder_attention is not None:
        memory["source"] = s.decoder_attention.project_memory(params["attention"], states)
    return memory


def init_state(s: Sizes, memory: dict[str, Any]) -> dict[str, Any]:
    """Returns the decoding state before the first token.

    "cells": states of each layer; "position": number of tokens so far; with attention "alignment";
    with input feeding "fed" (B, N), zeros at first as in Luong et al. 2015.
    """
    state: dict[str, Any] = {"cells": memory["initial"], "position": jnp.int32(0)}
    if s.decoder_attention is not None:
        state["alignment"] = s.decoder_attention.init_state(memory["source"]["values"])
    if s.input_feeding:
        state["fed"] = jnp.zeros_like(memory["initial"][0]["h"], s.dtype)
    return state


def input_gates(
    s: Sizes, params: dict[str, Any], x: Float[Array, "B T E"], memory: dict[str, Any]
) -> Float[Array, "B T G N"]:
    """Returns the contribution of inputs and fixed vector to the bottom layer's gates.

    It does not depend on the states, so it is computed for all tokens in one product.
    """
    layer = params["0"]
    if s.every_step:
        fixed = jnp.broadcast_to(memory["fixed"][:, None], (*x.shape[:2], s.width))
        x = jnp.concatenate([x, fixed], axis=-1)
    return project({"input": layer["input"][: x.shape[-1]], "bias": layer["bias"]}, x)


def advance(
    s: Sizes,
    params: dict[str, Any],
    memory: dict[str, Any],
    state: dict[str, Any],
    gates: Float[Array, "B G N"],
    dropout_masks: tuple[Float[Array, "B N"], ...] = (),
) -> tuple[dict[str, Any], tuple[Float[Array, "B N"], Float[Array, "B H S"] | None]]:
    """Runs the decoder for one token.

    Args:
      s: the sizes.
      params: the decoder's parameters.
      memory: from `make_memory`.
      state: the state before this token, initially from `init_state`.
      gates: the token's gates, from `input_gates`.
      dropout_masks: dropout factors between layers, one fewer than there are layers; () for no
        dropout.

    Returns:
      The new state; h~ = tanh(W [c; h]) (Luong et al. 2015, equation 5), with context vector c and
      top-layer state h; and the attention weights, None without attention.
    """
    new, cells = {**state, "position": state["position"] + 1}, []
    if s.input_feeding:
        kernel = params["0"]["input"][s.inputs :].astype(gates.dtype)
        gates = gates + jnp.einsum("bn,ngk->bgk", state["fed"], kernel)
    h = jnp.zeros(())
    for i, old in enumerate(state["cells"]):
        if i:
            gates = project(params[str(i)], h * dropout_masks[i - 1] if dropout_masks else h)
        cell, h = CELLS[s.cell].step(params[str(i)], old, gates)
        cells.append(cell)
    new["cells"] = tuple(cells)
    if s.decoder_attention is None:
        return new, (_combine(s, params, memory, h, None), None)
    learned, source = params["attention"], memory["source"]
    weights, new["alignment"] = s.decoder_attention.align(
        learned, h, source, memory["valid"], state["position"], state["alignment"]
    )
    h = _combine(s, params, memory, h, s.decoder_attention.context_vector(learned, weights, source))
    if s.input_feeding:
        new["fed"] = h
    return new, (h, weights)


def decode(
    s: Sizes,
    params: dict[str, Any],
    memory: dict[str, Any],
    x: Float[Array, "B T E"],
    drop: Drop,
) -> tuple[Float[Array, "B T N"], Float[Array, "B T H S"] | None]:
    """Returns h~ and the weights of every token, equal to calling `advance` token by token."""
    matrices = _cast(s, params)
    gates = input_gates(s, matrices, x, memory)
    # Draw all dropout factors before the scan, which then needs no random keys.
    ones = jnp.ones((*x.shape[:2], s.width), s.dtype)
    dropout_masks = tuple(drop(ones) for _ in range(s.num_layers - 1))
    if not s.input_feeding:
        return _decode_by_layer(s, matrices, memory, gates, dropout_masks)

    def one(state: dict[str, Any], now: tuple) -> tuple:
        return advance(s, matrices, memory, state, *now)

    over_time = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), (gates, dropout_masks))
    _, found = jax.lax.scan(one, init_state(s, memory), over_time)
    h, weights = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), found)
    return h, weights


def _decode_by_layer(s, params, memory, gates, dropout_masks):
    """Runs each layer over all tokens before the next layer, as possible without input feeding.

    The products with input matrices then cover all tokens at once.
    """
    h = None
    for i, state in enumerate(memory["initial"]):
        gates = project(params[str(i)], h * dropout_masks[i - 1]) if i else gates
        _, h = run_gates(s.cell, params[str(i)], state, gates)
    if s.decoder_attention is None:
        return _combine(s, params, memory, h, None), None
    weights, contexts = s.decoder_attention.align_all(
        params["attention"], h, memory["source"], memory["valid"]
    )
    return _combine(s, params, memory, h, contexts), weights


def _combine(s, params, memory, h, context):
    if s.every_step:
        context = memory["fixed"]
        context = jnp.broadcast_to(context[:, None] if h.ndim == 3 else context, h.shape)
    if context is None:
        return h
    return jnp.tanh(jnp.concatenate([context, h], axis=-1) @ params["combine"].astype(h.dtype))


def _dot(x, matrix, dtype):
    return jnp.matmul(x.astype(dtype), matrix.astype(dtype), preferred_element_type=jnp.float32)


def _cast(s, params):
    """Casts matrices to the dtype of the products, once rather than at every token."""

    def cast(p, described):
        return p.astype(s.dtype) if described.axes.matrix else p

    return jax.tree.map(cast, params, decoder_parameters(s))
