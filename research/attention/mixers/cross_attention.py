"""Cross-attention: queries of one sequence attend to another sequence, the memory."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Array, Float, Integer

from research.attention.implementations.attend import attend
from research.attention.mixers.attention_options import ScoredOptions
from research.attention.mixers.mixer import AttentionTrace
from research.attention.mixers.mixer_options import Context, build_from
from research.attention.mixers.projections import (
    NORM_EPSILON,
    norm_scales,
    normalize_heads,
    projections,
    split_heads,
)
from research.attention.mixers.self_attention import dense_trace, gate_and_merge, project_and_attend
from research.attention.parameters import Parameter
from research.attention.parts.masks import Mask
from research.attention.parts.mechanism import PLAIN, Mechanism
from research.attention.parts.positions import Rotary

Positions = Integer[Array | np.ndarray, " N"]


@dataclasses.dataclass(frozen=True)
class CrossAttention:
    """Multi-head attention to a memory (Vaswani et al. 2017, section 3.2.3, encoder-decoder).

    Heads, parts and parameters are those of `SelfAttention`, but keys and values come from a
    memory of width M'. Either call it on a whole sequence, or call `project_memory` once per memory
    and then `attend` for every chunk of queries.

    Attributes:
      width: M, of the queries' sequence.
      memory_width: M', of the memory.
      num_heads: H.
      num_kv_heads: K, which divides H.
      head_width: D.
      mechanism: the attention mechanism, with positions in the two sequences; without arrays.
      rotary: rotates queries and keys by their positions; None for no rotation.
      qk_norm: "rms" normalizes queries and keys, as in `SelfAttention`; "none" does not.
      norm_epsilon: added to the mean square in that norm.
      output_gate: multiplies the heads' outputs by sigmoid(x W) (Qiu et al. 2025, section 2.2).
      implementation: a name in `IMPLEMENTATIONS`.
      block_size: for implementations that have blocks; 0 chooses.
      use_bias: adds a bias to each of the four projections.
      qkv_bias: adds a bias to those of queries, keys and values (Bai et al. 2023, section 2.3).
      init_stddev: initial standard deviation of the projections; 0 is 1 / sqrt(fan in).
      out_scale: multiplies the initial output projection.
    """

    width: int
    memory_width: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    mechanism: Mechanism = PLAIN
    rotary: Rotary | None = None
    qk_norm: str = "none"
    norm_epsilon: float = NORM_EPSILON
    output_gate: bool = False
    implementation: str = "dense"
    block_size: int = 0
    use_bias: bool = False
    qkv_bias: bool = False
    init_stddev: float = 0.02
    out_scale: float = 1.0

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters by name.

        Projections "query" (M, H, D), "key" and "value" (M', K, D) and "out" (H, D, M), their
        biases "query_bias" ... if any, gains "query_scale" and "key_scale" (D,) if these are
        normalized, "gate" if there is an output gate, and those of the mechanism.
        """
        found = projections(self, self.mechanism.required_projections, self.qkv_bias)
        of_memory = projections(dataclasses.replace(self, width=self.memory_width))
        found |= {name: of_memory[name] for name in ("key", "value") if name in found}
        if self.qk_norm != "none":
            found |= norm_scales(self.head_width, self.qk_norm)
        if self.output_gate:
            found["gate"] = projections(self, names=("query",))["query"]
        return found | self.mechanism.parameters()

    def __call__(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        memory: Float[Array, "B S N"],
        *,
        mask: Mask | None = None,
    ) -> Float[Array, "B T M"]:
        """Attends to the memory from a whole sequence at positions 0 .. T-1.

        Args:
          params: arrays of the shapes that `parameters` states.
          x: the sequence that queries are computed from.
          memory: the sequence of width M' at positions 0 .. S-1 that keys and values come from.
          mask: restricts the layer's own mask further: padding of the memory.

        Returns:
          (B, T, M) in the dtype of x. The heads of a query without an allowed key output zeros.

        Raises:
          Unsupported: the implementation lacks a part of the mechanism.
        """
        return self.attend(params, x, self.project_memory(params, memory), mask=mask)

    def project_memory(
        self, params: dict[str, Array], memory: Float[Array, "B S N"]
    ) -> dict[str, Float[Array, "B S K D"]]:
        """Returns the values "v" of the memory, and its keys "k" if the score needs keys."""
        kept = {"v": split_heads(params, "value", memory)}
        if "key" in self.mechanism.required_projections:
            k = split_heads(params, "key", memory)
            k = normalize_heads(self, params, "key", k)
            kept["k"] = k if self.rotary is None else self.rotary(k, np.arange(k.shape[1]))
        return kept

    def attend(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        keys_values: dict[str, Float[Array, "B S K D"]],
        *,
        mask: Mask | None = None,
        q_index: Positions | None = None,
    ) -> Float[Array, "B T M"]:
        """Attends to the keys and values that `project_memory` returned; otherwise as `__call__`.

        Args:
          params: arrays of the shapes that `parameters` states.
          x: the next T tokens of the sequence that queries are computed from.
          keys_values: keys and values.
          mask: restricts the layer's own mask further: padding of the memory.
          q_index: positions of the tokens; 0 .. T-1 if None.
        """
        # A single query gains nothing from blocks: its scores are linear in length anyway.
        implementation = "dense" if x.shape[1] == 1 else self.implementation
        attend_fn = functools.partial(
            attend, implementation=implementation, block_size=self.block_size
        )
        return self.merge(params, x, self._attend(attend_fn, params, x, keys_values, mask, q_index))

    def attention_trace(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        keys_values: dict[str, Float[Array, "B S K D"]],
        *,
        mask: Mask | None = None,
        q_index: Positions | None = None,
    ) -> AttentionTrace:
        """Returns the weights and values of `attend` for the same arguments; see `Mixer`."""
        return self._attend(dense_trace, params, x, keys_values, mask, q_index)

    def merge(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        head_outputs: Float[Array, "B T H D"],
    ) -> Float[Array, "B T M"]:
        """Gates and projects the heads' outputs; see `Mixer`."""
        return gate_and_merge(params, x, head_outputs)

    def _attend(self, attend_fn, params, x, keys_values, mask, q_index):
        """Returns `attend_fn(q, k, v, mechanism)` for the queries of x."""
        mechanism = self.mechanism.bind(params, mask)
        q_index = np.arange(x.shape[1]) if q_index is None else q_index
        kv_index = np.arange(keys_values["v"].shape[1])
        return project_and_attend(
            self, attend_fn, params, x, keys_values, mechanism, q_index, kv_index, length_mask=mask
        )


def make_cross(options: ScoredOptions, context: Context, memory_width: int) -> CrossAttention:
    """Returns cross-attention to a memory of this width.

    The mask compares positions in the two sequences, so it is usually "full".
    """
    return build_from(
        CrossAttention,
        options.sizes(context),
        options,
        context,
        mechanism=options.mechanism(context),
        memory_width=memory_width,
        rotary=options.build_rotary(context),
        implementation=options.resolved_implementation(context),
    )
