"""Transformer layers: thin Flax shells around the mixers of `research.attention`.

Pre-norm blocks (Xiong 2020): x + mixer(norm(x)), then x + feedforward(norm(x)). The layers are a
scan over repeats of a pattern of blocks (usually one) with stacked parameters, so compile time does
not grow with depth. Parameters are float32; activations have `dtype`. Stacks of layers for an
encoder and for a decoder with cross-attention follow at the end.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from research.attention.implementations.flash import ATTENTION_OUT
from research.attention.mixers.cross_attention import CrossAttention
from research.attention.mixers.mixer import Mixer
from research.attention.mixers.projections import NORM_EPSILON
from research.attention.parameters import matrix_axes, table_axes, vector_axes
from research.attention.parts.masks import Mask, padding
from research.attention.spec import MixerSpec
from research.models.layers import (
    ModelSize,
    hidden_stddev,
    implementation_names,
    make_mixers,
)
from research.models.primitives import (
    ACTIVATIONS,
    NORMS,
    Norm,
    linear,
    matrix_init,
)
from research.options import option
from research.parallel.rules import constrain

# Logical axes of the residual stream, and of all parameters outside the mixers. The rows of the
# position table are not sharded, because they are few.
HIDDEN = ("batch", "length", "")
AXES = {
    "embedding": table_axes("vocab", "width"),
    "head": table_axes("width", "vocab"),
    "position": table_axes("", "width"),
    "in": matrix_axes("width", "feedforward"),
    "gate": matrix_axes("width", "feedforward"),
    "out": matrix_axes("feedforward", "width"),
    "in_bias": vector_axes("feedforward"),
    "gate_bias": vector_axes("feedforward"),
    "out_bias": vector_axes("width"),
    "scale": vector_axes("width"),
    "bias": vector_axes("width"),
}

KEPT: dict[str, Any] = {
    "nothing": None,
    # Products of activations with each other, such as scores, have batch dimensions.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention_out": jax.checkpoint_policies.save_only_these_names(ATTENTION_OUT),
}
"""{name: policy of `jax.checkpoint`}."""

OF_OUTPUT = ("tie_embeddings", "base_width", "output_cap", "loss_chunk")
"""Options that only models with an output matrix of their own have."""

LAYERED: Mapping[Any, int] = {"params": 0, "captured": 0, "given": 0}
"""Flax collections that the scan over layers stacks: parameters, and the activations that
`research.interpret.capture` records ("captured") and patches ("given")."""

SourceKeysValues = dict[str, Float[Array, "L B S K D"]]
"""Projected keys and values of a source, for the cross-attention of every layer."""


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
    use_bias: bool
    tie_embeddings: bool
    base_width: int
    output_cap: float
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


class MixerLayer(nn.Module):
    """Owns the parameters that a mixer declares."""

    mixer: Mixer

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T M"], state: Any, mask: Mask | None = None
    ) -> tuple[Float[Array, "B T M"], Any]:
        params = {
            name: self.param(name, p.init, p.shape) for name, p in self.mixer.parameters().items()
        }
        if state is None:
            return self.mixer(params, x, mask=mask), None
        state, y = self.mixer.extend(params, state, x)
        return y, state


class FeedForward(nn.Module):
    """Two matrices and an activation (Vaswani 2017, eq. 2); SwiGLU has a gate (Shazeer 2020)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T M"]) -> Float[Array, "B T M"]:
        c = self.config
        y = ACTIVATIONS[c.activation](self.project("in", x, c.feedforward))
        if c.activation == "swiglu":
            y = y * self.project("gate", x, c.feedforward)
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
    ) -> tuple[Float[Array, "B T M"], tuple]:
        """Returns the layer's output, and a pair of the mixer's new state and the weights.

        The state is None without a decoding state, and the cross-attention weights are None unless
        requested.

        Args:
          x: the next T positions.
          state: decoding state of the mixer; None for a whole sequence.
          source: parameters of the cross-attention, and its projected keys and values.
          mask: padding of the source with cross-attention; otherwise segments of x, or its padding
            for a mixer that looks ahead.
          q_index: positions of x, for cross-attention; None: 0 .. T-1.
        """
        c = self.config
        drop = nn.Dropout(c.dropout, deterministic=self.deterministic)
        y = Norm(c.norm, c.use_bias, c.norm_epsilon, name="norm1")(x)
        y, state = MixerLayer(self.mixer, name="mixer")(
            y, state, mask if self.cross is None else None
        )
        x = constrain(x + drop(y), *HIDDEN)
        weights = None
        if self.cross is not None and source is not None:
            params, keys_values = source
            y = Norm(c.norm, c.use_bias, c.norm_epsilon, name="norm_cross")(x)
            if self.weights:
                weights = self.cross.attention_trace(
                    params, y, keys_values, mask=mask, q_index=q_index
                ).weights
            y = Cross(self.cross, name="cross")(y, params, keys_values, mask, q_index)
            x = constrain(x + drop(y), *HIDDEN)
        if c.feedforward:
            y = FeedForward(c, name="feedforward")(
                Norm(c.norm, c.use_bias, c.norm_epsilon, name="norm2")(x)
            )
            x = constrain(x + drop(y), *HIDDEN)
        return x, (state, weights)


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
        x: Float[Array, "B T M"],
        states: tuple | None,
        sources: tuple | None,
        mask: Mask | None,
        q_index: Any,
    ) -> tuple[Float[Array, "B T M"], tuple]:
        c = self.config
        found = []
        block = recomputed(c, Block)
        for i, mixer in enumerate(c.mixers):
            layer = block(c, mixer, self.deterministic, self.cross, self.weights, name=str(i))
            old = None if states is None else states[i]
            source = jax.tree.map(lambda a, i=i: a[i], sources)
            x, new = layer(x, old, source, mask, q_index)
            found.append(new)
        new_states, weights = zip(*found, strict=True)
        new_states = None if states is None else new_states
        return x, (new_states, jnp.stack(weights) if self.weights else None)


def layers(
    c: TransformerConfig,
    deterministic: bool,
    cross: CrossAttention | None = None,
    weights: bool = False,
) -> nn.Module:
    """Returns all layers as a scan named "layers" over `Pattern`, which it is called like."""
    return nn.scan(
        Pattern,
        variable_axes=LAYERED,
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, 0, nn.broadcast, nn.broadcast),
        length=c.num_layers // len(c.mixers),
    )(c, deterministic, cross, weights, name="layers")


def finish_logits(c: TransformerConfig, logits: Float[Array, "B T V"]) -> Float[Array, "B T V"]:
    """Returns float32 logits, scaled from the base width and bounded by cap * tanh(x / cap).

    Sources: Yang et al. 2022, table 8 (output multiplier); Gemma Team 2024 (Gemma 2), section 2.
    """
    logits = logits.astype(jnp.float32)
    if c.base_width:
        logits = logits * (c.base_width / c.width)
    if c.output_cap:
        logits = c.output_cap * jnp.tanh(logits / c.output_cap)
    return constrain(logits, "batch", "length", "vocab")


class EncoderStack(nn.Module):
    """Encoder layers followed by a norm."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S M"], mask: Mask | None, deterministic: bool
    ) -> Float[Array, "B S M"]:
        c = self.config
        x = layers(c, deterministic)(x, None, None, mask, None)[0]
        return Norm(c.norm, c.use_bias, c.norm_epsilon, name="norm")(x)


class DecoderStack(nn.Module):
    """Decoder layers (with cross-attention) followed by a norm."""

    config: TransformerConfig
    cross: CrossAttention

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T M"],
        state: Any,
        source: tuple[dict[str, Array], SourceKeysValues],
        valid: Bool[Array, "B S"],
        deterministic: bool,
        weights: bool,
    ) -> tuple[Float[Array, "B T M"], Any, Float[Array, "B N T S"] | None]:
        """Returns the outputs, the new state, and the cross-attention weights of N = L H heads.

        Args:
          x: the next T positions.
          state: decoding state before them; None for a whole sequence.
          source: stacked parameters of the cross-attention, and its projected keys and values.
          valid: False at source padding.
          deterministic: disables dropout.
          weights: whether to return the weights (float32); None otherwise.
        """
        c, each = self.config, len(self.config.mixers)
        sources = jax.tree.map(lambda a: a.reshape(-1, each, *a.shape[1:]), source)
        q_index = old = None
        if state is not None:
            q_index = state["step"] + jnp.arange(x.shape[1], dtype=jnp.int32)
            old = state["layers"]
        blocks = layers(c, deterministic, self.cross, weights)
        x, (new, found) = blocks(x, old, sources, padding(valid), q_index)
        if state is not None:
            state = {"step": state["step"] + x.shape[1], "layers": new}
        if weights:
            # From (repeats, pattern, B, H, T, S) to (B, L H, T, S): merge repeats and pattern into
            # layers, then put layers next to heads to merge those.
            found = jnp.moveaxis(found.reshape(-1, *found.shape[2:]), 1, 0)
            found = found.reshape(found.shape[0], -1, *found.shape[3:]).astype(jnp.float32)
        return Norm(c.norm, c.use_bias, c.norm_epsilon, name="norm")(x), state, found


def init_state(config: TransformerConfig, batch: int, length: int) -> dict:
    """Returns the decoding state of `batch` empty sequences with room for `length` tokens."""
    repeats = config.num_layers // len(config.mixers)
    dtype = jnp.dtype(config.dtype)
    layers = tuple(mixer.init_state(batch, length, dtype) for mixer in config.mixers)
    stacked = jax.tree.map(lambda a: jnp.stack([a] * repeats), layers)
    return {"step": jnp.int32(0), "layers": stacked}


OF_BLOCKS = ("feedforward", "activation", "norm", "norm_epsilon", "remat", "remat_keeps")
"""Options that models read only where they have transformer blocks."""


@dataclass(frozen=True, kw_only=True)
class TransformerOptions(ModelSize):
    """Options of models that consist of transformer blocks."""

    feedforward: int = option(
        256, "hidden width of the feed-forward layers; 0: no feed-forward layers", least=0
    )
    activation: str = option(
        "gelu", "activation function of the feed-forward layers", allowed=tuple(ACTIVATIONS)
    )
    norm: str = option("rmsnorm", "type of the norm before each sublayer", allowed=NORMS)
    norm_epsilon: float = option(
        NORM_EPSILON, "added to the mean square in these norms, and in model.qk_norm", above=0
    )
    remat: bool = option(False, "recompute each layer in the backward pass to save memory")
    remat_keeps: str = option(
        "nothing",
        "what is kept of a layer, and not recomputed: dots: products with parameters; "
        "attention_out: what softmax attention returns",
        allowed=tuple(KEPT),
        when={"remat": (True,)},
    )


def transformer_config(
    model: Any, vocab_size: int, length: int, specs: tuple[MixerSpec, ...], **changes: Any
) -> TransformerConfig:
    """Returns the config of transformer layers with the given mixers and a model's options."""
    values: dict[str, Any] = {
        "tie_embeddings": True,
        "base_width": 0,
        "output_cap": 0.0,
        "loss_chunk": 0,
        "init_stddev": hidden_stddev(model),
        "position": "none",
        "vocab_size": vocab_size,
        "length": length,
        "mixers": make_mixers(specs),
        # The options hold the requested name, possibly "auto"; the config holds the resolved one.
        "implementation": implementation_names(specs),
    }
    for one in fields(TransformerConfig):
        if one.name not in values or one.name in OF_OUTPUT:
            values[one.name] = getattr(model, one.name, values.get(one.name))
    return TransformerConfig(**values | changes)
