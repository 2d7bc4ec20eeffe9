"""Recurrent sequence-to-sequence models, with and without attention to the source.

A bidirectional encoder (Bahdanau et al. 2015), and a decoder with the same number of layers whose
top state queries the encoder's states and is combined with the context vector (Luong et al. 2015,
section 3). `ATTENTIONS` lists the attention mechanisms, including a fixed vector without attention.
Monotonic attention uses its expected alignment both in training and in decoding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze
from jaxtyping import Array, Float, Int

from research.attention.mixers.rnn import CELLS
from research.attention.parameters import (
    Parameter,
    init_function,
    is_parameter,
    matrix_init,
    table_axes,
)
from research.errors import UserError
from research.models.layers import Layer, ModelSize, Substitutes
from research.models.primitives import linear, lookup
from research.models.recurrent import networks
from research.models.recurrent.attention import (
    ATTENTIONS,
    FIXED_EVERY_STEP,
    DecoderAttention,
    decoder_attention_layer,
    make_decoder_attention,
)
from research.options import option
from research.parallel.rules import constrain
from research.tasks.task import Batch


@dataclass(frozen=True)
class RecurrentConfig:
    """Static description of a recurrent model, with the keys of `config.model`.

    `decoder_attention` computes the mechanism that `attention` names; None for a fixed vector.
    """

    vocab_size: int
    length: int
    cell: str
    width: int
    embedding_width: int
    num_layers: int
    attention: str
    input_feeding: bool
    tie_embeddings: bool
    dropout: float
    init_stddev: float
    embedding_stddev: float
    dtype: str
    decoder_attention: DecoderAttention | None

    @property
    def sizes(self) -> networks.Sizes:
        """Sizes of the networks. Input feeding is off without attention: there is no context."""
        return networks.Sizes(
            cell=self.cell,
            width=self.width,
            inputs=self.embedding_width,
            num_layers=self.num_layers,
            init_stddev=self.init_stddev,
            decoder_attention=self.decoder_attention,
            input_feeding=self.input_feeding and self.decoder_attention is not None,
            every_step=self.attention == FIXED_EVERY_STEP,
            dtype=self.dtype,
        )

    def parameters(self) -> dict[str, Any]:
        """Returns the declarations of all parameters, a tree of `Parameter`."""
        table, sizes = (self.vocab_size, self.embedding_width), self.sizes
        found: dict[str, Any] = {
            "embedding": Parameter(table, matrix_init(self.embedding_stddev, table[0]), EMBEDDING),
            "encoder": networks.encoder_parameters(sizes),
            "decoder": networks.decoder_parameters(sizes),
        }
        if not self.tie_embeddings:
            init = matrix_init(self.embedding_stddev, self.width)
            found["head"] = Parameter((self.width, self.vocab_size), init, HEAD)
        return found


EMBEDDING, HEAD = table_axes("vocab", "width"), table_axes("width", "vocab")


class RecurrentModel(nn.Module):
    """Recurrent `SequenceToSequence` model; the size of its state does not grow in decoding."""

    config: RecurrentConfig

    def setup(self) -> None:
        c = self.config
        self.frozen = {
            name: self.param(name, init_function(described))
            for name, described in c.parameters().items()
        }
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, batch: Batch, *, deterministic: bool = True) -> Float[Array, "B T V"]:
        """Returns float32 logits of "inputs" (B, T), given "source" and "source_length".

        Dropout applies to embeddings, between layers, and to the input of the output matrix
        (Zaremba et al. 2014; Luong et al. 2015, section 4.1).
        """
        drop = self._drop(deterministic)
        memory = self._make_memory(batch["source"], batch["source_length"], drop)
        h, _ = self._decode(memory, batch["inputs"], drop)
        return self._logits(drop(h))

    def encode(self, source: Int[Array, "B S"], source_length: Int[Array, " B"]) -> dict[str, Any]:
        """Returns the memory of right-padded sources; see `networks.make_memory`."""
        return self._make_memory(source, source_length, self._drop(True))

    def init_state(self, memory: dict[str, Any], length: int) -> dict[str, Any]:
        """Returns the decoding state before the first token, of a size independent of `length`."""
        return networks.init_state(self.config.sizes, memory)

    def step(
        self, memory: dict[str, Any], state: dict[str, Any], token: Int[Array, " B"]
    ) -> tuple[Float[Array, "B V"], dict[str, Any], Float[Array, "B H S"]]:
        """Returns float32 logits of the next token, the new state, and the attention weights.

        H is 0 without attention.
        """
        sizes, params = self.config.sizes, self.params["decoder"]
        gates = networks.input_gates(sizes, params, self._embed(token[:, None]), memory)[:, 0]
        state, (h, weights) = networks.advance(sizes, params, memory, state, gates)
        if weights is None:
            weights = jnp.zeros((len(token), 0, memory["valid"].shape[1]))
        return self._logits(h), state, weights

    def weights(self, batch: Batch) -> Float[Array, "B H T S"]:
        """Returns the attention weights of each target position (teacher forcing) on the source."""
        drop = self._drop(True)
        memory = self._make_memory(batch["source"], batch["source_length"], drop)
        _, weights = self._decode(memory, batch["inputs"], drop)
        if weights is None:
            (rows, targets), length = batch["inputs"].shape, batch["source"].shape[1]
            return jnp.zeros((rows, 0, targets, length))
        return jnp.swapaxes(weights, 1, 2)

    @nn.nowrap
    def parameter_axes(self, params: Any) -> Any:
        """Returns a tree with the `Axes` of each parameter."""
        described = self.config.parameters()
        return jax.tree.map(lambda p: p.axes, described, is_leaf=is_parameter)

    @property
    def implementation(self) -> str:
        """Name of the only implementation."""
        return "recurrent"

    @nn.nowrap
    def state_bytes(self, length: int) -> int:
        """Returns the bytes needed to decode one sequence whose source has `length` tokens.

        Counts the memory and the decoding state: keys and values (with attention), which grow with
        the source, and cell states and the fixed vector, which do not.
        """
        described = self.config.parameters()
        params = jax.tree.map(
            lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32), described, is_leaf=is_parameter
        )

        def kept(params: Any) -> Any:
            source = jnp.zeros((1, length), jnp.int32), jnp.full((1,), length, jnp.int32)
            memory: Any = self.apply({"params": params}, *source, method="encode")
            state = networks.init_state(self.config.sizes, memory)
            # "initial" is already counted in the state, and "valid" is determined by one number.
            return {k: a for k, a in memory.items() if k not in ("initial", "valid")}, state

        leaves = jax.tree.leaves(jax.eval_shape(kept, params))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if leaf.ndim)

    @property
    def params(self) -> dict[str, Any]:
        """The parameters as plain dictionaries; Flax freezes dictionaries set as attributes."""
        return unfreeze(self.frozen)

    def _drop(self, deterministic: bool) -> Callable[[jax.Array], jax.Array]:
        return lambda x: self.dropout(x, deterministic=deterministic)

    def _embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T E"]:
        table = self.params["embedding"].astype(self.config.dtype)
        return constrain(lookup(table, tokens), "batch", "", "")

    def _make_memory(self, source, lengths, drop):
        sizes = self.config.sizes
        x = drop(self._embed(source))
        states, last = networks.encode(sizes, self.params["encoder"], x, lengths, drop)
        return networks.make_memory(sizes, self.params["decoder"], states, last, lengths)

    def _decode(self, memory, inputs, drop):
        sizes, params = self.config.sizes, self.params["decoder"]
        return networks.decode(sizes, params, memory, drop(self._embed(inputs)), drop)

    def _logits(self, h: Float[Array, "*b N"]) -> Float[Array, "*b V"]:
        tied = self.config.tie_embeddings
        head = self.params["embedding"].T if tied else self.params["head"]
        axes = ("batch", "length", "vocab") if h.ndim == 3 else ("batch", "vocab")
        return constrain(linear(h, head).astype(jnp.float32), *axes)


@dataclass(frozen=True, kw_only=True)
class RecurrentOptions(ModelSize):
    """A recurrent network that reads a source and writes a target, with or without attention"""

    source = "Sutskever et al. 2014; Bahdanau et al. 2015"

    cell: str = option("lstm", "type of recurrent cell", allowed=tuple(CELLS))
    attention: str = option(
        "additive",
        "how the decoder attends to the source; fixed_*: one vector instead of attention",
        allowed=tuple(ATTENTIONS),
    )
    input_feeding: bool = option(
        True, "feed the attentional vector of a step to the next one (Luong 2015, 3.3)"
    )
    embedding_width: int = option(0, "width of the embeddings; 0: width", least=0)
    tie_embeddings: bool = option(True, "use the embedding matrix as the output matrix, too")

    def layers(self) -> tuple[Layer, ...]:
        """Returns the layer of the attention to the source, if any; see `ModelOptions`."""
        found = decoder_attention_layer(self, self.attention)
        return () if found is None else (found,)

    def make(
        self, vocab_size: int, length: int, substitutes: Substitutes | None = None, classes: int = 0
    ) -> RecurrentModel:
        """Returns the recurrent model; see `ModelOptions`. Ignores `instead`."""
        return RecurrentModel(recurrent_config(self, vocab_size, length))


def recurrent_config(model: Any, vocab_size: int, length: int) -> RecurrentConfig:
    """Returns the config of a recurrent model, or of a recurrent speller.

    Args:
      model: options with the keys of `RecurrentOptions`.
      vocab_size: V, shared by source and target.
      length: maximum number of tokens in a source or target.

    Raises UserError for options that do not fit together.
    """
    if model.width < 2 or model.width % 2:
        raise UserError(
            f"model.width={model.width} must be even: the encoder has half of it in each direction."
        )
    embedding_width = model.embedding_width or model.width
    if model.tie_embeddings and embedding_width != model.width:
        raise UserError(
            f"model.embedding_width={embedding_width} must be model.width={model.width} or 0 where "
            "the output matrix is the embedding matrix; or set model.tie_embeddings=False."
        )
    return RecurrentConfig(
        vocab_size=vocab_size,
        length=length,
        cell=model.cell,
        width=model.width,
        embedding_width=embedding_width,
        num_layers=model.num_layers,
        attention=model.attention,
        input_feeding=model.input_feeding,
        tie_embeddings=model.tie_embeddings,
        dropout=model.dropout,
        init_stddev=model.init_stddev,
        embedding_stddev=model.embedding_stddev,
        dtype=model.dtype,
        decoder_attention=make_decoder_attention(model, model.attention, length),
    )
