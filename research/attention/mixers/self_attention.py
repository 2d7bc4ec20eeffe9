"""Self-attention as a mixer: projections, heads, positions, and a cache to decode with."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from research.attention.implementations import dense
from research.attention.implementations.attend import attend, while_decoding
from research.attention.mixers import cache
from research.attention.mixers.attention_options import ScoredOptions
from research.attention.mixers.choice import Context, fill
from research.attention.mixers.mixer import Look, Mixer
from research.attention.mixers.projections import merge_heads, projections, split_heads
from research.attention.mixers.sequential.alignments import Content
from research.attention.parameters import Parameter
from research.attention.parts.biases import Bias
from research.attention.parts.focus import PredictedWindow
from research.attention.parts.masks import Mask, causal, full
from research.attention.parts.normalizers import Normalizer, softmax
from research.attention.parts.positions import Rotary
from research.attention.parts.scores import ScaledDot, Score


@dataclasses.dataclass(frozen=True)
class SelfAttention(Mixer):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2) with shared key heads.

    num_kv_heads = num_heads is multi-head, 1 is multi-query (Shazeer 2019, section 3), in between
    is grouped-query attention (Ainslie et al. 2023, section 2.2). Score, mask, biases and
    normalizer are static descriptions; what they learn is among the mixer's parameters.

    Attributes:
        width: M.
        num_heads: H.
        num_kv_heads: K, which divides H.
        head_width: D.
        score: how a query and a key match.
        mask: which pairs are allowed; hashable, so without arrays.
        biases: applied to the scores in order.
        normalizer: from scores to weights.
        focus: a window whose place each query predicts; None for no such window.
        rotary: rotates queries and keys by their positions; None does not.
        output_gate: multiplies what the heads read by sigmoid(x W) (Qiu et al. 2025, section 2.2).
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
    focus: PredictedWindow | None = None
    rotary: Rotary | None = None
    output_gate: bool = False
    implementation: str = "dense"
    block_size: int = 0
    use_bias: bool = False
    init_stddev: float = 0.02
    out_scale: float = 1.0

    def parameters(self) -> dict[str, Parameter]:
        """Projections "query", "key", "value", "out", their biases "query_bias" ... if any, "gate",
        and what the parts learn: "score_...", "biases_...", "normalizer_...", "focus_..."."""
        found = projections(self, read=(*self.score.reads, "value"))
        if self.output_gate:
            found["gate"] = projections(self, read=("query",))["query"]
        return found | self._content.parameters()

    def __call__(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> Float[Array, "B T M"]:
        """Self-attention over a whole sequence; see ``Mixer``."""
        index = np.arange(x.shape[1])
        q, kept = self._query(params, x, index), self._remembered(params, x, index)
        allowed = self.mask if mask is None else self.mask & mask
        out = self._read(params, q, kept, allowed, self.implementation, index, index)
        return self.merge(params, x, out)

    def look(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> Look:
        """The weights and values of a whole sequence; see ``Mixer``."""
        index = np.arange(x.shape[1])
        q, kept = self._query(params, x, index), self._remembered(params, x, index)
        allowed = self.mask if mask is None else self.mask & mask
        return self._look(q, kept, self._mechanism(params, q, allowed, index, index))

    def merge(
        self, params: dict[str, Array], x: Float[Array, "B T M"], read: Float[Array, "B T H D"]
    ) -> Float[Array, "B T M"]:
        """Gates and projects what the heads read; see ``Mixer``."""
        read = read.astype(x.dtype)
        if self.output_gate:
            read = read * jax.nn.sigmoid(split_heads({"gate": params["gate"]}, "gate", x))
        return merge_heads(params, read)

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """An empty cache of "k" and "v" (batch, slots, K, D); see ``cache.empty``."""
        shape = (self.num_kv_heads, self.head_width)
        names = ("k", "v") if "key" in self.score.reads else ("v",)
        return cache.empty(self.mask, batch, length, dict.fromkeys(names, shape), dtype)

    def extend(
        self, params: dict[str, Array], state: PyTree, x: Float[Array, "B T M"]
    ) -> tuple[PyTree, Float[Array, "B T M"]]:
        """The next T tokens; see ``Mixer``. A prefix has to come whole, in the first chunk."""
        index = cache.positions(state, x.shape[1])
        q, new = self._query(params, x, index), self._remembered(params, x, index)
        state, seen = cache.extend(self.mask, state, new)
        implementation = while_decoding(self.implementation, x.shape[1])
        allowed = self.mask & cache.filled
        out = self._read(params, q, seen, allowed, implementation, index, seen["positions"])
        return state, self.merge(params, x, out)

    def remember(
        self, params: dict[str, Array], x: Float[Array, "B T M"]
    ) -> dict[str, Float[Array, "B T K D"]]:
        """What is kept of tokens, "v" and mostly "k", before they have a position."""
        kept = {"v": split_heads(params, "value", x)}
        if "key" in self.score.reads:
            kept["k"] = split_heads(params, "key", x)
        return kept

    def recall(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        kept: dict[str, Float[Array, "B S K D"]],
        q_index: Int[Array, " T"],
        kv_index: Int[Array, " S"],
        mask: Mask,
    ) -> Float[Array, "B T M"]:
        """What tokens at these positions read of what was kept of others at theirs.

        Args:
            params: as in ``__call__``.
            x: the tokens that read.
            kept: what is read, as ``remember`` gives it.
            q_index: positions of the tokens that read.
            kv_index: positions of what is read.
            mask: restricts the mixer's own further.
        """
        q, kept = self._query(params, x, q_index), self._placed(kept, kv_index)
        implementation = while_decoding(self.implementation, x.shape[1])
        allowed = self.mask & mask
        out = self._read(params, q, kept, allowed, implementation, q_index, kv_index)
        return self.merge(params, x, out)

    def _query(self, params, x, index):
        if "query" not in self.score.reads:
            shape = (*x.shape[:2], self.num_heads, self.head_width)
            return jnp.zeros(shape, x.dtype)
        return self._rotated(split_heads(params, "query", x), index)

    def _remembered(self, params, x, index):
        """What is kept of the tokens for later queries."""
        return self._placed(self.remember(params, x), index)

    def _placed(self, kept, index):
        return kept | {"k": self._rotated(kept["k"], index)} if "k" in kept else kept

    def _rotated(self, x, index):
        return x if self.rotary is None else self.rotary(x, index)

    def _read(self, params, q, kept, mask, implementation, q_index, kv_index):
        """What the heads see, (B, T, H, D)."""
        return attend(
            q,
            kept.get("k", kept["v"]),
            kept["v"],
            **self._mechanism(params, q, mask, q_index, kv_index),
            implementation=implementation,
            block_size=self.block_size,
        )

    def _look(self, q, kept, mechanism):
        return looked(q, kept.get("k", kept["v"]), kept["v"], mechanism)

    @property
    def _content(self) -> Content:
        """How queries read keys; the mask is given with every call."""
        return Content(self.score, full(), self.biases, self.normalizer, self.focus)

    def _mechanism(self, params, q, mask, q_index, kv_index):
        """The parts with their learned arrays in place, as keywords of ``attend``."""
        return self._content.mechanism(params, q, q_index, kv_index, mask)


def looked(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K Dv"],
    mechanism: dict[str, Any],
) -> Look:
    """What ``attend(q, k, v, **mechanism)`` reads, by its dense form."""
    unmasked = {n: part for n, part in mechanism.items() if n not in ("mask", "normalizer")}
    return Look(dense.weights(q, k, **mechanism), v, dense.scores(q, k, **unmasked))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftmaxOptions(ScoredOptions):
    """normalizer(score(q, k) + bias, mask) v, per head"""

    source = "Vaswani et al. 2017, equation 1 and section 3.2.2"
    time = "T S H D"
    state = "2 S K D; a window of w keys: 2 w K D"
    where = ("self", "cross", "decoder")

    def make(self, context: Context) -> SelfAttention:
        """Returns softmax attention, or whatever replaces its softmax."""
        return fill(
            SelfAttention,
            self.sizes(context),
            self,
            context,
            **self.parts(context),
            rotary=self.build_rotary(context),
            implementation=self.resolved(context),
        )
