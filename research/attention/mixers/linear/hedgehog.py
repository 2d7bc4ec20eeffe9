"""Linear attention with a learned feature map, beside softmax attention to a window."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from research.attention.mixers.linear import decay
from research.attention.mixers.linear.linear_time import (
    LinearTime,
    LinearTimeOptions,
    at_least_float32,
)
from research.attention.mixers.mixer import AttentionTrace, places_of
from research.attention.mixers.mixer_options import Context
from research.attention.parameters import Constant, Parameter, matrix_axes, vector_axes
from research.attention.parts.masks import Mask
from research.attention.parts.part_options import MechanismPart, length_option, size_option
from research.attention.parts.positions import MODEL_POSITIONS, ROTARY_POSITIONS, Rotary
from research.options import choice

GAIN = Constant(math.log(0.1 / 0.9))
"""Initial parameter of gamma, its sigmoid, which is 0.1 as in configs of the authors of LoLCATs."""
EPSILON = 1e-12
"""Added to the divisor."""


def identity(key: Array, shape: Sequence[int], dtype: Any = "float32") -> Array:
    """Initializes each matrix as the identity, as the code of LoLCATs can."""
    return jnp.broadcast_to(jnp.eye(*shape[-2:], dtype=dtype), shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hedgehog(LinearTime):
    """Linear attention whose feature map is learned, so that it can take the place of a softmax.

    phi(x) = [softmax(W x), softmax(-W x)] with a matrix W for each head, one for queries and one
    for keys (Zhang et al. 2024, "The Hedgehog & the Porcupine", section 4). With a window, the
    latest w keys have the weights gamma exp(q . k / sqrt(D) - m) and the ones before
    phi(q) . phi(k), and all weights are divided by their sum (Zhang et al. 2024, "LoLCATs",
    section 3); gamma = sigmoid of a parameter of each head, and m is the largest score in the
    window, as in the authors' code: what is added to all scores of a query changes nothing.

    Attributes:
      window: w, 0 for none.
      feature_width: F, rows of W; 0 is D.
      rotary: rotates queries and keys by their positions, before W; None for no rotation.
    """

    window: int = 0
    feature_width: int = 0
    rotary: Rotary | None = None

    @property
    def name(self) -> str:
        """The mixer's name in the registry."""
        return "hedgehog"

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters by name.

        The projections of `LinearTime`, "query_map" and "key_map" (H, D, F), and with a window
        "window_gain" (H,), of which gamma is the sigmoid.
        """
        shape = (self.num_heads, self.head_width, self.feature_width or self.head_width)
        maps = Parameter(shape, identity, matrix_axes("heads", "head_width", "", roles="sio"))
        found = self.projection_parameters() | {"query_map": maps, "key_map": maps}
        if self.window:
            found["window_gain"] = Parameter((self.num_heads,), GAIN, vector_axes("heads"))
        return found

    def init_memory(self, batch: int, value_width: int, dtype: Any) -> PyTree:
        """Returns zeros for the sums of phi(k) [v, 1] over the keys before the window."""
        features = 2 * (self.feature_width or self.head_width)
        return jnp.zeros(
            (batch, self.num_heads, features, value_width + 1), at_least_float32(dtype)
        )

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """Returns the memory, the latest "k" and "v" (B, w, H, D), and the number of tokens."""
        kept = jnp.zeros((batch, self.window, self.num_heads, self.head_width), dtype)
        whole = super().init_state(batch, length, dtype)
        return whole | {"recent": {"k": kept, "v": kept}, "step": jnp.zeros((), jnp.int32)}

    def prepare(
        self,
        params: dict[str, Array],
        state: PyTree,
        x: Float[Array, "B T M"],
        places: Int[Array, "B T"] | None,
    ) -> tuple[tuple[Any, ...], Float[Array, "B S H D"], dict[str, Any]]:
        """Returns what `recur` takes, values and state; see `LinearTime`.

        Keys and values are those of the w tokens before x, too: S = w + T.
        """
        heads, inputs = self.project_qkv(params, state["inputs"], x, None)
        step, length = state["step"], x.shape[1]
        # The features of rotated vectors depend on where a segment begins, so it begins at 0.
        places = (step + jnp.arange(length))[None] if places is None else places
        if self.rotary is not None:
            heads |= {name: self.rotary(heads[name], places) for name in ("query", "key")}
        new, before = {"k": heads["key"], "v": heads["value"]}, state["recent"]
        seen = {
            n: jnp.concatenate([before[n], a.astype(before[n].dtype)], 1) for n, a in new.items()
        }
        q, k, v = (
            a.astype(at_least_float32(x.dtype)) for a in (heads["query"], seen["k"], seen["v"])
        )
        # At the step of a query the memory gets the key that its window leaves, unless that one
        # does not exist, or is of another segment.
        leaves = (places >= self.window)[..., None, None]
        keys = jnp.where(leaves, self._features(params, "key_map", k[:, :length]), 0)
        queries = self._features(params, "query_map", q)
        recent = {name: a[:, length:] for name, a in seen.items()}
        other = {"inputs": inputs, "recent": recent, "step": step + length}
        return (q, k, places, queries, keys, None), v, other

    def _features(self, params, name, x):
        """Returns phi(x), of 2 F features."""
        y = jnp.einsum("bthd,hdf->bthf", x, params[name].astype(x.dtype))
        return jnp.concatenate([jax.nn.softmax(y), jax.nn.softmax(-y)], -1)

    def recur(
        self,
        params: dict[str, Array],
        queries_keys: Any,
        v: Float[Array, "B S H Dv"],
        memory: PyTree,
        form: str,
    ) -> tuple[PyTree, Float[Array, "B T H Dv"]]:
        """Adds the window to what a form computes of the keys before it; see `LinearTime`."""
        q, k, places, queries, keys, decays = queries_keys
        # A channel of values that is always 1 sums the weights.
        v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1)
        options = self.form_options(form)
        memory, y = decay.FORMS[form](queries, keys, v[:, : q.shape[1]], decays, memory, **options)
        if self.window:
            sizes = {"parallel": q.shape[1], "recurrent": 1}
            size = sizes.get(form, max(self.chunk, self.window))
            gamma = jax.nn.sigmoid(params["window_gain"].astype(y.dtype))[:, None]
            seen = jnp.minimum(places + 1, self.window)
            scaled = q * self.head_width**-0.5
            y = y + gamma * windowed(scaled, k, v, seen, self.window, size)
        return memory, y[..., :-1] / (y[..., -1:] + EPSILON)

    def attention_trace(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> AttentionTrace:
        """Returns the weights, of both parts, and the values; see `LinearTime`. No scores."""
        (batch, length), places = x.shape[:2], places_of(self.name, mask)
        queries_keys, v, _ = self._prepared(
            params, self.init_state(batch, length, x.dtype), x, places
        )
        marks = jnp.eye(self.window + length, dtype=v.dtype)[:, self.window :]
        marks = jnp.broadcast_to(marks[:, None], (batch, len(marks), self.num_heads, length))
        memory = self.init_memory(batch, length, x.dtype)
        weights = self.recur(params, queries_keys, marks, memory, self.implementation)[1]
        return AttentionTrace(jnp.swapaxes(weights, 1, 2), v[:, self.window :])


def windowed(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S H D"],
    v: Float[Array, "B S H Dv"],
    seen: Int[Array, "#B T"],
    window: int,
    size: int,
) -> Float[Array, "B T H Dv"]:
    """Returns sum_s exp(q_t . k_s - m_t) v_s over the latest keys, m_t the largest of their scores.

    Args:
      q: queries, float32 or wider, like the others.
      k: keys of `window` tokens and of those that ask: S = window + T.
      v: values of the same.
      seen: how many keys each query sees, its own included, 1 to `window`.
      window: the most.
      size: queries that are computed at once, with as many keys and `window` more.
    """
    length = q.shape[1]
    size = min(size, length)
    count = -(-length // size)
    more = count * size - length
    q, k, v = (jnp.pad(a, [(0, 0), (0, more), (0, 0), (0, 0)]) for a in (q, k, v))
    seen = jnp.pad(seen, [(0, 0), (0, more)], constant_values=1)
    # Query c of block n is token w + n C + c of these; the block begins with what its first sees.
    first, within = size * np.arange(count)[:, None] + 1, np.arange(size + window - 1)
    keys, values = (jnp.take(a, first + within, axis=1) for a in (k, v))
    scores = jnp.einsum("bnchd,bnshd->bnchs", q.reshape(len(q), count, size, *q.shape[2:]), keys)
    back = np.arange(size)[:, None] + window - 1 - within
    visible = (back >= 0) & (back < seen.reshape(len(seen), count, size, 1))
    scores = jnp.where(visible[..., None, :], scores, -jnp.inf)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    out = jnp.einsum("bnchs,bnshd->bnchd", weights, values)
    return out.reshape(len(q), -1, *out.shape[3:])[:, :length]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HedgehogOptions(LinearTimeOptions):
    """linear attention, phi(x) = [softmax(W x), softmax(-W x)] with learned W, beside softmax
    attention to the latest w keys
    """

    source = "Zhang et al. 2024 (Hedgehog), section 4; Zhang et al. 2024 (LoLCATs), section 3"
    implementations = ("parallel", "chunkwise", "recurrent")
    time = "T C (F + D) + T F D in chunks of C; T (C + w) D more with a window"
    state = "2 H F (D + 1) + 2 w H D"

    position: MechanismPart = choice(
        {**MODEL_POSITIONS, **ROTARY_POSITIONS},
        "none",
        "position encoding",
        others="mixer 'hedgehog' applies no others",
    )
    window: int = length_option(
        0, "latest keys, the query's own included, that softmax attention sees; 0: none"
    )
    feature_width: int = size_option(
        0, "F, rows of the matrix of the feature map, which has two features each; 0: head_width"
    )

    def default_implementation(self, context: Context) -> str:
        """Returns "chunkwise": the window of a token is not passed around devices."""
        return "chunkwise"

    def make(self, context: Context) -> Hedgehog:
        """Returns the mixer."""
        turns = isinstance(self.position, tuple(ROTARY_POSITIONS.values()))
        rotary = self.position.build(self.sizes(context)) if turns else None
        window = min(self.window, context.max_length or self.window)
        return self.build_from(Hedgehog, context, rotary=rotary, window=window)
