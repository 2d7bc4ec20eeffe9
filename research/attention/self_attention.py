"""Self-attention as a mixer: projections, heads, positions, and a ring buffer to decode with."""

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from research.attention import dense
from research.attention.biases import Bias
from research.attention.errors import Unsupported
from research.attention.implementations import attend
from research.attention.masks import Index, Mask, causal
from research.attention.mixer import Mixer, Parameter, matrix_init
from research.attention.normalizers import Normalizer, softmax
from research.attention.positions import rope
from research.attention.scores import ScaledDot, Score

if TYPE_CHECKING:
    from research.attention.registry import Options


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Filled(Mask):
    """Keys that exist: the empty slots of a cache carry position -1."""

    def __call__(self, q_index: Index, kv_index: Index) -> Bool[Array, "..."]:
        return jnp.asarray(kv_index >= 0)


@dataclasses.dataclass(frozen=True)
class SelfAttention(Mixer):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2) with shared key heads.

    num_kv_heads = num_heads is multi-head, 1 is multi-query (Shazeer 2019, section 3), in between
    is grouped-query attention (Ainslie et al. 2023, section 2.2).

    Attributes:
        width: M.
        num_heads: H.
        num_kv_heads: K, which divides H.
        head_width: D.
        score: how a query and a key match.
        mask: which pairs are allowed; hashable, so without arrays.
        biases: applied to the scores in order.
        normalizer: from scores to weights.
        position: "rope" rotates queries and keys; "none" does not.
        rope_base: the base of the rotation's frequencies.
        implementation: a name in ``IMPLEMENTATIONS``.
        block_size: for implementations that have blocks; 0 chooses.
        use_bias: adds a bias to each of the four projections.
        init_stddev: initial standard deviation of the projections; 0 is 1 / sqrt(fan in).
        out_scale: multiplies the initial output projection.
    """

    width: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    score: Score = ScaledDot()
    mask: Mask = causal()  # noqa: RUF009
    biases: tuple[Bias, ...] = ()
    normalizer: Normalizer = softmax
    position: str = "none"
    rope_base: float = 10000.0
    implementation: str = "dense"
    block_size: int = 0
    use_bias: bool = False
    init_stddev: float = 0.02
    out_scale: float = 1.0

    def parameters(self) -> dict[str, Parameter]:
        """Projections "query", "key", "value", "out", and their biases "query_bias" ... if any."""
        return projections(self)

    def __call__(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> Float[Array, "B T M"]:
        """Self-attention over a whole sequence; see ``Mixer``."""
        q, k, v = self._project(params, x, np.arange(x.shape[1]))
        allowed = self.mask if mask is None else self.mask & mask
        return merge_heads(params, self._attend(q, k, v, allowed, self.implementation))

    def weights(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> Float[Array, "B H T T"]:
        """The attention weights of the whole-sequence form, for looking at."""
        q, k, _ = self._project(params, x, np.arange(x.shape[1]))
        allowed = self.mask if mask is None else self.mask & mask
        return dense.weights(
            q,
            k,
            score=self.score,
            mask=allowed,
            biases=self.biases,
            normalizer=self.normalizer,
        )

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """An empty cache of min(length, mask.reach) slots.

        Returns:
            "k" and "v" (batch, slots, K, D); "positions" (slots,) int32, -1 where empty; "step",
            the number of tokens seen.

        Raises:
            Unsupported: the mask lets queries see keys after them without bound.
        """
        if self.mask.together is None:
            raise Unsupported(
                f"mask {self.mask} looks ahead, so it cannot be decoded token by token; "
                "causal, window and prefix masks can"
            )
        slots = length if self.mask.reach is None else min(length, self.mask.reach)
        shape = (batch, slots, self.num_kv_heads, self.head_width)
        return {
            "k": jnp.zeros(shape, dtype),
            "v": jnp.zeros(shape, dtype),
            "positions": jnp.full((slots,), -1, jnp.int32),
            "step": jnp.zeros((), jnp.int32),
        }

    def extend(
        self, params: dict[str, Array], state: PyTree, x: Float[Array, "B T M"]
    ) -> tuple[PyTree, Float[Array, "B T M"]]:
        """The next T tokens; see ``Mixer``. A prefix has to come whole, in the first chunk."""
        length, slots = x.shape[1], state["k"].shape[1]
        index = state["step"] + jnp.arange(length, dtype=jnp.int32)
        q, k, v = self._project(params, x, index)
        new = {"k": k.astype(state["k"].dtype), "v": v.astype(state["v"].dtype)}
        # Only a ring whose size is the reach can wrap. A single token may overwrite its slot before
        # it is read, because what leaves is out of reach. Of several, later ones would overwrite
        # keys that earlier ones still see, so those read old and new side by side.
        written = _write(state, new, index)
        seen = written
        if length > 1 and slots == self.mask.reach:
            seen = {name: jnp.concatenate([state[name], new[name]], axis=1) for name in new}
            seen["positions"] = jnp.concatenate([state["positions"], index])
        # One query has no use for blocks: its scores are linear in length anyway.
        out = self._attend(
            q,
            seen["k"],
            seen["v"],
            self.mask & _Filled(),
            "dense" if length == 1 else self.implementation,
            index,
            seen["positions"],
        )
        return written, merge_heads(params, out.astype(x.dtype))

    def _project(self, params, x, index):
        q, k, v = (split_heads(params, name, x) for name in ("query", "key", "value"))
        if self.position == "rope":
            q, k = rope(q, index, self.rope_base), rope(k, index, self.rope_base)
        return q, k, v

    def _attend(self, q, k, v, mask, implementation, q_index=None, kv_index=None):
        return attend(
            q,
            k,
            v,
            score=self.score,
            mask=mask,
            biases=self.biases,
            normalizer=self.normalizer,
            q_index=q_index,
            kv_index=kv_index,
            implementation=implementation,
            block_size=self.block_size,
        )


def _write(state: PyTree, new: dict[str, Array], index: Array) -> PyTree:
    """The cache with the new tokens in their slots; of more tokens than slots the last ones."""
    slots, length = state["k"].shape[1], index.shape[0]
    kept = min(slots, length)
    index = index[length - kept :]
    new = {name: a[:, length - kept :] for name, a in new.items()}
    if length == 1:
        at = index[0] % slots
        rows = {n: jax.lax.dynamic_update_slice_in_dim(state[n], new[n], at, 1) for n in new}
        positions = jax.lax.dynamic_update_slice_in_dim(state["positions"], index, at, 0)
    else:
        at = index % slots
        rows = {n: state[n].at[:, at].set(new[n], unique_indices=True) for n in new}
        positions = state["positions"].at[at].set(index, unique_indices=True)
    return {**rows, "positions": positions, "step": state["step"] + length}


@runtime_checkable
class Projected(Protocol):
    """What ``projections`` reads off a mixer; see ``SelfAttention`` for the meanings."""

    @property
    def width(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_width(self) -> int: ...
    @property
    def use_bias(self) -> bool: ...
    @property
    def init_stddev(self) -> float: ...
    @property
    def out_scale(self) -> float: ...


def projections(mixer: Projected) -> dict[str, Parameter]:
    """Projections "query", "key", "value", "out", and "query_bias" ... if the mixer has biases."""
    width, num_heads, head_width = mixer.width, mixer.num_heads, mixer.head_width
    heads, kv_heads = ("heads", "head_width"), ("kv_heads", "head_width")
    query, key = (num_heads, head_width), (mixer.num_kv_heads, head_width)
    inward = matrix_init(mixer.init_stddev, width)
    outward = matrix_init(mixer.init_stddev, num_heads * head_width, mixer.out_scale)
    found = {
        "query": Parameter((width, *query), inward, ("width", *heads)),
        "key": Parameter((width, *key), inward, ("width", *kv_heads)),
        "value": Parameter((width, *key), inward, ("width", *kv_heads)),
        "out": Parameter((*query, width), outward, (*heads, "width")),
    }
    if mixer.use_bias:
        zeros = jax.nn.initializers.zeros
        found["query_bias"] = Parameter(query, zeros, heads)
        found["key_bias"] = Parameter(key, zeros, kv_heads)
        found["value_bias"] = Parameter(key, zeros, kv_heads)
        found["out_bias"] = Parameter((width,), zeros, ("width",))
    return found


def split_heads(
    params: dict[str, Array], name: str, x: Float[Array, "B T M"]
) -> Float[Array, "B T H D"]:
    """Projects x by ``params[name]`` (M, H, D), plus ``params[name + "_bias"]`` if there is one."""
    y = jnp.einsum("btm,mhd->bthd", x, params[name].astype(x.dtype))
    bias = params.get(f"{name}_bias")
    return y if bias is None else y + bias.astype(x.dtype)


def merge_heads(params: dict[str, Array], y: Float[Array, "B T H D"]) -> Float[Array, "B T M"]:
    """Projects the heads' outputs by ``params["out"]`` (H, D, M), plus ``"out_bias"`` if any."""
    x = jnp.einsum("bthd,hdm->btm", y, params["out"].astype(y.dtype))
    bias = params.get("out_bias")
    return x if bias is None else x + bias.astype(x.dtype)


def make(options: "Options") -> SelfAttention:
    """Softmax attention, and whatever replaces its softmax, from validated options."""
    return SelfAttention(
        width=options.width,
        num_heads=options.num_heads,
        num_kv_heads=options.kv_heads,
        head_width=options.head_size,
        score=options.build_score(),
        mask=options.build_mask(),
        biases=options.build_biases(),
        normalizer=options.build_normalizer(),
        position="rope" if options.position == "rope" else "none",
        rope_base=options.rope_base,
        implementation=options.resolved_implementation,
        block_size=options.block_size,
        use_bias=options.use_bias,
        init_stddev=options.init_stddev,
        out_scale=options.out_scale,
    )
