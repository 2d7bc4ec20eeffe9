"""Decoder transformer: a thin Flax shell around the mixers of `research.attention`.

Pre-norm blocks (Xiong 2020): x + mixer(norm(x)), then x + feedforward(norm(x)). The layers are a
scan over repeats of a pattern of blocks (usually one) with stacked parameters, so compile time does
not grow with depth. Parameters are float32; activations have `dtype`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.attention.errors import Unsupported
from research.attention.mixers.cross_attention import CrossAttention
from research.attention.mixers.mixer import Mixer
from research.attention.parameters import Axes, matrix_axes, vector_axes
from research.attention.parts.masks import Mask
from research.attention.spec import MixerSpec
from research.models.activations import ACTIVATIONS
from research.models.layers import (
    Instead,
    Layer,
    ModelOptions,
    added_position,
    computed_instead,
    implementation_of,
    mixers_of,
    pattern,
)
from research.models.lookup import lookup
from research.models.model import Model
from research.models.positions import sinusoids
from research.models.projection import linear
from research.options import option
from research.parallel.rules import constrain
from research.tasks.task import Batch

# Logical axes of the residual stream, and of all parameters outside the mixers. The rows of the
# position table are not sharded, because they are few.
HIDDEN = ("batch", "length", "")
AXES = {
    "embedding": matrix_axes("vocab", "width"),
    "head": matrix_axes("width", "vocab"),
    "position": matrix_axes("", "width"),
    "in": matrix_axes("width", "feedforward"),
    "gate": matrix_axes("width", "feedforward"),
    "out": matrix_axes("feedforward", "width"),
    "in_bias": vector_axes("feedforward"),
    "gate_bias": vector_axes("feedforward"),
    "out_bias": vector_axes("width"),
    "scale": vector_axes("width"),
    "bias": vector_axes("width"),
}

LAYERED: Mapping[Any, int] = {"params": 0, "captured": 0, "given": 0}
"""Flax collections that the scan over layers stacks: parameters, and the activations that
`research.interpret.capture` records ("captured") and patches ("given")."""

NORMS = ("rmsnorm", "layernorm")
DTYPES = ("float32", "bfloat16")


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
    use_bias: bool
    tie_embeddings: bool
    dropout: float
    init_stddev: float
    embedding_stddev: float
    dtype: str
    remat: bool
    position: str
    mixers: tuple[Mixer, ...]
    implementation: str


def matrix_init(stddev: float) -> nn.initializers.Initializer:
    """Returns an initializer: N(0, stddev^2), or N(0, 1 / fan in) if `stddev` is 0."""
    if stddev:
        return nn.initializers.normal(stddev)
    return nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class Norm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba 2016), computed in float32."""

    kind: str
    use_bias: bool

    @nn.compact
    def __call__(self, x: Float[Array, "... M"]) -> Float[Array, "... M"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        # Sums of squares of bfloat16 activations lose too many digits, so normalize in float32.
        y = x.astype(jnp.float32)
        if self.kind == "layernorm":
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-5) * scale
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return y.astype(x.dtype)


class Mix(nn.Module):
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
        kept: dict[str, Float[Array, "B S K D"]],
        mask: Mask | None,
        q_index: Any,
    ) -> Float[Array, "B T M"]:
        return self.cross.read(params, x, kept, mask=mask, q_index=q_index)


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
          mask: padding of the source with cross-attention; otherwise padding of x, for a mixer that
            looks ahead.
          q_index: positions of x, for cross-attention; None: 0 .. T-1.
        """
        c = self.config
        drop = nn.Dropout(c.dropout, deterministic=self.deterministic)
        y = Norm(c.norm, c.use_bias, name="norm1")(x)
        y, state = Mix(self.mixer, name="mixer")(y, state, mask if self.cross is None else None)
        x = constrain(x + drop(y), *HIDDEN)
        weights = None
        if self.cross is not None and source is not None:
            params, kept = source
            y = Norm(c.norm, c.use_bias, name="norm_cross")(x)
            if self.weights:
                weights = self.cross.look(params, y, kept, mask=mask, q_index=q_index).weights
            y = Cross(self.cross, name="cross")(y, params, kept, mask, q_index)
            x = constrain(x + drop(y), *HIDDEN)
        if c.feedforward:
            y = FeedForward(c, name="feedforward")(Norm(c.norm, c.use_bias, name="norm2")(x))
            x = constrain(x + drop(y), *HIDDEN)
        return x, (state, weights)


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
        # The loop of the scan already keeps XLA from merging the recomputation with the forward
        # pass, so the barriers of prevent_cse would only cost time.
        block = nn.remat(Block, prevent_cse=False) if c.remat else Block
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


class Decoder(nn.Module):
    """Decoder-only transformer that maps tokens to logits of the next token.

    `decoder(tokens)` processes a whole sequence, as in training. `decoder(tokens, state)` continues
    from a decoding state (see `init_state`) by any number of tokens and returns the new state.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B T"], state: Any = None, *, deterministic: bool = True
    ) -> tuple[Float[Array, "B T V"], Any]:
        """Returns float32 logits (B, T, V) and the new decoding state (None without one)."""
        c = self.config
        dtype = jnp.dtype(c.dtype)
        embedding_init = matrix_init(c.embedding_stddev)
        table = self.param("embedding", embedding_init, (c.vocab_size, c.width)).astype(dtype)
        step = jnp.int32(0) if state is None else state["step"]
        x = lookup(table, tokens)
        if c.position in ("sinusoidal", "learned"):
            if c.position == "learned":
                positions = self.param("position", embedding_init, (c.length, c.width))
            else:
                positions = sinusoids(c.length, c.width, c.embedding_stddev)
            window = jax.lax.dynamic_slice_in_dim(positions, step, tokens.shape[1])
            x = x + window.astype(dtype)
        x = constrain(nn.Dropout(c.dropout, deterministic=deterministic)(x), *HIDDEN)

        old = None if state is None else state["layers"]
        x, (layer_states, _) = layers(c, deterministic)(x, old, None, None, None)
        if state is not None:
            state = {"step": step + tokens.shape[1], "layers": layer_states}

        x = Norm(c.norm, c.use_bias, name="norm")(x)
        if c.tie_embeddings:
            logits = x @ constrain(table, "vocab", "").T
        else:
            logits = linear(x, self.param("head", embedding_init, (c.width, c.vocab_size)))
        return constrain(logits.astype(jnp.float32), "batch", "length", "vocab"), state

    def of_batch(self, batch: Batch, *, deterministic: bool = True) -> Float[Array, "B T V"]:
        """Returns the float32 logits of "inputs" (B, T)."""
        return self(batch["inputs"], deterministic=deterministic)[0]

    @property
    def implementation(self) -> str:
        """Names of the implementations of the mixers."""
        return self.config.implementation

    def parameter_axes(self, params: Any) -> Any:
        """Returns a tree with the `Axes` of each parameter.

        Args:
          params: parameters or their shapes; extra leading axes (population) are not described.
        """

        def axes(path: tuple, _: Any) -> Axes:
            names = [key.key for key in path]
            if "mixer" not in names:
                own = AXES[names[-1]]
            else:
                own = self.config.mixers[int(names[1])].parameters()[names[-1]].axes
            return own.stacked() if names[0] == "layers" else own

        return jax.tree_util.tree_map_with_path(axes, params)

    def state_bytes(self, length: int) -> int | None:
        """Returns the bytes of one sequence's decoding state with room for `length` tokens.

        Returns None for a model that looks ahead and so has no decoding state.
        """
        try:
            shapes = jax.eval_shape(lambda: init_state(self.config, 1, length)["layers"])
        except Unsupported:
            return None
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def init_state(config: TransformerConfig, batch: int, length: int) -> dict:
    """Returns the decoding state of `batch` empty sequences with room for `length` tokens."""
    repeats = config.num_layers // len(config.mixers)
    dtype = jnp.dtype(config.dtype)
    layers = tuple(mixer.init_state(batch, length, dtype) for mixer in config.mixers)
    stacked = jax.tree.map(lambda a: jnp.stack([a] * repeats), layers)
    return {"step": jnp.int32(0), "layers": stacked}


SLOW_TO_TRACE = {"splash": "blockwise", "jax_cudnn": "blockwise"}
"""Substitutes for tracing: implementations that build large mask tables -> one that does not."""


@dataclass(frozen=True, kw_only=True)
class ModelSize(ModelOptions):
    """Options of every model."""

    width: int = option(64, "of the residual stream; of a recurrent state", least=1)
    num_layers: int = option(2, "of encoder and decoder each, where there are both", least=1)
    dropout: float = option(
        0.0,
        "on embeddings and on what each sublayer adds (Vaswani 2017, 5.4)",
        least=0,
        below=1,
    )
    use_bias: bool = option(False, "biases in projections and norms")
    init_stddev: float = option(0.02, "of the matrices of the layers; 0: 1 / sqrt(fan in)", least=0)
    embedding_stddev: float = option(
        0.02, "of embeddings, positions and the output matrix; 0: 1 / sqrt(fan in)", least=0
    )
    init_scale: float = option(1.0, "multiplies every initial matrix", above=0)
    dtype: str = option("float32", "of activations; parameters stay float32", allowed=DTYPES)


@dataclass(frozen=True, kw_only=True)
class TransformerOptions(ModelSize):
    """Options of models that consist of transformer blocks."""

    feedforward: int = option(
        256, "hidden width of the feed-forward layer; 0: no such layer", least=0
    )
    activation: str = option("gelu", "of the feed-forward layer", allowed=tuple(ACTIVATIONS))
    norm: str = option("rmsnorm", "of what each sublayer reads", allowed=NORMS)
    remat: bool = option(False, "recompute each layer in the backward pass to save memory")


@dataclass(frozen=True, kw_only=True)
class DecoderOptions(TransformerOptions):
    """A decoder: a transformer that predicts the next token"""

    source = "Vaswani et al. 2017; Radford et al. 2019"

    tie_embeddings: bool = option(True, "output matrix = embedding matrix")
    pattern: tuple[str, ...] = option(
        (), "one delta on the mechanism to each layer, repeated to num_layers; (): all alike"
    )

    def layers(self) -> tuple[Layer, ...]:
        """Returns the layers of the pattern; see `ModelOptions`."""
        return pattern(self)

    def specs(self, length: int) -> tuple[MixerSpec, ...]:
        """Returns the mixers of the pattern for sequences of at most this length."""
        return tuple(one.spec(length) for one in self.layers())

    def make(
        self, vocab_size: int, length: int, instead: Instead | None = None, classes: int = 0
    ) -> Model:
        """Returns the decoder; see `ModelOptions`."""
        specs = tuple(computed_instead(one, instead or {}) for one in self.specs(length))
        position = added_position(self.layers())
        return Decoder(transformer_config(self, vocab_size, length, specs, position=position))


def transformer_config(
    model: Any, vocab_size: int, length: int, specs: tuple[MixerSpec, ...], **changes: Any
) -> TransformerConfig:
    """Returns the config of transformer layers with the given mixers and a model's options."""
    values: dict[str, Any] = {
        "tie_embeddings": True,
        "position": "none",
        "vocab_size": vocab_size,
        "length": length,
        "mixers": mixers_of(specs),
        # The options hold the requested name, possibly "auto"; the config holds the resolved one.
        "implementation": implementation_of(specs),
    }
    for one in fields(TransformerConfig):
        if one.name not in values or one.name == "tie_embeddings":
            values[one.name] = getattr(model, one.name, values.get(one.name))
    return TransformerConfig(**values | changes)
