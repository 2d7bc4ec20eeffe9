"""Gated convolution: the attention-free mixer that associative recall is measured against."""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from research.attention.errors import Unsupported
from research.attention.masks import Mask
from research.attention.mixer import Mixer, Parameter, matrix_init

if TYPE_CHECKING:
    from research.attention.registry import Options

# Up to this many taps adding shifted copies is faster than the Fourier transform.
SHORT = 16


def convolve_shifted(x: Float[Array, "B T M"], taps: Float[Array, "N M"]) -> Float[Array, "B T M"]:
    """Causal depthwise convolution, y[t] = sum_n taps[n] x[t - n], as a sum of shifted copies."""
    length = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (taps.shape[0] - 1, 0), (0, 0)))
    start = taps.shape[0] - 1
    shifted = (taps[n] * padded[:, start - n : start - n + length] for n in range(taps.shape[0]))
    return functools.reduce(jnp.add, shifted)


def convolve_fft(x: Float[Array, "B T M"], taps: Float[Array, "N M"]) -> Float[Array, "B T M"]:
    """The same convolution through the Fourier transform, in float32."""
    length = x.shape[1]
    # Long enough that what wraps around falls outside the T outputs that are kept.
    size = _fast_size(length + taps.shape[0] - 1)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    spectrum = jnp.fft.rfft(x.astype(dtype), size, axis=1)
    spectrum *= jnp.fft.rfft(taps.astype(dtype), size, axis=0)
    return jnp.fft.irfft(spectrum, size, axis=1)[:, :length].astype(x.dtype)


def _fast_size(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()


def convolve(x: Float[Array, "B T M"], taps: Float[Array, "N M"]) -> Float[Array, "B T M"]:
    """Causal depthwise convolution by whichever way suits the number of taps that reach x."""
    taps = taps[: x.shape[1]]
    return (convolve_shifted if taps.shape[0] <= SHORT else convolve_fft)(x, taps)


@dataclasses.dataclass(frozen=True)
class GatedConvolution(Mixer):
    """y = (x W + b) * (h conv x + c) (Arora et al. 2023, Zoology, BaseConv, section 4).

    Attributes:
        width: M.
        filter_length: the number of taps of the causal depthwise filter h.
        init_stddev: initial standard deviation of the gate W; 0 is 1 / sqrt(M).
    """

    width: int
    filter_length: int
    init_stddev: float = 0.02

    def parameters(self) -> dict[str, Parameter]:
        """ "gate" (M, M), "gate_bias", "filter" (taps, M), "filter_bias"."""
        zeros, width = jax.nn.initializers.zeros, self.width
        gate = matrix_init(self.init_stddev, width)
        taps = jax.nn.initializers.normal(self.filter_length**-0.5)
        return {
            "gate": Parameter((width, width), gate, ("width", "width")),
            "gate_bias": Parameter((width,), zeros, ("width",)),
            "filter": Parameter((self.filter_length, width), taps, ("taps", "width")),
            "filter_bias": Parameter((width,), zeros, ("width",)),
        }

    def __call__(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> Float[Array, "B T M"]:
        """Gated convolution over a whole sequence; see ``Mixer``."""
        if mask is not None:
            raise Unsupported("mixer 'gated_convolution' cannot take a mask; 'softmax' can")
        return self._gate(params, x, convolve(x, params["filter"].astype(x.dtype)))

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """The inputs the filter still sees: (batch, min(filter_length, length) - 1, M)."""
        return {
            "inputs": jnp.zeros((batch, min(self.filter_length, length) - 1, self.width), dtype)
        }

    def extend(
        self, params: dict[str, Array], state: PyTree, x: Float[Array, "B T M"]
    ) -> tuple[PyTree, Float[Array, "B T M"]]:
        """The next T tokens; see ``Mixer``."""
        past = state["inputs"]
        seen = jnp.concatenate([past.astype(x.dtype), x], axis=1)
        taps = params["filter"].astype(x.dtype)[: past.shape[1] + 1]
        if x.shape[1] == 1:
            mixed = jnp.einsum("btm,tm->bm", seen, taps[::-1])[:, None]
        else:
            mixed = convolve(seen, taps)[:, past.shape[1] :]
        inputs = seen[:, x.shape[1] :].astype(past.dtype)
        return {"inputs": inputs}, self._gate(params, x, mixed)

    def _gate(self, params, x, mixed):
        gate, bias, filter_bias = (
            params[name].astype(x.dtype) for name in ("gate", "gate_bias", "filter_bias")
        )
        return (x @ gate + bias) * (mixed + filter_bias)


def make(options: "Options") -> GatedConvolution:
    """A gated convolution from validated options."""
    return GatedConvolution(
        width=options.width,
        filter_length=options.filter_length or options.max_length,
        init_stddev=options.init_stddev,
    )
