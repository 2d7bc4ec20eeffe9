"""Transformer layers: thin Flax shells around the mixers of `research.attention`.

A block adds a mixer and then a feed-forward layer to its input, with norms where `norm_placement`
says (see `residual`; by default before each, x + mixer(norm(x)), Xiong 2020). The layers are a
scan over repeats of a pattern of blocks (usually one) with stacked parameters, so compile time does
not grow with depth. Parameters are float32; activations have `dtype`.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.attention.implementations.flash import ATTENTION_OUT
from research.attention.mixers.across_layers import AcrossLayers
from research.attention.mixers.cross_attention import CrossAttention
from research.attention.mixers.mixer import Mixer, places_of
from research.attention.mixers.self_attention import Earlier, Handed
from research.attention.parts.masks import Mask
from research.models.canon import Canon, empty_pasts
from research.models.mixer_layer import LOSSES, SCORES, MixerLayer
from research.models.primitives import ACTIVATIONS, GATED, linear, matrix_init
from research.models.residual import parallel_residual, residual

KEPT: dict[str, Any] = {
    "nothing": None,
    # Products of activations with each other, such as scores, have batch dimensions.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention_out": jax.checkpoint_policies.save_only_these_names(ATTENTION_OUT),
}
"""{name: policy of `jax.checkpoint`}."""

LAYERED: Mapping[Any, int] = {"params": 0, "captured": 0, "given": 0, LOSSES: 0, SCORES: 0}
"""Flax collections that the scan over layers stacks: parameters, the activations that
`research.interpret.capture` records ("captured") and patches ("given"), and what mixers report."""


@dataclass(frozen=True)
class TransformerConfig:
    """Static description of a stack of transformer layers, with the keys of `config.model`.

    Layer i uses mixers[i % len(mixers)].
    """

    vocab_size: int
    length: int
    width: int
    num_layers: int
    feedforward: int
    activation: str
    norm: str
    norm_epsilon: float
    norm_placement: str
    embedding_norm: bool
    parallel_residual: bool
    canon: str
    use_bias: bool
    tie_embeddings: bool
    base_width: int
    output_cap: float
    output_scale: float
    output_bias: bool
    embedding_scale: float
    loss_chunk: int
    dropout: float
    init_stddev: float
    embedding_stddev: float
    dtype: str
    remat: bool
    remat_keeps: str
    position: str
    mixers: tuple[Mixer, ...]
    implementation: str


class FeedForward(nn.Module):
    """Two matrices and an activation (Vaswani 2017, eq. 2); GLUs have a gate (Shazeer 2020)."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T M"], filtered: Callable[[Array], Array] | None = None
    ) -> Float[Array, "B T M"]:
        """Returns the output.

        Args:
          x: the input.
          filtered: applied to what the activation gets, beside the gate if there is one. Its
            parameters are among those of this layer.
        """
        c = self.config
        names = ("in", "gate") if c.activation in GATED else ("in",)
        y, *gate = (self.project(name, x, c.feedforward) for name in names)
        if filtered is not None:
            y, *gate = jnp.split(filtered(jnp.concatenate([y, *gate], -1)), len(names), -1)
        y = ACTIVATIONS[c.activation](y)
        if gate:
            y = y * gate[0]
        # GPT-2 initialization: scale by 1 / sqrt(2 L), since 2 L sublayers add to the residual
        # stream (Radford et al. 2019, section 2.3), so its variance does not grow with depth.
        return self.project("out", y, c.width, (2 * c.num_layers) ** -0.5)

    def project(self, name: str, x: jax.Array, width: int, scale: float = 1.0) -> jax.Array:
        """Returns x times the matrix `name`, whose initial values are multiplied by `scale`."""
        init = matrix_init(self.config.init_stddev)
        kernel = self.param(
            name, lambda *args: init(*args) * scale, (x.shape[-1], width), jnp.float32
        )
        y = linear(x, kernel)
        if self.config.use_bias:
            y = y + self.param(f"{name}_bias", nn.initializers.zeros, (width,)).astype(x.dtype)
        return y


class Cross(nn.Module):
    """Cross-attention to a source.

    Owns no parameters: they are stacked outside the scan over layers, so that keys and values of
    all layers can be projected before it.
    """

    cross: CrossAttention

    def __call__(
        self,
        x: Float[Array, "B T M"],
        params: dict[str, Array],
        keys_values: dict[str, Float[Array, "B S K D"]],
        mask: Mask | None,
        q_index: Any,
    ) -> Float[Array, "B T M"]:
        return self.cross.attend(params, x, keys_values, mask=mask, q_index=q_index)


class Block(nn.Module):
    """One transformer layer, on a whole sequence or, given a decoding state, on its continuation.

    Cross-attention, if any, comes between the mixer and the feed-forward layer.
    """

    config: TransformerConfig
    mixer: Mixer
    deterministic: bool
    cross: CrossAttention | None = None
    weights: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T M"],
        state: Any,
        source: tuple | None = None,
        mask: Mask | None = None,
        q_index: Any = None,
        earlier: Earlier | None = None,
    ) -> tuple[Float[Array, "B T M"], tuple]:
        """Returns the layer's output, and the mixer's new state, the weights and what it hands on.

        The state is None without a decoding state, the cross-attention weights are None unless
        requested, and what is handed on is None without `earlier`.

        Args:
          x: the next T positions.
          state: decoding state of the mixer; None for a whole sequence.
          source: parameters of the cross-attention, and its projected keys and values.
          mask: padding of the source with cross-attention; otherwise segments of x, or its padding
            for a mixer that looks ahead.
          q_index: positions of x, for cross-attention; None: 0 .. T-1.
          earlier: what earlier layers handed over; None: no layer of the model uses another's.
        """
        c = self.config
        drop = nn.Dropout(c.dropout, deterministic=self.deterministic)
        weights, handed, own_mask = None, None, mask if self.cross is None else None
        pasts = empty_pasts(c, len(x), x.dtype)
        places = places_of("canon", own_mask) if pasts else None
        if pasts and state is not None:
            state, pasts = state["mixer"], dict(state["canon"])

        def canon(point: str, y: Array) -> Array:
            if point in pasts:
                layer = Canon("hidden_taps" if point == "d" else "taps", name=f"canon_{point}")
                y, pasts[point] = layer(y, pasts[point], places)
            return y

        def mix(y: Array) -> Array:
            nonlocal state, handed
            layer = MixerLayer(self.mixer, name="mixer")
            y, state, handed = layer(canon("a", y), state, own_mask, earlier)
            return drop(y)

        def feed_forward(y: Array) -> Array:
            filtered = functools.partial(canon, "d") if "d" in pasts else None
            return drop(FeedForward(c, name="feedforward")(canon("c", y), filtered))

        def attend_to_source(y: Array) -> Array:
            nonlocal weights
            y, weights = self.attend_to_source(y, source, mask, q_index)
            return drop(y)

        if c.parallel_residual:
            x = parallel_residual(c, x, {"norm1": mix, "norm2": feed_forward})
        else:
            x = residual(c, "norm1", x, mix)
            if self.cross is not None and source is not None:
                x = residual(c, "norm_cross", x, attend_to_source)
            if c.feedforward:
                x = residual(c, "norm2", x, feed_forward)
        if pasts and state is not None:
            state = {"mixer": state, "canon": pasts}
        return x, (state, weights, handed)

    def attend_to_source(
        self, y: Float[Array, "B T M"], source: Any, mask: Mask | None, q_index: Any
    ) -> tuple[Float[Array, "B T M"], Float[Array, "B H T S"] | None]:
        """Returns cross-attention of y to the source, and its weights if they are requested."""
        assert self.cross is not None
        weights, (params, keys_values) = None, source
        if self.weights:
            weights = self.cross.attention_trace(
                params, y, keys_values, mask=mask, q_index=q_index
            ).weights
        return Cross(self.cross, name="cross")(y, params, keys_values, mask, q_index), weights


def recomputed(c: TransformerConfig, block: Any) -> Any:
    """Returns a class of layers, recomputed in the backward pass if the config says so."""
    if not c.remat:
        return block
    # The loop of the scan already keeps XLA from merging the recomputation with the forward pass,
    # so the barriers of prevent_cse would only cost time.
    return nn.remat(block, prevent_cse=False, policy=KEPT[c.remat_keeps])


class Pattern(nn.Module):
    """The blocks of one repeat of the pattern, named "0", "1", ..., each with its own mixer."""

    config: TransformerConfig
    deterministic: bool
    cross: CrossAttention | None = None
    weights: bool = False

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "B T M"], Earlier | None],
        states: tuple | None,
        sources: tuple | None,
        mask: Mask | None,
        q_index: Any,
    ) -> tuple[tuple[Float[Array, "B T M"], Earlier | None], tuple]:
        c, (x, earlier) = self.config, carry
        found = []
        block = recomputed(c, Block)
        for i, mixer in enumerate(c.mixers):
            layer = block(c, mixer, self.deterministic, self.cross, self.weights, name=str(i))
            old = None if states is None else states[i]
            source = jax.tree.map(lambda a, i=i: a[i], sources)
            x, (state, weights, handed) = layer(x, old, source, mask, q_index, earlier)
            earlier = _handed_on(earlier, handed)
            found.append((state, weights))
        new_states, weights = zip(*found, strict=True)
        new_states = None if states is None else new_states
        # Keys are shared within a repeat; only the first layer's values are for all of them.
        earlier = None if earlier is None else earlier._replace(tokens=None)
        return (x, earlier), (new_states, jnp.stack(weights) if self.weights else None)


def _handed_on(earlier: Earlier | None, handed: Handed | None) -> Earlier | None:
    """Returns what the layer after the one that handed this over gets."""
    if earlier is None or handed is None:
        return earlier
    if earlier.values is None or earlier.has_values is None or handed.values is None:
        return earlier._replace(tokens=handed.tokens)
    values = jnp.where(earlier.has_values, earlier.values, handed.values)
    return Earlier(values, jnp.ones((), bool), handed.tokens)


def _nothing_earlier(c: TransformerConfig, x: Float[Array, "B T M"]) -> Earlier | None:
    """Returns what the first layer gets; None if no layer uses another's values or keys."""
    users = [mixer for mixer in c.mixers if isinstance(mixer, AcrossLayers)]
    if not users:
        return None
    if all(mixer.value_residual == "none" for mixer in users):
        return Earlier()
    heads = (users[0].num_kv_heads, users[0].head_width)
    return Earlier(jnp.zeros((*x.shape[:2], *heads), x.dtype), jnp.zeros((), bool))


def run_layers(
    c: TransformerConfig,
    x: Float[Array, "B T M"],
    states: Any = None,
    sources: Any = None,
    mask: Mask | None = None,
    q_index: Any = None,
    *,
    deterministic: bool,
    cross: CrossAttention | None = None,
    weights: bool = False,
) -> tuple[Float[Array, "B T M"], tuple]:
    """Returns the output of all layers, their new states and their cross-attention weights.

    To be called within the module that owns the layers, a scan named "layers" over `Pattern`.

    Args:
      c: config of the layers.
      x: the next T positions.
      states: decoding states of the layers, stacked; None for a whole sequence.
      sources: see `Block`, stacked.
      mask: see `Block`.
      q_index: see `Block`.
      deterministic: disables dropout.
      cross: the cross-attention of the layers.
      weights: whether to return the weights of the cross-attention; None otherwise.
    """
    scan = nn.scan(
        Pattern,
        variable_axes=LAYERED,
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, 0, nn.broadcast, nn.broadcast),
        length=c.num_layers // len(c.mixers),
    )(c, deterministic, cross, weights, name="layers")
    (x, _), found = scan((x, _nothing_earlier(c, x)), states, sources, mask, q_index)
    return x, found
