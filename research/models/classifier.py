"""Classifiers of sequences: embeddings, a body that reads them, a pooling, a linear layer.

The lookup of embeddings (`Embed`) and the pooling (`Pool`) are modules of their own, and
`Classifier.from_embeddings` starts behind the lookup, so that what a model reads and how it pools
can be looked at and changed from outside. Padding leaves no trace in the logits.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze
from jaxtyping import Array, Bool, Float, Int

from research.attention.mixers.rnn import CELLS
from research.attention.parameters import Axes, drawn, is_parameter, matrix_axes, vector_axes
from research.attention.parts.masks import padding
from research.attention.spec import MixerSpec
from research.errors import UserError
from research.models import transformer
from research.models.layers import Instead, Layer, computed_instead, part, part_spec
from research.models.lookup import lookup
from research.models.positions import sinusoids
from research.models.projection import linear
from research.models.recurrent.networks import DIRECTIONS, Sizes, encode, encoder_parameters
from research.models.stacks import EncoderStack
from research.models.transformer import (
    HIDDEN,
    TransformerConfig,
    TransformerOptions,
    matrix_init,
    transformer_config,
)
from research.options import Declared, option
from research.parallel.rules import constrain
from research.tasks.task import Batch

TRANSFORMER, NONE = "transformer", "none"
BODIES = {TRANSFORMER: (), "bilstm": DIRECTIONS, "lstm": DIRECTIONS[:1], NONE: ()}
"""{model.body: directions in which a recurrent network reads}."""
RECURRENT = ("bilstm", "lstm")

CLASS_TOKEN, ATTENTION, MEAN, LAST = "class_token", "attention", "mean", "last"
POOLINGS = (CLASS_TOKEN, ATTENTION, MEAN, LAST)
AXES = transformer.AXES | {
    "class_token": vector_axes("width"),
    "matrix": matrix_axes("width", "hidden"),
    "matrix_bias": vector_axes("hidden"),
    "vector": vector_axes("hidden"),
    "head": matrix_axes("width", ""),
    "head_bias": vector_axes(""),
}


@dataclass(frozen=True)
class ClassifierConfig:
    """Static description of a classifier; the keys are those of `config.model`.

    Attributes:
      vocab_size: V.
      length: the most tokens of a sequence.
      classes: C.
      body, pooling: names in `BODIES` and `POOLINGS`.
      width: N, of the states; of the embeddings too, but for a recurrent body.
      layers: of a transformer.
      looks_ahead: whether its mixer does, which has to be told then what is padding.
      sizes: of a recurrent body.
      dropout: rate; on embeddings, between layers, and on what was pooled.
      init_stddev, embedding_stddev: of matrices and of embeddings; 0: 1 / sqrt(fan in).
      dtype: of activations.
      implementation: how the mixers are computed.
    """

    vocab_size: int
    length: int
    classes: int
    body: str
    pooling: str
    width: int
    layers: TransformerConfig | None
    looks_ahead: bool
    sizes: Sizes | None
    dropout: float
    init_stddev: float
    embedding_stddev: float
    dtype: str
    implementation: str

    @property
    def embedding_width(self) -> int:
        """M, of the embeddings."""
        return self.sizes.inputs if self.sizes else self.width


class Embed(nn.Module):
    """Looks tokens up."""

    config: ClassifierConfig

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T M"]:
        """Returns their embeddings."""
        c = self.config
        init, shape = matrix_init(c.embedding_stddev), (c.vocab_size, c.embedding_width)
        table = self.param("embedding", init, shape).astype(c.dtype)
        return constrain(lookup(table, tokens), *HIDDEN)


class Pool(nn.Module):
    """From the states of a sequence to one vector.

    attention: sum_s a_s h_s with a = softmax(v^T tanh(W h_s + b)) (Bahdanau et al. 2015, appendix
      A.1.2, without a query; Jain and Wallace 2019, section 2).
    mean: the same with equal weights.
    last: the last state, of a bidirectional body beside the backward half of the first.
    class_token: the state of the learned vector in front.
    """

    config: ClassifierConfig

    def setup(self) -> None:
        if self.config.pooling == ATTENTION:
            n, init = self.config.width, matrix_init(self.config.init_stddev)
            self.matrix = self.param("matrix", init, (n, n))
            self.bias = self.param("matrix_bias", nn.initializers.zeros, (n,))
            self.vector = self.param("vector", nn.initializers.normal(n**-0.5), (n,))

    def __call__(
        self, states: Float[Array, "B T N"], valid: Bool[Array, "B T"]
    ) -> Float[Array, "B N"]:
        """Returns the vector of each sequence; `valid` says which states are no padding."""
        if self.config.pooling == CLASS_TOKEN:
            return states[:, 0]
        if self.config.pooling == LAST:
            return self._ends(states, valid)
        return self.read(self.weights(states, valid), states)

    def weights(
        self, states: Float[Array, "B T N"], valid: Bool[Array, "B T"]
    ) -> Float[Array, "B T"]:
        """Returns the float32 weights of attention or of the mean; those of padding are zero."""
        if self.config.pooling == MEAN:
            return valid / valid.sum(-1, keepdims=True, dtype=jnp.float32)
        hidden = linear(states, self.matrix).astype(jnp.float32) + self.bias
        scores = (jnp.tanh(hidden) * self.vector).sum(-1)
        return jax.nn.softmax(jnp.where(valid, scores, -jnp.inf), axis=-1)

    def read(
        self, weights: Float[Array, "B T"], states: Float[Array, "B T N"]
    ) -> Float[Array, "B N"]:
        """Returns the weighted sum of the states."""
        return jnp.einsum("bt,btn->bn", weights.astype(states.dtype), states)

    def _ends(self, states: Array, valid: Array) -> Array:
        last = valid.sum(-1) - 1
        found = jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]
        if len(BODIES[self.config.body]) < 2:
            return found
        half = self.config.width // 2
        return jnp.concatenate([found[:, :half], states[:, 0, half:]], axis=-1)


class Classifier(nn.Module):
    """Tokens to logits of classes; see `research.models.model.Model`."""

    config: ClassifierConfig

    def setup(self) -> None:
        c = self.config
        self.embed = Embed(c)
        self.pool = Pool(c)
        self.dropout = nn.Dropout(c.dropout)
        if c.layers is not None:
            self.stack = EncoderStack(c.layers)
            if c.layers.position == "learned":
                init = matrix_init(c.embedding_stddev)
                self.position = self.param("position", init, (c.layers.length, c.width))
        if c.pooling == CLASS_TOKEN:
            init = nn.initializers.normal(c.embedding_stddev or c.width**-0.5)
            self.class_token = self.param("class_token", init, (c.width,))
        if c.sizes is not None:
            self.networks = self.param("networks", drawn(encoder_parameters(c.sizes)))
        self.head = self.param("head", matrix_init(c.init_stddev), (c.width, c.classes))
        self.bias = self.param("head_bias", nn.initializers.zeros, (c.classes,))

    def of_batch(self, batch: Batch, *, deterministic: bool = True) -> Float[Array, "B C"]:
        """Returns the float32 logits of "inputs" (B, T), right-padded, of "length" (B,).

        Both are int32, T is at most `config.length` and lengths at least 1.
        """
        embeddings = self.embed(batch["inputs"])
        return self.from_embeddings(embeddings, batch["length"], deterministic=deterministic)

    def from_embeddings(
        self,
        embeddings: Float[Array, "B T M"],
        length: Int[Array, " B"],
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B C"]:
        """Returns the float32 logits of sequences whose tokens are already looked up."""
        states, valid = self.states(embeddings, length, deterministic)
        pooled = self.dropout(self.pool(states, valid), deterministic=deterministic)
        return self._decided(pooled)

    def states(
        self, x: Float[Array, "B T M"], length: Int[Array, " B"], deterministic: bool = True
    ) -> tuple[Float[Array, "B R N"], Bool[Array, "B R"]]:
        """Returns the states of embeddings, and which are no padding; R is T, or 1 + T."""
        c = self.config

        def drop(y: jax.Array) -> jax.Array:
            return self.dropout(y, deterministic=deterministic)

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
        # Padding is on the right: what never looks ahead never sees it.
        mask = padding(valid) if c.looks_ahead else None
        return self.stack(constrain(drop(x), *HIDDEN), mask, deterministic), valid

    def from_weights(
        self, weights: Float[Array, "B R"], states: Float[Array, "B R N"]
    ) -> Float[Array, "B C"]:
        """Returns the float32 logits of states that are pooled by these weights."""
        return self._decided(self.pool.read(weights, states))

    def weights(self, batch: Batch) -> Float[Array, "B H 1 T"]:
        """Returns how each sequence is pooled: H is 1 for attention and mean, else 0."""
        rows, tokens = batch["inputs"].shape
        if self.config.pooling not in (ATTENTION, MEAN):
            return jnp.zeros((rows, 0, 1, tokens))
        states, valid = self.states(self.embed(batch["inputs"]), batch["length"])
        return self.pool.weights(states, valid)[:, None, None]

    @property
    def implementation(self) -> str:
        """How the mixers are computed."""
        return self.config.implementation

    @nn.nowrap
    def parameter_axes(self, params: Any) -> Any:
        """Returns the axes of each parameter, `Axes` to each leaf.

        Args:
          params: parameters or their shapes; leading axes of their own are not described.
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
        """Returns None: nothing is decoded."""
        return None

    def _decided(self, pooled: Float[Array, "B N"]) -> Float[Array, "B C"]:
        return linear(pooled, self.head).astype(jnp.float32) + self.bias


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions(TransformerOptions):
    """A body that reads a text, and a pooling of its states into one vector that is classified

    A transformer has the mechanism as the encoder of an encoder-decoder has it: mask=full, and
    `encoder` changes it.
    """

    source = "Devlin et al. 2019; Jain and Wallace 2019"

    body: str = option(TRANSFORMER, "what reads; none pools the embeddings", allowed=tuple(BODIES))
    pooling: str = option(MEAN, "from the states to one vector", allowed=POOLINGS)
    encoder: str = option(
        "mask=full", "delta of the body on the mechanism", when={"body": (TRANSFORMER,)}
    )
    cell: str = option(
        "lstm", "of a recurrent body", allowed=tuple(CELLS), when={"body": RECURRENT}
    )
    embedding_width: int = option(0, "of embeddings; 0: width", least=0, when={"body": RECURRENT})

    def reads(self, declared: Declared) -> bool:
        """Returns whether an option is read; those of blocks by a transformer alone."""
        of_blocks = declared.name in ("feedforward", "activation", "norm", "remat", "use_bias")
        return super().reads(declared) and (not of_blocks or self.body == TRANSFORMER)

    def layers(self) -> tuple[Layer, ...]:
        """Returns the layer of a transformer; see `ModelOptions`."""
        return (part(self, "encoder", {"mask": "full"}),) if self.body == TRANSFORMER else ()

    def make(
        self, vocab_size: int, length: int, instead: Instead | None = None, classes: int = 0
    ) -> Classifier:
        """Returns the classifier; see `ModelOptions`."""
        _check(self)
        layers, ahead, name, sizes = None, False, "", None
        if self.body == TRANSFORMER:
            layers, ahead = _layers(self, vocab_size, length, instead or {})
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
                width=self.width,
                layers=layers,
                looks_ahead=ahead,
                sizes=sizes,
                dropout=self.dropout,
                init_stddev=self.init_stddev,
                embedding_stddev=self.embedding_stddev,
                dtype=self.dtype,
                implementation=name or NONE,
            )
        )


def _check(model: ClassifierOptions) -> None:
    if model.pooling == CLASS_TOKEN and model.body != TRANSFORMER:
        raise UserError(
            f"model.pooling='class_token' needs model.body='transformer', not {model.body!r}: "
            "nothing else brings what it reads to the token in front."
        )
    if model.pooling == LAST and model.body == NONE:
        raise UserError(
            "model.pooling='last' of model.body='none' is the last word alone; use 'mean' or "
            "'attention'."
        )
    if model.body in RECURRENT and model.width % len(BODIES[model.body]):
        raise UserError(
            f"model.width={model.width} must be even: a bidirectional body has half of it in each "
            "direction."
        )


def _layers(
    model: ClassifierOptions, vocab_size: int, length: int, instead: Instead
) -> tuple[TransformerConfig, bool]:
    """Returns the layers of a transformer, and whether their mixer looks ahead."""
    room = length + (model.pooling == CLASS_TOKEN)
    spec: MixerSpec = part_spec(model, room, "encoder", {"mask": "full"}, "self")
    if model.pooling == CLASS_TOKEN and not spec.looks_ahead:
        raise UserError(
            f"model.pooling='class_token' with model.encoder={model.encoder!r}: the token in front "
            "sees nothing behind it; choose a mechanism that looks ahead, such as mask=full."
        )
    spec = computed_instead(spec, instead)
    layers = transformer_config(model, vocab_size, room, (spec,), position=spec.position)
    return layers, spec.looks_ahead


def _sizes(model: ClassifierOptions) -> Sizes:
    return Sizes(
        cell=model.cell,
        width=model.width,
        inputs=model.embedding_width or model.width,
        num_layers=model.num_layers,
        init_stddev=model.init_stddev,
        reader=None,
        input_feeding=False,
        every_step=False,
        dtype=model.dtype,
        directions=BODIES[model.body],
    )
