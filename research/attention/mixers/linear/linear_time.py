"""The base class of mixers built on a linear recurrence, and their common options."""

import dataclasses
import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from research.attention.implementations.sharding import context_size
from research.attention.mixers.linear import decay, short_convolution
from research.attention.mixers.mixer import AttentionTrace, Mixer, places_of
from research.attention.mixers.mixer_options import (
    Context,
    HeadOptions,
    InputPositionOptions,
    build_from,
)
from research.attention.mixers.projections import merge_heads, projections, split_heads
from research.attention.parameters import Parameter, matrix_axes, matrix_init, vector_axes
from research.attention.parts.masks import Mask
from research.attention.parts.part_options import Sizes, length_option, size_option
from research.options import OptionError, option

# Added under the square root of a norm; small, because outputs at initialization are small.
NORM_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearTime(Mixer):
    """A mixer with a state of fixed size, by default on the recurrence of `decay`.

    Attributes:
      width: M.
      num_heads: H.
      head_width: D, of queries, keys and values unless a subclass overrides it.
      implementation: a name in `decay.FORMS`; all forms compute the same function.
      block_size: chunk length of the chunkwise and ring forms; 0 chooses.
      short_convolution: taps of a causal convolution, followed by SiLU, on projected queries,
        keys and values; 0 disables both.
      use_bias: adds a bias to each of the four projections.
      init_stddev: initial standard deviation of the projections; 0 is 1 / sqrt(fan in).
      out_scale: multiplies the initial output projection.
    """

    width: int
    num_heads: int
    head_width: int
    implementation: str = "chunkwise"
    block_size: int = 0
    short_convolution: int = 0
    use_bias: bool = False
    init_stddev: float = 0.02
    out_scale: float = 1.0

    @property
    def name(self) -> str:
        """The mixer's name in the registry."""
        raise NotImplementedError

    @property
    def num_kv_heads(self) -> int:
        """K, which equals H because every head has its own state."""
        return self.num_heads

    @property
    def chunk(self) -> int:
        """The number of tokens per chunk in the chunkwise form."""
        return self.block_size or decay.CHUNK

    @property
    def head_shapes(self) -> dict[str, tuple[int, int]]:
        """{name: (heads, width)} of "query", "key" and "value"."""
        return dict.fromkeys(("query", "key", "value"), (self.num_heads, self.head_width))

    def __call__(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> Float[Array, "B T M"]:
        """Mixes a whole sequence; see `Mixer`."""
        places = places_of(self.name, mask)
        state = self.init_state(x.shape[0], x.shape[1], x.dtype)
        return self.mix(params, state, x, self.implementation, places)[1]

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """Returns the "memory" of the recurrence and the "inputs" of the convolutions.

        All are float32 or wider, and their sizes do not depend on the length.
        """
        memory = self.init_memory(batch, self.head_shapes["value"][1], dtype)
        return {"memory": memory, "inputs": self.init_inputs(batch, dtype)}

    def extend(
        self, params: dict[str, Array], state: PyTree, x: Float[Array, "B T M"]
    ) -> tuple[PyTree, Float[Array, "B T M"]]:
        """Mixes the next T tokens; see `Mixer`."""
        return self.mix(params, state, x, "recurrent" if x.shape[1] == 1 else self.implementation)

    def mix(
        self,
        params: dict[str, Array],
        state: PyTree,
        x: Float[Array, "B T M"],
        form: str,
        places: Int[Array, "B T"] | None = None,
    ) -> tuple[PyTree, Float[Array, "B T M"]]:
        """Mixes the next T tokens as `extend` does, with the named form of the recurrence.

        Given places of the tokens in their segments, the state starts anew at place 0.
        """
        queries_keys, v, inputs = self._prepared(params, state, x, places)
        memory, y = self.recur(params, queries_keys, v, state["memory"], form)
        return {"memory": memory, **inputs}, self.merge(params, x, y)

    def attention_trace(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> AttentionTrace:
        """Returns the implied attention weights and the values; see `Mixer`. No scores.

        The outputs are linear in the values. So the recurrence runs on one-hot values that mark
        their positions, and the output at t in channel s is the weight of position s.
        """
        (batch, length), places = x.shape[:2], places_of(self.name, mask)
        state = self.init_state(batch, length, x.dtype)
        queries_keys, v, _ = self._prepared(params, state, x, places)
        marks = jnp.eye(length, dtype=at_least_float32(x.dtype))[None, :, None]
        marks = jnp.broadcast_to(marks, (batch, length, self.num_heads, length))
        memory = self.init_memory(batch, length, x.dtype)
        form = "chunkwise" if self.implementation == "ring" else self.implementation
        weights = self.recur(params, queries_keys, marks, memory, form)[1]
        return AttentionTrace(jnp.swapaxes(weights, 1, 2), v)

    def prepare(
        self,
        params: dict[str, Array],
        state: PyTree,
        x: Float[Array, "B T M"],
        places: Int[Array, "B T"] | None,
    ) -> tuple[tuple[Any, ...], Float[Array, "B T H Dv"], dict[str, Any]]:
        """Returns the inputs of the recurrence except values, the values, and other new state.

        The last of the inputs is the log decays, or None for no decay. `places` are for
        `project_qkv`; `mix` lets the recurrence start anew.
        """
        raise NotImplementedError

    def _prepared(self, params, state, x, places):
        """Returns the results of `prepare`, with decays that start anew at place 0."""
        (*queries_keys, decays), v, inputs = self.prepare(params, state, x, places)
        decays = decay.restarted(decays, places, v.dtype)
        return (*queries_keys, decays), v, inputs

    def init_memory(self, batch: int, value_width: int, dtype: Any) -> PyTree:
        """Returns the initial state of the recurrence, for values of this width."""
        shape = (batch, self.num_heads, self.head_shapes["key"][1], value_width)
        return jnp.zeros(shape, at_least_float32(dtype))

    def recur(
        self,
        params: dict[str, Array],
        queries_keys: Any,
        v: Float[Array, "B T H Dv"],
        memory: PyTree,
        form: str,
    ) -> tuple[PyTree, Float[Array, "B T H Dv"]]:
        """Runs the recurrence; returns its new state, and outputs that are linear in the values.

        The default is the recurrence of `decay` on queries, keys and decays.
        """
        q, k, decays = queries_keys
        return decay.FORMS[form](q, k, v, decays, memory, **self.form_options(form))

    def merge(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        head_outputs: Float[Array, "B T H Dv"],
    ) -> Float[Array, "B T M"]:
        """Projects the heads' outputs; see `Mixer`."""
        return merge_heads(params, head_outputs.astype(x.dtype))

    def projection_parameters(self) -> dict[str, Parameter]:
        """Returns "query", "key", "value", "out"; their biases and "query_taps" ... if any."""
        found = projections(self)
        for name, shape in self.head_shapes.items():
            # A single head shared by all heads is not sharded.
            axes = ("" if shape[0] % self.num_heads else "heads", "head_width")
            for whole, before, own in (
                (name, (self.width,), matrix_axes("width", *axes)),
                (f"{name}_bias", (), vector_axes(*axes)),
            ):
                if whole in found:
                    found[whole] = Parameter((*before, *shape), found[whole].init, own)
        read = (self.num_heads, self.head_shapes["value"][1])
        out = matrix_init(self.init_stddev, math.prod(read), self.out_scale)
        found["out"] = Parameter((*read, self.width), out, found["out"].axes)
        return found | short_convolution.parameters(self.short_convolution, self._channels())

    def init_inputs(self, batch: int, dtype: Any) -> dict[str, Array]:
        """Returns the inputs of the short convolutions before the first token: zeros."""
        length, dtype = self.short_convolution, at_least_float32(dtype)
        return short_convolution.init_past(length, self._channels(), batch, dtype)

    def project_qkv(
        self,
        params: dict[str, Array],
        inputs: dict[str, Array],
        x: Float[Array, "B T M"],
        places: Int[Array, "B T"] | None,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Returns "query", "key" and "value" in the dtype of x, and the convolutions' new state."""
        heads = {name: split_heads(params, name, x) for name in self.head_shapes}
        return short_convolution.activate(params, inputs, heads, places)

    def form_options(self, form: str) -> dict[str, int]:
        """Returns the keyword arguments of a form."""
        return {"chunk": self.chunk} if form in ("chunkwise", "ring") else {}

    def _channels(self):
        return {name: heads * width for name, (heads, width) in self.head_shapes.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WideValues(LinearTime):
    """A mixer whose values can be wider or narrower than its queries and keys.

    Attributes:
      value_width: Dv, of the values, outputs and gate of a head; 0 is D.
    """

    value_width: int = 0

    @property
    def head_shapes(self) -> dict[str, tuple[int, int]]:
        """{name: (heads, width)} of "query", "key" and "value"."""
        values = (self.num_heads, self.value_width or self.head_width)
        return super().head_shapes | {"value": values}


def at_least_float32(dtype: Any) -> Any:
    """Returns the dtype of states and statistics: float32, or this dtype if it is wider."""
    return jnp.promote_types(dtype, jnp.float32)


def standardize_heads(y: Float[Array, "B T H D"]) -> Float[Array, "B T H D"]:
    """Normalizes each head to mean 0 and variance 1: a group norm of H groups without a scale."""
    y = y - y.mean(-1, keepdims=True)
    return y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + NORM_EPSILON)


def check_groups(name: str, groups: int, sizes: Sizes) -> None:
    """Raises OptionError unless the groups divide the heads; 0 means one group per head."""
    if groups and sizes.num_heads % groups:
        raise OptionError(name, groups, f"must divide num_heads = {sizes.num_heads}")


M = TypeVar("M", bound=Mixer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearTimeOptions(HeadOptions, InputPositionOptions):
    """Options of mixers whose state has a fixed size and that run in chunks."""

    block_size: int = length_option(
        0, "tokens per block or chunk, in implementations that have them; 0: automatic"
    )

    def default_implementation(self, context: Context) -> str:
        """Returns "ring" if the active mesh splits sequences, else "chunkwise"."""
        return "ring" if context_size() > 1 else "chunkwise"

    def build_from(self, cls: type[M], context: Context, **values: Any) -> M:
        """Builds a mixer of this class with these options."""
        implementation = self.resolved_implementation(context)
        return build_from(
            cls, self.sizes(context), self, context, implementation=implementation, **values
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvolvedOptions(LinearTimeOptions):
    """The same with a convolution in front."""

    short_convolution: int = size_option(
        0, "taps of a short convolution on queries, keys and values; 0: none"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormedOutputOptions(LinearTimeOptions):
    """The same with an RMS norm of the heads' outputs."""

    output_norm_gain: bool = option(
        False,
        "learned gains in the norm of the heads' outputs, as in the authors' code; without "
        "them the output projection takes their place",
    )
    output_norm_epsilon: float = option(
        NORM_EPSILON, "added to the mean square in the norm of the heads' outputs", above=0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WideValuesOptions(LinearTimeOptions):
    """The same with values that need not be as wide as queries and keys."""

    value_width: int = size_option(0, "Dv, width of the values of a head; 0: head_width")
