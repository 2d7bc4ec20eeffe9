"""Native sparse attention: compressed blocks, the best blocks and a window, summed by gates."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from research.attention.errors import Unsupported
from research.attention.implementations import dense
from research.attention.implementations.attend import (
    DENSE_UP_TO,
    attend,
    decoding_implementation,
)
from research.attention.mixers import cache
from research.attention.mixers.attention_options import with_kv_heads
from research.attention.mixers.mixer import Mixer, cached_shapes, weighted_values
from research.attention.mixers.mixer_options import Context, HeadOptions, build_from
from research.attention.mixers.projections import merge_heads, projections, split_heads
from research.attention.parameters import Parameter, matrix_axes, matrix_init, table_axes
from research.attention.parts.block_selection import SelectedBlocks, best_blocks
from research.attention.parts.content_dependent import PerQuery
from research.attention.parts.masks import LONGEST, Mask, causal, window
from research.attention.parts.mechanism import Mechanism
from research.attention.parts.part_options import (
    MechanismPart,
    Sizes,
    length_option,
    size_option,
)
from research.attention.parts.positions import MODEL_POSITIONS, ROTARY_POSITIONS, Rotary
from research.attention.parts.scores import Score, scaled_dot
from research.options import OptionError, choice

BRANCHES = ("compressed", "selected", "window")
FIXED_BLOCKS = 3
"""Blocks that every query selects: the first, its own and the one before."""


@dataclasses.dataclass(frozen=True)
class NativeSparse(Mixer):
    """Native sparse attention (Yuan et al. 2025, "Native Sparse Attention", section 3).

    The output of a head is the sum of three attentions of the same query, each times a gate
    sigmoid(x W) and with keys and values of its own (equation 5):

    - compressed: a block of l tokens, one beginning every d, has one key and one value, an MLP of
      the keys, or values, of its tokens plus encodings of their places in the block (equation 7).
      A query attends to the blocks that end before or at it; the output is 0 where there is none.
    - selected: the tokens k <= q of the n blocks of l' tokens that matter most (equations 11-12),
      where the first block, the query's own and the one before come first (section 4.1). A block
      matters as much as the weights of the compressed blocks over it, each times how many pieces of
      d tokens the two share (equation 9, which counts blocks from 1), summed over the heads that
      share keys (equation 10). As in the paper, the selection has no gradient.
    - window: the latest w tokens.

    The paper leaves open the maps. Here W is linear, and the MLP has one hidden layer of D channels
    with GELU and is shared by the key heads. It leaves open too how positions rotate compressed
    keys: these are made of keys that are not rotated, and are then rotated to the position of the
    block's first token.

    Attributes:
      width: M.
      num_heads: H.
      num_kv_heads: K, which divides H.
      head_width: D.
      compress_length: l, tokens of a compressed block.
      compress_stride: d, which divides l and l'.
      block_length: l', tokens of a selected block.
      top_blocks: n, at least 3.
      window_length: w.
      score: scores queries and keys.
      rotary: rotates queries and keys by their positions; None for no rotation.
      implementation: of the selected branch and the window; scores of compressed blocks, which the
        selection needs, are always dense.
      block_size: for implementations that have blocks; 0 chooses.
      init_stddev: initial standard deviation of the projections; 0 is 1 / sqrt(fan in).
      out_scale: multiplies the initial output projection.
    """

    width: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    compress_length: int = 32
    compress_stride: int = 16
    block_length: int = 64
    top_blocks: int = 16
    window_length: int = 512
    score: Score = scaled_dot()
    rotary: Rotary | None = None
    implementation: str = "dense"
    block_size: int = 0
    init_stddev: float = 0.02
    out_scale: float = 1.0

    @property
    def use_bias(self) -> bool:
        """False: the projections have no biases."""
        return False

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters by name.

        "query" (M, H, D); "key" and "value" (3, M, K, D), of the branches in their order; "gate"
        (M, H, 3); "out" (H, D, M). Of the two MLPs, for keys and values: "compress_position"
        (2, l, D), "compress_in" (2, l, D, D), "compress_out" (2, D, D).
        """
        length, width = self.compress_length, self.head_width
        inward = matrix_init(self.init_stddev, self.width)
        heads = matrix_axes("", "width", "kv_heads", "head_width", roles="sioo")
        own = (len(BRANCHES), self.width, self.num_kv_heads, width)
        gates = (self.width, self.num_heads, len(BRANCHES))
        block = matrix_init(self.init_stddev, length * width)
        return projections(self, names=("query",)) | {
            "key": Parameter(own, inward, heads),
            "value": Parameter(own, inward, heads),
            "gate": Parameter(gates, inward, matrix_axes("width", "heads", "")),
            "compress_position": Parameter(
                (2, length, width), block, table_axes("", "", "", roles="sio")
            ),
            "compress_in": Parameter(
                (2, length, width, width), block, matrix_axes("", "", "", "", roles="siio")
            ),
            "compress_out": Parameter(
                (2, width, width),
                matrix_init(self.init_stddev, width),
                matrix_axes("", "", "", roles="sio"),
            ),
        }

    def __call__(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> Float[Array, "B T M"]:
        """Mixes a whole sequence; see `Mixer`.

        Raises:
          Unsupported: a mask was given; blocks have fixed places and hold what it would hide.
        """
        if mask is not None:
            raise Unsupported(
                "mixer 'native_sparse' has blocks at fixed places, so it cannot keep apart what a "
                "mask or segments do; 'softmax' can"
            )
        index = np.arange(x.shape[1])
        entries = self._entries(params, x, index)
        first = self.compress_stride * np.arange(self._compressed_blocks(x.shape[1]))
        seen = {name: {**entries[name], "positions": index} for name in ("selected", "window")}
        seen["compressed"] = self._compress(params, entries["compressed"], first, first)
        return self._mix(params, x, index, seen, None, self.implementation)

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """Returns an empty state, of keys "k" and values "v" (batch, slots, K, D) each.

        "selected" is a cache of all tokens and "window" one of the latest w (see `cache.empty`);
        "compressed" has one slot for each compressed block, filled when its last token is mixed;
        "recent" has the keys and values of the latest l tokens, of which later blocks are made.
        """

        def entries(params, x):
            # Those of all branches have the same shapes.
            return self._entries(params, x, np.zeros(1, np.int32))["selected"]

        token = cached_shapes(self, entries, batch, dtype)

        def zeros(slots):
            return {n: jnp.zeros((batch, slots, *a.shape[2:]), dtype) for n, a in token.items()}

        return {
            "selected": cache.empty(causal(), length, token),
            "window": cache.empty(window(self.window_length), length, token),
            "compressed": zeros(self._compressed_blocks(length)),
            "recent": zeros(self.compress_length),
        }

    def extend(
        self, params: dict[str, Array], state: PyTree, x: Float[Array, "B T M"]
    ) -> tuple[PyTree, Float[Array, "B T M"]]:
        """Mixes the next T tokens; see `Mixer`."""
        index = cache.positions(state["selected"], x.shape[1])
        new, after, seen = self._entries(params, x, index), {}, {}
        kept = {"selected": causal(), "window": window(self.window_length)}
        for name, mask in kept.items():
            after[name], seen[name] = cache.extend(mask, state[name], new[name])
        after |= self._extend_compressed(params, state, new["compressed"])
        seen["compressed"] = after["compressed"]
        implementation = decoding_implementation(self.implementation, x.shape[1])
        return after, self._mix(params, x, index, seen, cache.filled, implementation)

    def _compressed_blocks(self, length):
        """Returns the number of compressed blocks in `length` tokens, one that never ends if 0."""
        return max(1, (length - self.compress_length) // self.compress_stride + 1)

    def _entries(self, params, x, index):
        """Returns the keys "k" and values "v" of each branch; compressed ones are not rotated."""
        found = {}
        for n, branch in enumerate(BRANCHES):
            own = {name: params[name][n] for name in ("key", "value")}
            k, v = (split_heads(own, name, x) for name in own)
            found[branch] = {"k": k if branch == "compressed" else self._rotated(k, index), "v": v}
        return found

    def _rotated(self, y, positions):
        return y if self.rotary is None else self.rotary(y, positions)

    def _compress(self, params, tokens, start, first):
        """Returns the keys and values of compressed blocks (equation 7).

        Args:
          params: as in `__call__`.
          tokens: keys "k" and values "v", (B, S, K, D).
          start: where the blocks begin among these tokens, (N,).
          first: the positions of their first tokens, (N,).
        """
        at = start[:, None] + np.arange(self.compress_length)
        found = {}
        for n, (name, a) in enumerate(tokens.items()):
            place, inward, out = (
                params[f"compress_{part}"][n].astype(a.dtype) for part in ("position", "in", "out")
            )
            blocks = jnp.take(a, at, axis=1, mode="clip") + place[:, None]
            hidden = jax.nn.gelu(jnp.einsum("bnlkd,ldf->bnkf", blocks, inward), approximate=False)
            found[name] = jnp.einsum("bnkf,fd->bnkd", hidden, out)
        return found | {"k": self._rotated(found["k"], first)}

    def _extend_compressed(self, params, state, new):
        """Returns the parts of the state that new tokens of the compressed branch change."""
        length, stride, step = self.compress_length, self.compress_stride, state["selected"]["step"]
        count = new["k"].shape[1]
        # Tokens step - l .. step + T - 1. A block that ends at one of the last T begins here.
        tokens = {
            n: jnp.concatenate([a, new[n].astype(a.dtype)], 1) for n, a in state["recent"].items()
        }
        # The first block that has not ended, and as many as can end within T tokens.
        number = jnp.maximum((step - length) // stride + 1, 0) + jnp.arange(-(-count // stride))
        first = stride * number
        made = self._compress(params, tokens, first - (step - length), first)
        slots = state["compressed"]["k"].shape[1]
        # Blocks that have not ended get a slot out of bounds, which the scatter drops.
        at = jnp.where(first + length <= step + count, number, slots)
        compressed = {
            n: a.at[:, at].set(made[n].astype(a.dtype), mode="drop")
            for n, a in state["compressed"].items()
        }
        return {"compressed": compressed, "recent": {n: a[:, count:] for n, a in tokens.items()}}

    def _mix(self, params, x, index, seen, filled, implementation):
        """Returns the output for the queries of x, given what the branches see.

        Args:
          params: as in `__call__`.
          x: the tokens whose queries attend.
          index: their positions.
          seen: keys "k" and values "v" of each branch, of tokens with their "positions".
          filled: the mask of keys that exist; None if all do.
          implementation: of the selected branch and the window.
        """
        q = self._rotated(split_heads(params, "query", x), index)
        blocks = seen["compressed"]
        last = self.compress_stride * np.arange(blocks["k"].shape[1]) + self.compress_length - 1
        visible = Mechanism(self.score, causal())
        weights = dense.weights(q, blocks["k"], visible, q_index=index, kv_index=last)
        outputs = [weighted_values(weights, blocks["v"])]
        masks = {
            "selected": self._selection(weights, index, seen["selected"]["k"].shape[1]),
            "window": window(self.window_length),
        }
        for name, mask in masks.items():
            mechanism = Mechanism(self.score, mask).restricted_to(filled)
            k, v, positions = (seen[name][n] for n in ("k", "v", "positions"))
            at = {"q_index": index, "kv_index": positions, "block_size": self.block_size}
            outputs.append(attend(q, k, v, mechanism, **at, implementation=implementation))
        gates = jax.nn.sigmoid(jnp.einsum("btm,mhc->cbth", x, params["gate"].astype(x.dtype)))
        out = sum(g[..., None] * o.astype(x.dtype) for g, o in zip(gates, outputs, strict=True))
        return merge_heads(params, out)

    def _selection(self, weights, index, length):
        """Returns the mask of the selected branch (equations 9-11).

        Args:
          weights: of the queries on compressed blocks, (B, H, T, N).
          index: positions of the queries, (T,).
          length: the number of tokens that blocks are cut from.
        """
        size, stride = self.block_length, self.compress_stride
        block, compressed = np.arange(-(-length // size)), np.arange(weights.shape[-1])[:, None]
        # How many pieces of d tokens each compressed block and each block to select share.
        end = np.minimum(compressed + self.compress_length // stride, (block + 1) * size // stride)
        shared = np.maximum(end - np.maximum(compressed, block * size // stride), 0)
        b, h, t, n = weights.shape
        grouped = jax.lax.stop_gradient(weights).reshape(b, self.num_kv_heads, -1, t, n)
        importance = jnp.einsum("bkgtn,nj->bktj", grouped, shared.astype(weights.dtype))
        ahead = block - jnp.asarray(index)[:, None] // size
        always = (block == 0) | (ahead == 0) | (ahead == -1)
        chosen = best_blocks(importance, ahead, always, self.top_blocks)
        chosen = jnp.repeat(jnp.moveaxis(chosen, 1, 2), h // self.num_kv_heads, axis=2)
        return SelectedBlocks(size, PerQuery(chosen), jnp.zeros((), jnp.int32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NativeSparseOptions(HeadOptions):
    """sum of sigmoid(x W) softmax(q k / sqrt(D)) v over compressed blocks, the best blocks' tokens
    and a window, each with keys and values of its own
    """

    source = "Yuan et al. 2025 (Native Sparse Attention), section 3, equations 5-12"
    implementations = ("dense", "blockwise")
    time = "T S H D; scores of what is not selected are masked"
    state = "2 K D (S + S / d + l + w), for a compressed block of l tokens every d"
    has_biases = False

    position: MechanismPart = choice(
        {**MODEL_POSITIONS, **ROTARY_POSITIONS},
        "none",
        "position encoding",
        others="mixer 'native_sparse' applies no others",
    )
    num_kv_heads: int = size_option(0, "K, key/value heads; 0: num_heads")
    compress_length: int = size_option(32, "l, tokens of a compressed block", least=1)
    compress_stride: int = size_option(
        16, "d, tokens between the starts of compressed blocks", least=1
    )
    block_length: int = length_option(0, "tokens of a block that is selected whole; 0: 64")
    top_blocks: int = size_option(
        0, "blocks selected, the first, the query's own and the one before included; 0: 16"
    )
    window: int = length_option(0, "latest tokens seen, the query's own included; 0: 512")
    block_size: int = length_option(
        0, "tokens per block or chunk, in implementations that have them; 0: automatic"
    )

    def sizes(self, context: Context) -> Sizes:
        """Returns the sizes of the heads; see `HeadOptions`."""
        return with_kv_heads(super().sizes(context), self.num_kv_heads)

    def default_implementation(self, context: Context) -> str:
        """Returns blocks for long sequences."""
        return "dense" if context.max_length <= DENSE_UP_TO else "blockwise"

    def make(self, context: Context) -> NativeSparse:
        """Returns native sparse attention.

        Raises:
          OptionError: the stride does not divide a length, or too few blocks are selected.
        """
        stride, block, top = self.compress_stride, self.block_length or 64, self.top_blocks or 16
        for name, length in (("compress_length", self.compress_length), ("block_length", block)):
            if length % stride:
                message = f"must be a multiple of compress_stride = {stride}"
                raise OptionError(name, length, message)
        if top < FIXED_BLOCKS:
            message = f"must be at least {FIXED_BLOCKS}: the first, the query's own, the one before"
            raise OptionError("top_blocks", top, message)
        sizes = self.sizes(context)
        turns = isinstance(self.position, tuple(ROTARY_POSITIONS.values()))
        return build_from(
            NativeSparse,
            sizes,
            self,
            context,
            block_length=min(block, LONGEST // stride * stride),
            top_blocks=top,
            window_length=self.window or 512,
            score=scaled_dot(sizes.base_head_width),
            rotary=self.position.build(sizes) if turns else None,
            implementation=self.resolved_implementation(context),
        )
