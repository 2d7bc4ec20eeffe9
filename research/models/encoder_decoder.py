"""Encoder-decoder transformer: predicts a target sequence from a source sequence.

Vaswani et al. 2017, section 3.1, but pre-norm (Xiong et al. 2020). An encoder layer is a layer of
the decoder-only model with a bidirectional mechanism; a decoder layer has cross-attention between
its self-attention and its feed-forward layer. Both stacks end in a norm and are scans with stacked
parameters. The cross-attention keys and values of all decoder layers are projected together, before
the first decoder layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.attention.mixers import cross_attention
from research.attention.mixers.cross_attention import CrossAttention
from research.attention.parameters import Axes
from research.attention.parts.masks import padding
from research.attention.parts.positions import MODEL_POSITIONS
from research.attention.spec import MixerSpec
from research.errors import UserError
from research.losses.token_scores import token_scores
from research.models import transformer
from research.models.block import TransformerConfig
from research.models.decoder import DecoderOptions, check_base_width
from research.models.layers import (
    Layer,
    Substitutes,
    added_position,
    implementation_names,
    part_layer,
    part_spec,
    pattern_layers,
    with_substitute,
)
from research.models.primitives import Norm, linear, lookup, matrix_init, sinusoids
from research.models.residual import HIDDEN
from research.models.transformer import (
    DecoderStack,
    EncoderStack,
    SourceKeysValues,
    finish_logits,
    transformer_config,
)
from research.options import Declared, option
from research.parallel.rules import constrain
from research.tasks.task import Batch, TokenOutputs

AXES = transformer.AXES | {
    "source_embedding": transformer.AXES["embedding"],
    "source_position": transformer.AXES["position"],
}
Memory = dict[str, Any]


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """Static description of an encoder-decoder.

    Attributes:
      encoder: configuration of the encoder's layers and the source's positions.
      decoder: configuration of the decoder's layers, the target's positions, and everything that
        exists only once (vocabulary, embeddings, dropout).
      cross: cross-attention, the same in every decoder layer.
      encoder_bidirectional: whether the encoder is non-causal and so needs a padding mask.
      implementation: names of the implementations, encoder first.
    """

    encoder: TransformerConfig
    decoder: TransformerConfig
    cross: CrossAttention
    encoder_bidirectional: bool
    implementation: str

    @property
    def vocab_size(self) -> int:
        """V, shared by source and target."""
        return self.decoder.vocab_size

    @property
    def length(self) -> int:
        """Maximum length of source and target."""
        return self.decoder.length


class EncoderDecoder(nn.Module):
    """Maps source and target tokens to logits; implements `SequenceToSequence` of model.py."""

    config: EncoderDecoderConfig

    def setup(self):
        c = self.config.decoder
        self.encoder = EncoderStack(self.config.encoder)
        self.decoder = DecoderStack(c, self.config.cross)
        self.cross = self.param("cross", self._init_cross)
        self.dropout = nn.Dropout(c.dropout)
        init, shape = matrix_init(c.embedding_stddev), (c.vocab_size, c.width)
        self.embedding = self.param("embedding", init, shape)
        if not c.tie_embeddings:
            self.source_embedding = self.param("source_embedding", init, shape)
            self.head = self.param("head", init, shape[::-1])
        if c.output_bias:
            self.head_bias = self.param("head_bias", nn.initializers.zeros, (c.vocab_size,))
        if c.embedding_norm:
            self.embedding_norm = Norm(c.norm, c.use_bias, c.norm_epsilon)
            self.source_embedding_norm = Norm(c.norm, c.use_bias, c.norm_epsilon)
        shape = (c.length, c.width)
        if c.position == "learned":
            self.position = self.param("position", init, shape)
        if self.config.encoder.position == "learned":
            self.source_position = self.param("source_position", init, shape)

    def forward(self, batch: Batch, *, deterministic: bool = True) -> TokenOutputs:
        """Returns the float32 logits of the next token after each position of "inputs" (B, T).

        With `loss_chunk`, returns the `TokenScores` of "targets" (B, T) instead.

        Args:
          batch: "source" (B, S) and "inputs" (B, T) tokens, right-padded, and "source_length" (B,),
            all int32. S and T are at most `config.length`.
          deterministic: disables dropout.
        """
        return self._forward(batch, deterministic, weights=False)[0]

    def weights(self, batch: Batch) -> Float[Array, "B N T S"]:
        """Returns the float32 cross-attention weights; N is layers times heads, first layer first.

        The argument is as in `forward`. Rows sum to one if the normalizer is a distribution; the
        weights of source padding are zero.
        """
        return self._forward(batch, True, weights=True)[2]

    def encode(self, source: Int[Array, "B S"], source_length: Int[Array, " B"]) -> Memory:
        """Returns the memory: "keys_values" of each layer (L, B, ...), and "valid"."""
        return self._encode(source, source_length, deterministic=True)

    def init_state(self, memory: Memory, length: int) -> dict:
        """Returns the state before the first token, with room for `length` tokens."""
        return transformer.init_state(self.config.decoder, memory["valid"].shape[0], length)

    def step(
        self, memory: Memory, state: dict, token: Int[Array, " B"]
    ) -> tuple[Float[Array, "B V"], dict, Float[Array, "B N S"]]:
        """Returns the logits of the next token, the new state, and the weights of N heads."""
        logits, state, weights = self._decode(memory, state, token[:, None], True, weights=True)
        return logits[:, 0], state, weights[:, :, 0]

    @property
    def implementation(self) -> str:
        """Names of the implementations of the mixers, encoder first."""
        return self.config.implementation

    def parameter_axes(self, params: Any) -> Any:
        """Returns a tree with the `Axes` of each parameter.

        Args:
          params: parameters or their shapes; extra leading axes (population) are not described.
        """
        mixers = {"encoder": self.config.encoder.mixers, "decoder": self.config.decoder.mixers}

        def axes(path: tuple, _: Any) -> Axes:
            names = [key.key for key in path]
            if names[0] == "cross":
                own = self.config.cross.parameters()[names[-1]].axes
            elif "mixer" in names:
                own = mixers[names[0]][int(names[2])].parameters()[names[-1]].axes
            else:
                own = AXES[names[-1]]
            return own.stacked() if "layers" in names else own

        return jax.tree_util.tree_map_with_path(axes, params)

    def state_bytes(self, length: int) -> int:
        """Returns the bytes of one sequence's decoding state.

        Counts the self-attention caches and the keys and values of the source, both with room for
        `length` tokens.
        """
        c = self.config.decoder

        def kept() -> Any:
            memory = jnp.zeros((1, length, c.width), c.dtype)
            cross = self._init_cross(jax.random.key(0))["layers"]
            return transformer.init_state(c, 1, length)["layers"], self._project_memory(
                cross, memory
            )

        shapes = jax.tree.leaves(jax.eval_shape(kept))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in shapes)

    def _init_cross(self, key: jax.Array) -> dict[str, dict[str, Array]]:
        """Returns initial cross-attention parameters, stacked over layers like the layers' own."""
        described = self.config.cross.parameters()
        keys = jax.random.split(key, (len(described), self.config.decoder.num_layers))
        return {
            "layers": {
                name: jax.vmap(lambda k, p=p: p.init(k, p.shape, jnp.float32))(own)
                for (name, p), own in zip(described.items(), keys, strict=True)
            }
        }

    def _project_memory(
        self, cross: dict[str, Array], memory: Float[Array, "B S M"]
    ) -> SourceKeysValues:
        return jax.vmap(self.config.cross.project_memory, (0, None))(cross, memory)

    def _forward(self, batch: Batch, deterministic: bool, weights: bool) -> tuple:
        memory = self._encode(batch["source"], batch["source_length"], deterministic)
        targets = batch.get("targets") if self.config.decoder.loss_chunk else None
        return self._decode(memory, None, batch["inputs"], deterministic, weights, targets)

    def _encode(self, source: Array, source_length: Array, deterministic: bool) -> Memory:
        c = self.config.encoder
        valid = jnp.arange(source.shape[1]) < source_length[:, None]
        table = self.embedding if c.tie_embeddings else self.source_embedding
        learned = self.source_position if c.position == "learned" else None
        norm = self.source_embedding_norm if c.embedding_norm else None
        x = self._embed(c, table, learned, norm, source, 0, deterministic)
        # Padding is on the right, so a causal encoder never attends to it and needs no mask.
        mask = padding(valid) if self.config.encoder_bidirectional else None
        x = self.encoder(x, mask, deterministic)
        return {"keys_values": self._project_memory(dict(self.cross["layers"]), x), "valid": valid}

    def _decode(
        self,
        memory: Memory,
        state: Any,
        tokens: Array,
        deterministic: bool,
        weights: bool,
        targets: Array | None = None,
    ) -> tuple:
        """Returns the logits, the new state, and the weights (None unless requested).

        Given targets, it returns their `TokenScores` in place of the logits.
        """
        c = self.config.decoder
        learned = self.position if c.position == "learned" else None
        start = 0 if state is None else state["step"]
        norm = self.embedding_norm if c.embedding_norm else None
        x = self._embed(c, self.embedding, learned, norm, tokens, start, deterministic)
        source = dict(self.cross["layers"]), memory["keys_values"]
        x, state, found = self.decoder(x, state, source, memory["valid"], deterministic, weights)
        if targets is not None:
            return token_scores(self._logits, x, targets, c.loss_chunk), state, found
        return self._logits(x), state, found

    def _logits(self, x: Float[Array, "B T M"]) -> Float[Array, "B T V"]:
        c = self.config.decoder
        matrix = self.embedding.T if c.tie_embeddings else self.head
        return finish_logits(c, linear(x, matrix), self.head_bias if c.output_bias else None)

    def _embed(
        self,
        c: TransformerConfig,
        table: Array,
        learned: Array | None,
        norm: Norm | None,
        tokens: Array,
        start: Any,
        deterministic: bool,
    ) -> Float[Array, "B N M"]:
        """Returns token embeddings plus the encodings of positions `start`, `start` + 1, ..."""
        x = lookup(table.astype(c.dtype), tokens) * c.embedding_scale
        if c.position == "sinusoidal":
            sizes = c.embedding_stddev, c.embedding_scale
            learned = jnp.asarray(sinusoids(c.length, c.width, *sizes))
        if learned is not None:
            window = jax.lax.dynamic_slice_in_dim(learned, start, tokens.shape[1])
            x = x + window.astype(x.dtype)
        if norm is not None:
            x = norm(x)
        return constrain(self.dropout(x, deterministic=deterministic), *HIDDEN)


def check_causal(specs: Sequence[MixerSpec], what: str = "a decoder") -> None:
    """Raises UserError for a non-causal mixer, which would see the tokens to predict."""
    for spec in specs:
        if spec.bidirectional:
            mask = spec.values.get("mask", "full")
            raise UserError(
                f"model.mask={mask!r} of mixer {spec.name!r} looks ahead, and {what} must not "
                "attend to the tokens that it predicts; choose a causal mask, such as "
                "model.mask='causal'."
            )


def check_cross(cross: MixerSpec, delta: str) -> None:
    """Raises UserError for a position encoding that cross-attention cannot apply."""
    if cross.position != "none" and cross.position in MODEL_POSITIONS:
        raise UserError(
            f"model.cross={delta!r}: position {cross.position!r} is added to the input of the "
            "model, not to the queries and keys of its attention; set "
            f"model.position={cross.position!r}."
        )


OF_DECODER_ALONE = ("canon", "parallel_residual")
"""Options of `DecoderOptions` that an encoder-decoder does not have."""
CROSS = {"mixer": "softmax", "mask": "full", "position": "none"}
"""Defaults of cross-attention, whatever the mechanism of the layers."""


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderOptions(DecoderOptions):
    """A transformer that reads a source and writes a target

    The mechanism keys describe the decoder's self-attention; `pattern` varies it by layer. The
    encoder uses the same mechanism with mask=full (if its mixer reads masks), and cross-attention
    uses it with mixer=softmax, mask=full and position=none.
    """

    source = "Vaswani et al. 2017"

    encoder_layers: int = option(0, "number of encoder layers; 0: num_layers", least=0)
    encoder: str = option(
        "mask=full", "attention keys that differ in the encoder, as key=value, ..."
    )
    cross: str = option(
        "mask=full, position=none",
        "attention keys that differ in the cross-attention, as key=value, ...",
    )

    def reads(self, declared: Declared) -> bool:
        """Returns whether an option is read; some are of a decoder without a source alone."""
        return declared.name not in OF_DECODER_ALONE and super().reads(declared)

    @property
    def depth(self) -> int:
        """Number of encoder layers."""
        return self.encoder_layers or self.num_layers

    @property
    def encoder_start(self) -> dict[str, Any]:
        """Defaults of the encoder's layers, applied before its delta."""
        return {"mask": "full", "num_layers": self.depth}

    def layers(self) -> tuple[Layer, ...]:
        """Returns the layers of the decoder's pattern, the encoder's and the cross-attention's."""
        encoder = part_layer(self, "encoder", self.encoder_start)
        return (*pattern_layers(self), encoder, part_layer(self, "cross", CROSS))

    def specs(self, length: int) -> tuple[MixerSpec, ...]:
        """Returns the mixers of the decoder's pattern for targets of at most this length."""
        return tuple(one.spec(length) for one in pattern_layers(self))

    def make(
        self, vocab_size: int, length: int, substitutes: Substitutes | None = None, classes: int = 0
    ) -> EncoderDecoder:
        """Returns the encoder-decoder; see `ModelOptions`."""
        layers = self.specs(length)
        check_causal(layers)
        encoder = part_spec(self, length, "encoder", self.encoder_start, "self")
        cross = part_spec(self, length, "cross", CROSS, "cross")
        check_cross(cross, self.cross)
        check_base_width(self, (*layers, encoder, cross))
        layers = tuple(with_substitute(one, substitutes or {}) for one in layers)
        encoder, cross = (with_substitute(one, substitutes or {}) for one in (encoder, cross))
        changes = {"num_layers": self.depth, "position": encoder.position}
        position = added_position(pattern_layers(self))
        return EncoderDecoder(
            EncoderDecoderConfig(
                encoder=transformer_config(self, vocab_size, length, (encoder,), **changes),
                decoder=transformer_config(self, vocab_size, length, layers, position=position),
                cross=make_cross(cross, self.width),
                encoder_bidirectional=encoder.bidirectional,
                implementation=implementation_names((encoder, *layers, cross)),
            )
        )


def make_cross(spec: MixerSpec, memory_width: int) -> CrossAttention:
    """Returns cross-attention to a memory of the given width."""
    options: Any = spec.options
    return cross_attention.make_cross(options, spec.context, memory_width)
