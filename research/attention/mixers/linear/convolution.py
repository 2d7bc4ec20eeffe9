"""Gated convolution, an attention-free baseline for associative recall."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from research.attention.mixers.mixer import AttentionTrace, Mixer, places_of
from research.attention.mixers.mixer_options import Context, InputPositionOptions, build_from
from research.attention.parameters import (
    Constant,
    Normal,
    Parameter,
    matrix_axes,
    matrix_init,
    table_axes,
    vector_axes,
)
from research.attention.parts.masks import Mask
from research.attention.parts.part_options import length_option, size_option

# Up to this many taps, adding shifted copies is faster than the FFT.
SHORT = 16

# Place of the inputs before a sequence: they are in the segment that it begins in.
FAR = 2**30

Run = tuple[Float[Array, "B P M"], Float[Array, "B T M"]]
Places = Int[Array, "B T"] | None
"""Places of the tokens in their segments; None for a single segment."""


def convolve_shifted(
    x: Float[Array, "B T M"], taps: Float[Array, "N M"], places: Places = None
) -> Float[Array, "B T M"]:
    """Computes the causal depthwise convolution y[t] = sum_n taps[n] x[t - n] by shifted copies.

    The sum is over n <= places[t] if there are places.
    """
    length, start = x.shape[1], taps.shape[0] - 1
    padded = jnp.pad(x, ((0, 0), (start, 0), (0, 0)))

    def tap(n):
        y = taps[n] * padded[:, start - n : start - n + length]
        return y if places is None else jnp.where((places >= n)[..., None], y, 0)

    return functools.reduce(jnp.add, map(tap, range(taps.shape[0])))


def convolve_fft(x: Float[Array, "B T M"], taps: Float[Array, "N M"]) -> Float[Array, "B T M"]:
    """Computes the convolution of `convolve_shifted` by FFT, in float32 or wider."""
    length = x.shape[1]
    # The FFT's convolution is circular: padding moves the wrap-around past the T outputs kept.
    size = _fast_size(length + taps.shape[0] - 1)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    spectrum = jnp.fft.rfft(x.astype(dtype), size, axis=1)
    spectrum *= jnp.fft.rfft(taps.astype(dtype), size, axis=0)
    return jnp.fft.irfft(spectrum, size, axis=1)[:, :length].astype(x.dtype)


def _fast_size(n: int) -> int:
    """Returns the smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def convolve_segments(
    x: Float[Array, "B T M"], taps: Float[Array, "N M"], places: Int[Array, "B T"]
) -> Float[Array, "B T M"]:
    """Computes the convolution of `convolve_shifted` within segments by FFT, in T log^2 T.

    Segments make it no convolution, but pairs of tokens on both sides of a boundary between blocks
    are in one segment if both are in the one that reaches over the boundary. So each level of a
    halving of the sequence is a convolution of the left halves, masked, into the right halves.
    """
    (batch, length, width), dtype = x.shape, jnp.promote_types(x.dtype, jnp.float32)
    half = min(SHORT, _fast_size(length))
    whole = max(half, _fast_size(length))
    wide = jnp.pad(x.astype(dtype), ((0, 0), (0, whole - length), (0, 0)))
    places = jnp.pad(places, ((0, 0), (0, whole - length)))
    taps = jnp.pad(taps[:whole].astype(dtype), ((0, max(0, whole - taps.shape[0])), (0, 0)))
    in_block = jnp.minimum(places, np.arange(whole) % half)
    y = convolve_shifted(wide, taps[:half], in_block)
    while half < whole:
        shape = batch, -1, 2, half
        (left, _), (ends, at) = (
            jnp.moveaxis(a.reshape(*shape, *a.shape[2:]), 2, 0) for a in (wide, places)
        )
        back = np.arange(half)
        left = jnp.where((back[::-1] <= ends[..., -1:])[..., None], left, 0)
        spectrum = jnp.fft.rfft(left, 2 * half, axis=2)
        spectrum *= jnp.fft.rfft(taps[: 2 * half], 2 * half, axis=0)
        across = jnp.fft.irfft(spectrum, 2 * half, axis=2)[:, :, half:]
        across = jnp.where((back < at)[..., None], across, 0)
        across = jnp.stack([jnp.zeros_like(across), across], 2)
        y, half = y + across.reshape(batch, whole, width), 2 * half
    return y[:, :length].astype(x.dtype)


def convolve(
    x: Float[Array, "B T M"], taps: Float[Array, "N M"], places: Places = None
) -> Float[Array, "B T M"]:
    """Computes the causal depthwise convolution with the faster method for the number of taps."""
    taps = taps[: x.shape[1]]
    if taps.shape[0] <= SHORT:
        return convolve_shifted(x, taps, places)
    return convolve_fft(x, taps) if places is None else convolve_segments(x, taps, places)


def parallel(
    x: Float[Array, "B T M"],
    taps: Float[Array, "N M"],
    past: Float[Array, "B P M"],
    places: Places = None,
) -> Run:
    """Computes the causal depthwise convolution of a sequence after P previous inputs.

    Args:
      x: the inputs.
      taps: the filters, newest input first; taps beyond P inputs back are not used.
      past: the P <= N - 1 inputs before x, oldest first; zeros before the first token.
      places: places of x in their segments, in which inputs of other segments count as zeros.

    Returns:
      The last P inputs and the outputs, in the dtype of x.
    """
    length, reach = x.shape[1], past.shape[1]
    if places is not None:
        own = np.arange(reach, 0, -1) <= places[:, :1]
        past = jnp.where(own[..., None], past, 0)
        places = jnp.pad(places, ((0, 0), (reach, 0)), constant_values=FAR)
    seen = jnp.concatenate([past.astype(x.dtype), x], axis=1)
    return seen[:, length:], convolve(seen, taps[: reach + 1], places)[:, reach:]


def chunkwise(
    x: Float[Array, "B T M"],
    taps: Float[Array, "N M"],
    past: Float[Array, "B P M"],
    places: Places = None,
    chunk: int = 0,
) -> Run:
    """Computes `parallel` block by block, in time linear in T for a given N.

    A block is `chunk` tokens; 0 means max(64, P), so that at most half of a block's inputs are
    repeated from the previous one. T need not be a multiple of it.
    """
    chunk = chunk or max(64, past.shape[1])
    count = x.shape[1] // chunk
    if not count:
        return parallel(x, taps, past, places)

    def blocks(a):
        a = a[:, : count * chunk].reshape(len(a), count, chunk, *a.shape[2:])
        return jnp.moveaxis(a, 1, 0)

    past, out = lax.scan(
        lambda past, block: parallel(block[0], taps, past, block[1]),
        past.astype(x.dtype),
        jax.tree.map(blocks, (x, places)),
    )
    out = jnp.moveaxis(out, 0, 1).reshape(x.shape[0], count * chunk, x.shape[2])
    if count * chunk == x.shape[1]:
        return past, out
    rest = jax.tree.map(lambda a: a[:, count * chunk :], (x, places))
    past, rest = parallel(rest[0], taps, past, rest[1])
    return past, jnp.concatenate([out, rest], axis=1)


def recurrent(
    x: Float[Array, "B T M"],
    taps: Float[Array, "N M"],
    past: Float[Array, "B P M"],
    places: Places = None,
) -> Run:
    """Computes `parallel` token by token."""
    taps = taps[: past.shape[1] + 1][::-1]

    def step(past, now):
        token, place = now
        if place is not None:
            past = jnp.where((place == 0)[:, None, None], 0, past)
        seen = jnp.concatenate([past, token[:, None]], axis=1)
        return seen[:, 1:], jnp.einsum("btm,tm->bm", seen, taps)

    tokens = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (x, places))
    past, out = lax.scan(step, past.astype(x.dtype), tokens)
    return past, jnp.moveaxis(out, 0, 1)


FORMS = {"parallel": parallel, "chunkwise": chunkwise, "recurrent": recurrent}


@dataclasses.dataclass(frozen=True)
class GatedConvolution(Mixer):
    """y = (x W + b) * (h conv x + c) (Arora et al. 2023, Zoology, BaseConv, section 4).

    Attributes:
      width: M.
      filter_length: the number of taps of the causal depthwise filter h.
      implementation: a name in `FORMS`; all forms compute the same function.
      block_size: chunk length of the chunkwise form; 0 chooses.
      init_stddev: initial standard deviation of the gate W; 0 is 1 / sqrt(M).
    """

    width: int
    filter_length: int
    implementation: str = "parallel"
    block_size: int = 0
    init_stddev: float = 0.02

    def parameters(self) -> dict[str, Parameter]:
        """Returns "gate" (M, M), "gate_bias" (M,), "filter" (taps, M) and "filter_bias" (M,)."""
        width, zeros = self.width, Constant(0.0)
        gate, taps = matrix_init(self.init_stddev, width), Normal(self.filter_length**-0.5)
        return {
            "gate": Parameter((width, width), gate, matrix_axes("width", "width")),
            "gate_bias": Parameter((width,), zeros, vector_axes("width")),
            "filter": Parameter(
                (self.filter_length, width), taps, table_axes("taps", "width", roles="oo")
            ),
            "filter_bias": Parameter((width,), zeros, vector_axes("width")),
        }

    def __call__(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> Float[Array, "B T M"]:
        """Computes the gated convolution of a whole sequence; see `Mixer`."""
        places = places_of("gated_convolution", mask)
        if self.implementation == "parallel":
            # Skips the zeros before the first token, which would lengthen the FFT.
            return self._gate(params, x, convolve(x, params["filter"].astype(x.dtype), places))
        state = self.init_state(x.shape[0], x.shape[1], x.dtype)
        return self._extend(params, state, x, places)[1]

    def attention_trace(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> AttentionTrace:
        """Returns the filter as weights h[t - s], with each channel a head of width 1; see `Mixer`.

        The weights do not depend on the input; only the gate does.
        """
        places, length = places_of("gated_convolution", mask), x.shape[1]
        taps = params["filter"][:length]
        back = np.subtract.outer(np.arange(length), np.arange(length))
        reached = (back >= 0) & (back < len(taps))
        weights = jnp.where(reached[..., None], taps[np.where(reached, back, 0)], 0)
        shape = (x.shape[0], self.width, length, length)
        weights = jnp.broadcast_to(jnp.moveaxis(weights, -1, 0), shape)
        if places is not None:
            weights = jnp.where((back <= places[..., None])[:, None], weights, 0)
        return AttentionTrace(weights, x[..., None])

    def merge(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        head_outputs: Float[Array, "B T H D"],
    ) -> Float[Array, "B T M"]:
        """Gates the filtered channels; see `Mixer`."""
        return self._gate(params, x, head_outputs[..., 0].astype(x.dtype))

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """Returns zeros for the past inputs: (batch, min(filter_length, length) - 1, M)."""
        return {
            "inputs": jnp.zeros((batch, min(self.filter_length, length) - 1, self.width), dtype)
        }

    def extend(
        self, params: dict[str, Array], state: PyTree, x: Float[Array, "B T M"]
    ) -> tuple[PyTree, Float[Array, "B T M"]]:
        """Mixes the next T tokens; see `Mixer`."""
        return self._extend(params, state, x, None)

    def _extend(self, params, state, x, places):
        form = "recurrent" if x.shape[1] == 1 else self.implementation
        options = {"chunk": self.block_size} if form == "chunkwise" else {}
        past = state["inputs"]
        inputs, mixed = FORMS[form](x, params["filter"].astype(x.dtype), past, places, **options)
        return {"inputs": inputs.astype(past.dtype)}, self._gate(params, x, mixed)

    def _gate(self, params, x, mixed):
        gate, bias, filter_bias = (
            params[name].astype(x.dtype) for name in ("gate", "gate_bias", "filter_bias")
        )
        return (x @ gate + bias) * (mixed + filter_bias)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedConvolutionOptions(InputPositionOptions):
    """y = (x W + b) * (h conv x + c), h causal and depthwise"""

    source = "Arora et al. 2023 (Zoology), BaseConv, section 4"
    implementations = tuple(FORMS)
    time = "T log T M + T M^2; filters of up to 16 taps T N M + T M^2"
    state = "(N - 1) M"
    has_biases = False

    filter_length: int = size_option(
        0, "taps of the convolution; 0: the length of the longest sequence"
    )
    block_size: int = length_option(
        0, "tokens per block or chunk, in implementations that have them; 0: automatic"
    )

    def default_implementation(self, context: Context) -> str:
        """Returns the form for whole sequences."""
        return "parallel"

    def make(self, context: Context) -> GatedConvolution:
        """Returns a gated convolution."""
        length = self.filter_length or context.max_length
        implementation = self.resolved_implementation(context)
        return build_from(
            GatedConvolution, self, context, filter_length=length, implementation=implementation
        )
