"""Attention of recurrent decoders: named mechanisms and `DecoderAttention`."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from research.attention.mixers.mixer_options import Context, HeadOptions
from research.attention.mixers.projections import merge_heads, projections, split_heads
from research.attention.mixers.sequential.alignments import Alignment, weighted_sum
from research.attention.mixers.sequential.stepwise import make_alignment
from research.attention.parameters import Parameter
from research.attention.parts.masks import padding
from research.attention.spec import MixerSpec
from research.errors import UserError
from research.models.layers import Layer, ModelOptions
from research.options import declarations

FIXED_INITIAL, FIXED_EVERY_STEP, MULTI_HEAD = "fixed_initial", "fixed_every_step", "multi_head"

LUONG_WINDOW = 10
"""Half-width D of the local attention window (Luong et al. 2015, section 4.1)."""


class Attention(NamedTuple):
    """Definition of a named attention mechanism.

    Attributes:
      deltas: overrides of mechanism keys, on top of mixer=softmax, mask=full and position=none.
      source: the paper, with section or equation.
      defaults: values of required keys, used if the config leaves them at 0.
    """

    deltas: dict[str, Any]
    source: str
    defaults: dict[str, int] = {}


ATTENTIONS: dict[str, Attention] = {
    FIXED_INITIAL: Attention({}, "Sutskever et al. 2014, section 2"),
    FIXED_EVERY_STEP: Attention({}, "Cho et al. 2014, section 2.2"),
    "additive": Attention({"score": "additive"}, "Bahdanau et al. 2015, appendix A.1.2"),
    "dot": Attention({"score": "dot"}, "Luong et al. 2015, section 3.1"),
    "scaled_dot": Attention({"score": "scaled_dot"}, "Vaswani et al. 2017, equation 1"),
    "general": Attention({"score": "general"}, "Luong et al. 2015, section 3.1"),
    "concat": Attention({"score": "concat"}, "Luong et al. 2015, section 3.1"),
    "cosine": Attention({"score": "cosine"}, "Liu et al. 2022 (Swin V2), equation 2"),
    "location": Attention({"score": "location"}, "Luong et al. 2015, equation 8"),
    "local_m": Attention(
        {"score": "general", "mask": "local"},
        "Luong et al. 2015, section 3.2",
        {"window": LUONG_WINDOW},
    ),
    "local_p": Attention(
        {"score": "general"},
        "Luong et al. 2015, equations 9-10",
        {"predicted_window": LUONG_WINDOW},
    ),
    "location_aware": Attention(
        {"mixer": "location_aware"}, "Chorowski et al. 2015, equations 8-9"
    ),
    "coverage": Attention({"mixer": "coverage"}, "See et al. 2017, equations 10-11"),
    "monotonic": Attention({"mixer": "monotonic"}, "Raffel et al. 2017, equations 9-14"),
    "monotonic_chunkwise": Attention(
        {"mixer": "monotonic_chunkwise"}, "Chiu and Raffel 2018, section 2.3"
    ),
    MULTI_HEAD: Attention({"score": "scaled_dot"}, "Vaswani et al. 2017, section 3.2.2"),
}


SET_BY_ATTENTION = ("mixer", "score", "mask", "position", "implementation")
"""Mechanism keys that `model.attention` determines; `config.model` cannot set them here."""


@dataclass(frozen=True)
class DecoderAttention:
    """Attends to encoder states with an alignment model.

    Attributes:
      width: N, width of queries, encoder states and context vectors.
      num_heads: H.
      num_kv_heads: K, which divides H.
      head_width: D.
      alignment: computes attention weights from a query and the memory.
      projected: whether queries, keys, values and outputs are learned projections (Vaswani 2017,
        section 3.2.2). If not, the single head uses the states themselves as keys and values.
      use_bias: adds biases to the projections.
      init_stddev: initial standard deviation of the projections; 0: 1 / sqrt(fan in).
      out_scale: multiplies the initial output projection.
    """

    width: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    alignment: Alignment
    projected: bool
    use_bias: bool = False
    init_stddev: float = 0.02
    out_scale: float = 1.0

    def parameters(self) -> dict[str, Parameter]:
        """Returns the alignment's parameters as "alignment_...", and the projections' if any."""
        learned = self.alignment.parameters().items()
        found = {f"alignment_{name}": p for name, p in learned}
        return found | (projections(self) if self.projected else {})

    def project_memory(
        self, params: dict[str, Array], states: Float[Array, "B S N"]
    ) -> dict[str, Any]:
        """Returns the memory: "values" (B, S, K, D) and "keys", the alignment's precomputed terms.

        Without projections, keys equal values and are not stored twice.
        """
        if self.projected:
            k, values = (split_heads(params, name, states) for name in ("key", "value"))
            return {
                "values": values,
                "keys": self.alignment.precompute_keys(self._learned(params), k),
            }
        values = states[:, :, None]
        keys = self.alignment.precompute_keys(self._learned(params), values)
        return {"values": values, "keys": {n: a for n, a in keys.items() if n != "k"}}

    def init_state(self, values: Float[Array, "B S K D"]) -> PyTree:
        """Returns the alignment's state before the first query."""
        return self.alignment.init_state(*values.shape[:2], values.dtype)

    def align(
        self,
        params: dict[str, Array],
        h: Float[Array, "B N"],
        memory: dict[str, Any],
        valid: Bool[Array, "B S"],
        at: Int[Array, ""],
        state: PyTree,
    ) -> tuple[Float[Array, "B H S"], PyTree]:
        """Returns the weights of query number `at`, float32 or wider, and the new state."""
        q = split_heads(params, "query", h[:, None]) if self.projected else h[:, None, None]
        # Recompute the hidden layer of the energies, S x A values per query, in the backward pass:
        # that takes no longer than storing and loading it.
        step = jax.checkpoint(self.alignment.step, prevent_cse=False)
        keys = {"k": memory["values"], **memory["keys"]}
        index = jnp.arange(valid.shape[1])
        return step(self._learned(params), q, keys, at[None], index, padding(valid), state)

    def context_vector(
        self, params: dict[str, Array], weights: Float[Array, "B H S"], memory: dict[str, Any]
    ) -> Float[Array, "B N"]:
        """Returns the context vector of a query: the memory averaged with the given weights."""
        found = weighted_sum(weights, memory["values"])
        return (merge_heads(params, found) if self.projected else found[:, :, 0])[:, 0]

    def align_all(
        self,
        params: dict[str, Array],
        h: Float[Array, "B T N"],
        memory: dict[str, Any],
        valid: Bool[Array, "B S"],
    ) -> tuple[Float[Array, "B T H S"], Float[Array, "B T N"]]:
        """Returns the weights and context vectors of queries 0 .. T-1, computed in order."""

        def one(state: PyTree, query: tuple) -> tuple[PyTree, tuple]:
            weights, state = self.align(params, query[1], memory, valid, query[0], state)
            return state, (weights, self.context_vector(params, weights, memory))

        queries = jnp.arange(h.shape[1]), jnp.swapaxes(h, 0, 1)
        _, found = jax.lax.scan(one, self.init_state(memory["values"]), queries)
        weights, contexts = (jnp.swapaxes(a, 0, 1) for a in found)
        return weights, contexts

    def _learned(self, params: dict[str, Array]) -> dict[str, Array]:
        return {name: params[f"alignment_{name}"] for name in self.alignment.parameters()}


def decoder_attention_layer(model: ModelOptions, attention: str) -> Layer | None:
    """Returns the `Layer` of a recurrent model's attention, or None for a fixed vector.

    The name determines mixer, score, mask and position; all other mechanism keys of `config.model`
    apply.
    """
    if attention in (FIXED_INITIAL, FIXED_EVERY_STEP):
        return None
    chosen = ATTENTIONS[attention]
    shared = {key: getattr(model, key) for key in declarations(Context) if hasattr(model, key)}
    values = {**shared, **model.mechanism}
    # The name decides these keys, so values of `config.model` must not reach the alignment.
    decided = {"mixer": "softmax", "mask": "full", "position": "none", "implementation": "auto"}
    values |= decided | chosen.deltas
    values |= {key: n for key, n in chosen.defaults.items() if not values.get(key)}
    own = frozenset({*SET_BY_ATTENTION, *chosen.deltas})
    return Layer(values, own, frozenset(), f"model.attention={attention!r}: ")


def make_decoder_attention(
    model: ModelOptions, attention: str, length: int
) -> DecoderAttention | None:
    """Returns the attention that `model.attention` names, or None for a fixed vector.

    multi_head has projections even with a single head; like all others it takes num_heads from the
    config. Raises UserError.
    """
    if model.mechanism.get("implementation") not in (None, "auto", "recurrent"):
        raise UserError(
            f"model.implementation={model.mechanism['implementation']!r}: a recurrent model is "
            "computed one token after the other; leave it 'auto'."
        )
    layer = decoder_attention_layer(model, attention)
    if layer is None:
        return None
    spec = layer.spec(length)
    _check_usable(spec, attention)
    options: Any = spec.options
    assert isinstance(options, HeadOptions)
    sizes, context = options.sizes(spec.context), spec.context
    one = sizes.num_heads == 1 and sizes.head_width == sizes.width
    return DecoderAttention(
        width=sizes.width,
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_kv_heads,
        head_width=sizes.head_width,
        alignment=make_alignment(options, context),
        projected=not one or attention == MULTI_HEAD,
        use_bias=context.use_bias,
        init_stddev=context.init_stddev,
    )


def _check_usable(spec: MixerSpec, name: str) -> None:
    """Raises UserError for components that need all queries at once; a decoder has one."""
    for what, where in spec.chosen():
        if "decoder" not in where:
            raise UserError(
                f"model.attention={name!r}: a recurrent decoder cannot use {what}, which "
                f"is for {', '.join(where)}-attention."
            )
