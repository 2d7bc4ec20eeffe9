"""Sequence classifiers: embeddings, an encoder body, pooling, and a linear output layer.

The embedding lookup (`Embed`) and the pooling (`Pool`) are separate modules, and
`Classifier.from_embeddings` starts after the lookup, so analysis code can inspect and replace
embeddings and pooling weights. Padding does not affect the logits.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze
from jaxtyping import Array, Bool, Float, Int

from research.attention.mixers.rnn import CELLS
from research.attention.parameters import (
    Axes,
    init_function,
    is_parameter,
    matrix_axes,
    table_axes,
    vector_axes,
)
from research.attention.parts.masks import padding
from research.attention.spec import MixerSpec
from research.errors import UserError
from research.models import transformer
from research.models.block import TransformerConfig
from research.models.layers import Layer, Substitutes, part_layer, part_spec, with_substitute
from research.models.pooling import (
    ATTENTION,
    CLASS_TOKEN,
    LAST,
    MEAN,
    OF_FIRST_STATE,
    POOLINGS,
    Pool,
)
from research.models.primitives import Norm, linear, lookup, matrix_init, sinusoids
from research.models.recurrent.networks import DIRECTIONS, Sizes, encode, encoder_parameters
from research.models.residual import HIDDEN
from research.models.transformer import (
    OF_BLOCKS,
    EncoderStack,
    TransformerOptions,
    transformer_config,
)
from research.options import Declared, option
from research.parallel.rules import constrain
from research.tasks.task import Batch

TRANSFORMER, NONE = "transformer", "none"
BODIES = {TRANSFORMER: (), "bilstm": DIRECTIONS, "lstm": DIRECTIONS[:1], NONE: ()}
"""{value of `model.body`: the directions of its recurrent network, () if it has none}."""
RECURRENT = ("bilstm", "lstm")

AXES = transformer.AXES | {
    "class_token": vector_axes("width"),
    "token_type": table_axes("", "width"),
    "pooler": matrix_axes("width", "hidden"),
    "pooler_bias": vector_axes("hidden"),
    "matrix": matrix_axes("width", "hidden"),
    "matrix_bias": vector_axes("hidden"),
    "vector": vector_axes("hidden"),
    "head": table_axes("width", ""),
    "head_bias": vector_axes(""),
}


@dataclass(frozen=True)
class ClassifierConfig:
    """Static description of a classifier, with the keys of `config.model`.

    Attributes:
      vocab_size: V.
      length: maximum number of tokens in a sequence.
      classes: C.
      body, pooling: names in `BODIES` and `POOLINGS`.
      pooler: whether the pooled vector goes through a layer with tanh.
      token_types: number of kinds of tokens with an embedding of their own; 0: none have one.
      width: N, width of the states, and of the embeddings unless the body is recurrent.
      layers: configuration of the transformer layers; None for other bodies.
      bidirectional: whether the transformer's mixer is non-causal and so needs a padding mask.
      sizes: sizes of a recurrent body; None for other bodies.
      dropout: rate; applied to embeddings, between layers, and to the pooled vector.
      init_stddev, embedding_stddev: initial standard deviation of matrices and of embeddings;
        0: 1 / sqrt(fan in).
      dtype: dtype of activations.
      implementation: name of the mixers' implementation.
    """

    vocab_size: int
    length: int
    classes: int
    body: str
    pooling: str
    pooler: bool
    token_types: int
    width: int
    layers: TransformerConfig | None
    bidirectional: bool
    sizes: Sizes | None
    dropout: float
    init_stddev: float
    embedding_stddev: float
    dtype: str
    implementation: str

    @property
    def embedding_width(self) -> int:
        """M, the width of the embeddings."""
        return self.sizes.inputs if self.sizes else self.width


class Embed(nn.Module):
    """The token embedding table."""

    config: ClassifierConfig

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T M"]:
        """Returns the embeddings of the tokens, in the config's dtype."""
        c = self.config
        init, shape = matrix_init(c.embedding_stddev), (c.vocab_size, c.embedding_width)
        table = self.param("embedding", init, shape).astype(c.dtype)
        return constrain(lookup(table, tokens), *HIDDEN)


class Classifier(nn.Module):
    """Maps tokens to class logits; implements `research.models.model.Model`."""

    config: ClassifierConfig

    def setup(self) -> None:
        c = self.config
        self.embed = Embed(c)
        both = len(BODIES[c.body]) == 2
        self.pool = Pool(c.pooling, c.width, c.init_stddev, both, c.pooler)
        self.dropout = nn.Dropout(c.dropout)
        if c.layers is not None:
            self.stack = EncoderStack(c.layers)
            if c.layers.embedding_norm:
                self.embedding_norm = Norm(c.layers.norm, c.layers.use_bias, c.layers.norm_epsilon)
            if c.layers.position == "learned":
                init = matrix_init(c.embedding_stddev)
                self.position = self.param("position", init, (c.layers.length, c.width))
        if c.token_types:
            shape = (c.token_types, c.width)
            self.token_type = self.param("token_type", matrix_init(c.embedding_stddev), shape)
        if c.pooling == CLASS_TOKEN:
            init = nn.initializers.normal(c.embedding_stddev or c.width**-0.5)
            self.class_token = self.param("class_token", init, (c.width,))
        if c.sizes is not None:
            self.networks = self.param("networks", init_function(encoder_parameters(c.sizes)))
        self.head = self.param("head", matrix_init(c.init_stddev), (c.width, c.classes))
        self.bias = self.param("head_bias", nn.initializers.zeros, (c.classes,))

    def forward(self, batch: Batch, *, deterministic: bool = True) -> Float[Array, "B C"]:
        """Returns the float32 logits of a batch.

        Args:
          batch: "inputs" (B, T), right-padded, and "length" (B,), both int32. T is at most
            `config.length` and every length is at least 1. Optionally "token_types" (B, T), such as
            which of two sentences each token is of; without them all are 0.
          deterministic: disables dropout.
        """
        embeddings, types = self.embed(batch["inputs"]), batch.get("token_types")
        return self.from_embeddings(embeddings, batch["length"], types, deterministic=deterministic)

    def from_embeddings(
        self,
        embeddings: Float[Array, "B T M"],
        length: Int[Array, " B"],
        token_types: Int[Array, "B T"] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B C"]:
        """Returns the float32 logits of sequences given as embeddings instead of tokens."""
        states, valid = self.states(embeddings, length, deterministic, token_types)
        pooled = self.pool(states, valid)
        return self._decided(self.dropout(pooled, deterministic=deterministic))

    def states(
        self,
        x: Float[Array, "B T M"],
        length: Int[Array, " B"],
        deterministic: bool = True,
        token_types: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B R N"], Bool[Array, "B R"]]:
        """Returns the body's states and a mask that is False at padding.

        R is 1 + T with a class token, else T.
        """
        c = self.config

        def drop(y: jax.Array) -> jax.Array:
            return self.dropout(y, deterministic=deterministic)

        if c.token_types:
            types = jnp.zeros(x.shape[:2], jnp.int32) if token_types is None else token_types
            x = x + lookup(self.token_type.astype(x.dtype), types)
        if c.pooling == CLASS_TOKEN:
            token = jnp.broadcast_to(self.class_token.astype(x.dtype), (x.shape[0], 1, c.width))
            x, length = jnp.concatenate([token, x], axis=1), length + 1
        valid = jnp.arange(x.shape[1]) < length[:, None]
        if c.layers is None:
            x = drop(x)
            if c.sizes is not None:
                x, _ = encode(c.sizes, unfreeze(self.networks), x, length, drop)
            return x, valid
        if c.layers.position == "learned":
            x = x + self.position[: x.shape[1]].astype(x.dtype)
        if c.layers.position == "sinusoidal":
            table = sinusoids(c.layers.length, c.width, c.embedding_stddev)
            x = x + jnp.asarray(table[: x.shape[1]], x.dtype)
        if c.layers.embedding_norm:
            x = self.embedding_norm(x)
        # Padding is on the right, so a causal mixer never attends to it and needs no mask.
        mask = padding(valid) if c.bidirectional else None
        return self.stack(constrain(drop(x), *HIDDEN), mask, deterministic), valid

    def from_weights(
        self, weights: Float[Array, "B R"], states: Float[Array, "B R N"]
    ) -> Float[Array, "B C"]:
        """Returns the float32 logits of states pooled with the given weights."""
        return self._decided(self.pool.transformed(self.pool.weighted_sum(weights, states)))

    def weights(self, batch: Batch) -> Float[Array, "B H 1 T"]:
        """Returns the pooling weights of each sequence; H is 1 for attention and mean, else 0."""
        rows, tokens = batch["inputs"].shape
        if self.config.pooling not in (ATTENTION, MEAN):
            return jnp.zeros((rows, 0, 1, tokens))
        embeddings, types = self.embed(batch["inputs"]), batch.get("token_types")
        states, valid = self.states(embeddings, batch["length"], token_types=types)
        return self.pool.weights(states, valid)[:, None, None]

    @property
    def implementation(self) -> str:
        """Name of the mixers' implementation."""
        return self.config.implementation

    @nn.nowrap
    def parameter_axes(self, params: Any) -> Any:
        """Returns a tree with the `Axes` of each parameter.

        Args:
          params: parameters or their shapes; extra leading axes (population) are not described.
        """
        c = self.config

        def axes(path: tuple, _: Any) -> Axes:
            names = [key.key for key in path]
            if c.layers is not None and "mixer" in names:
                own = c.layers.mixers[0].parameters()[names[-1]].axes
            else:
                own = AXES[names[-1]]
            return own.stacked() if "layers" in names else own

        others = {name: part for name, part in params.items() if name != "networks"}
        found = jax.tree_util.tree_map_with_path(axes, others)
        if c.sizes is not None:
            described = encoder_parameters(c.sizes)
            found["networks"] = jax.tree.map(lambda p: p.axes, described, is_leaf=is_parameter)
        return found

    @nn.nowrap
    def state_bytes(self, length: int) -> None:
        """Returns None: a classifier does not decode."""
        return None

    def _decided(self, pooled: Float[Array, "B N"]) -> Float[Array, "B C"]:
        return linear(pooled, self.head).astype(jnp.float32) + self.bias


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions(TransformerOptions):
    """A body that reads a text, and a pooling of its states into one vector that is classified

    A transformer body uses the mechanism like the encoder of an encoder-decoder: with mask=full,
    changed by the delta `encoder`.
    """

    source = "Devlin et al. 2019; Jain and Wallace 2019"

    body: str = option(
        TRANSFORMER,
        "encoder of the text; none: the embeddings are pooled directly",
        allowed=tuple(BODIES),
    )
    pooling: str = option(
        MEAN, "how the encoder's states are reduced to one vector", allowed=POOLINGS
    )
    pooler: bool = option(False, "passes the pooled vector through a layer with tanh, as in BERT")
    token_types: int = option(
        0,
        "kinds of tokens, such as those of two sentences, whose embeddings are added; 0: none",
        least=0,
        when={"body": (TRANSFORMER,)},
        source="Devlin et al. 2019 (BERT), section 3",
    )
    encoder: str = option(
        "mask=full",
        "attention keys that differ in the body, as key=value, ...",
        when={"body": (TRANSFORMER,)},
    )
    cell: str = option(
        "lstm", "type of cell in a recurrent body", allowed=tuple(CELLS), when={"body": RECURRENT}
    )
    embedding_width: int = option(
        0, "width of the embeddings; 0: width", least=0, when={"body": RECURRENT}
    )

    def reads(self, declared: Declared) -> bool:
        """Returns whether an option is read; only a transformer reads options of its blocks."""
        of_blocks = declared.name in (*OF_BLOCKS, "use_bias", "embedding_norm")
        return super().reads(declared) and (not of_blocks or self.body == TRANSFORMER)

    def layers(self) -> tuple[Layer, ...]:
        """Returns the one layer of a transformer body, else (); see `ModelOptions`."""
        return (part_layer(self, "encoder", {"mask": "full"}),) if self.body == TRANSFORMER else ()

    def make(
        self, vocab_size: int, length: int, substitutes: Substitutes | None = None, classes: int = 0
    ) -> Classifier:
        """Returns the classifier; see `ModelOptions`."""
        _check(self)
        layers, ahead, name, sizes = None, False, "", None
        if self.body == TRANSFORMER:
            layers, ahead = _layers(self, vocab_size, length, substitutes or {})
            name = layers.implementation
        elif self.body != NONE:
            sizes, name = _sizes(self), "recurrent"
        return Classifier(
            ClassifierConfig(
                vocab_size=vocab_size,
                length=length,
                classes=classes,
                body=self.body,
                pooling=self.pooling,
                pooler=self.pooler,
                token_types=self.token_types if self.body == TRANSFORMER else 0,
                width=self.width,
                layers=layers,
                bidirectional=ahead,
                sizes=sizes,
                dropout=self.dropout,
                init_stddev=self.init_stddev,
                embedding_stddev=self.embedding_stddev,
                dtype=self.dtype,
                implementation=name or NONE,
            )
        )


def _check(model: ClassifierOptions) -> None:
    if model.pooling in OF_FIRST_STATE and model.body != TRANSFORMER:
        raise UserError(
            f"model.pooling={model.pooling!r} needs model.body='transformer', not {model.body!r}: "
            "other bodies do not carry information to the token at the start of the sequence."
        )
    if model.pooling == LAST and model.body == NONE:
        raise UserError(
            "model.pooling='last' with model.body='none' would read only the last word; use 'mean' "
            "or 'attention'."
        )
    if model.body in RECURRENT and model.width % len(BODIES[model.body]):
        raise UserError(
            f"model.width={model.width} must be even: a bidirectional body has half of it in each "
            "direction."
        )


def _layers(
    model: ClassifierOptions, vocab_size: int, length: int, substitutes: Substitutes
) -> tuple[TransformerConfig, bool]:
    """Returns the config of the transformer layers and whether their mixer looks ahead."""
    room = length + (model.pooling == CLASS_TOKEN)
    spec: MixerSpec = part_spec(model, room, "encoder", {"mask": "full"}, "self")
    if model.pooling in OF_FIRST_STATE and not spec.bidirectional:
        raise UserError(
            f"model.pooling={model.pooling!r} with model.encoder={model.encoder!r}: the token that "
            "is read is the first of the sequence, so its layers must look ahead; set, for "
            "example, mask=full."
        )
    spec = with_substitute(spec, substitutes)
    layers = transformer_config(model, vocab_size, room, (spec,), position=spec.position)
    return layers, spec.bidirectional


def _sizes(model: ClassifierOptions) -> Sizes:
    return Sizes(
        cell=model.cell,
        width=model.width,
        inputs=model.embedding_width or model.width,
        num_layers=model.num_layers,
        init_stddev=model.init_stddev,
        decoder_attention=None,
        input_feeding=False,
        every_step=False,
        dtype=model.dtype,
        directions=BODIES[model.body],
    )
