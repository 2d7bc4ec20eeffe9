"""Spellers: decoders that predict tokens from a listener's states.

Both kinds have the same methods. `make_memory` computes the memory from the states; `decode`
processes all inputs of a batch at once; `init_state` and `step` process one token at a time, with
the same logits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze
from jaxtyping import Array, Float, Int

from research.attention.mixers.cross_attention import CrossAttention
from research.attention.mixers.rnn import CELLS
from research.attention.mixers.sequential.monotonic import Monotonic
from research.attention.mixers.sequential.windowed import Windowed
from research.attention.parameters import Axes, Parameter, init_function, is_parameter
from research.attention.spec import MixerSpec
from research.errors import UserError
from research.models import transformer
from research.models.block import TransformerConfig
from research.models.encoder_decoder import CROSS, check_causal, check_cross, make_cross
from research.models.layers import (
    Substitutes,
    added_position,
    implementation_names,
    part_spec,
    pattern_layers,
    with_substitute,
)
from research.models.primitives import linear, lookup, matrix_init, sinusoids
from research.models.recurrent import networks
from research.models.recurrent.attention import DecoderAttention, make_decoder_attention
from research.models.recurrent.language_model import RecurrentConfig, recurrent_config
from research.models.residual import HIDDEN
from research.models.speech.listeners import FRAMES, check_any_length, shapes
from research.models.transformer import AXES, DecoderStack, transformer_config
from research.parallel.rules import constrain

Memory = dict[str, Any]
Decoded = tuple[Float[Array, "B T V"], Any]
"""Logits, and weights (B, H, T, S) if requested, otherwise None."""


@dataclass(frozen=True)
class TransformerSpellerConfig:
    """Static description of a transformer speller.

    Attributes:
      decoder: config of the layers, the target's positions and the embeddings.
      cross: cross-attention to the states, the same in every layer.
    """

    decoder: TransformerConfig
    cross: CrossAttention


SpellerConfig = RecurrentConfig | TransformerSpellerConfig


def make(config: SpellerConfig, name: str | None = None) -> "Speller":
    """Returns the speller with the given config."""
    if isinstance(config, RecurrentConfig):
        return RecurrentSpeller(config, name=name)
    return TransformerSpeller(config, name=name)


def recurrent_parameters(c: RecurrentConfig) -> dict[str, Any]:
    """Returns the declarations of a recurrent speller's parameters, a tree of `Parameter`."""
    return {name: tree for name, tree in c.parameters().items() if name != "encoder"}


class RecurrentSpeller(nn.Module):
    """The decoder of research/models/recurrent/language_model.py, without the encoder.

    Its initial states are computed from the mean of the listener's states, because a Conformer has
    no final state; attention `fixed_every_step` uses the same vector.
    """

    config: RecurrentConfig

    def setup(self) -> None:
        described = recurrent_parameters(self.config)
        self.frozen = {
            name: self.param(name, init_function(tree)) for name, tree in described.items()
        }
        self.dropout = nn.Dropout(self.config.dropout)

    def make_memory(self, states: Float[Array, "B S N"], lengths: Int[Array, " B"]) -> Memory:
        """Returns the memory of states, which must be zero from `lengths` on."""
        sizes = self.config.sizes
        count = jnp.maximum(lengths, 1)[:, None]
        mean = states.astype(jnp.float32).sum(1) / count
        parts = CELLS[sizes.cell].init_state(1, 1, "float32")
        last = (dict.fromkeys(parts, mean),) * sizes.num_layers
        return networks.make_memory(sizes, self._params["decoder"], states, last, lengths)

    def decode(
        self,
        memory: Memory,
        inputs: Int[Array, "B T"],
        deterministic: bool,
        with_weights: bool = False,
    ) -> Decoded:
        """Returns float32 logits after each input and, if requested, the attention weights."""

        def drop(x: Array) -> Array:
            return self.dropout(x, deterministic=deterministic)

        sizes, params = self.config.sizes, self._params["decoder"]
        h, weights = networks.decode(sizes, params, memory, drop(self._embed(inputs)), drop)
        if not with_weights:
            return self._logits(drop(h)), None
        if weights is None:
            weights = jnp.zeros((*inputs.shape, 0, memory["valid"].shape[1]))
        return self._logits(drop(h)), jnp.swapaxes(weights, 1, 2)

    def init_state(self, memory: Memory, length: int) -> dict[str, Any]:
        """Returns the state before the first token, of a size independent of `length`."""
        return networks.init_state(self.config.sizes, memory)

    def step(
        self, memory: Memory, state: dict[str, Any], token: Int[Array, " B"]
    ) -> tuple[Float[Array, "B V"], dict[str, Any], Float[Array, "B H S"]]:
        """Returns float32 logits of the next token, the new state, and how the states were read."""
        sizes, params = self.config.sizes, self._params["decoder"]
        gates = networks.input_gates(sizes, params, self._embed(token[:, None]), memory)[:, 0]
        state, (h, weights) = networks.advance(sizes, params, memory, state, gates)
        if weights is None:
            weights = jnp.zeros((len(token), 0, memory["valid"].shape[1]))
        return self._logits(h), state, weights

    @property
    def _params(self) -> dict[str, Any]:
        return unfreeze(self.frozen)

    def _embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T E"]:
        table = self._params["embedding"].astype(self.config.dtype)
        return constrain(lookup(table, tokens), "batch", "", "")

    def _logits(self, h: Float[Array, "*b N"]) -> Float[Array, "*b V"]:
        params = self._params
        head = params["embedding"].T if self.config.tie_embeddings else params["head"]
        axes = ("batch", "length", "vocab") if h.ndim == 3 else ("batch", "vocab")
        return constrain(linear(h, head).astype(jnp.float32), *axes)


class TransformerSpeller(nn.Module):
    """The decoder of research/models/encoder_decoder.py, without the encoder."""

    config: TransformerSpellerConfig

    def setup(self) -> None:
        c = self.config.decoder
        self.decoder = DecoderStack(c, self.config.cross)
        self.cross = self.param("cross", self._init_cross)
        self.dropout = nn.Dropout(c.dropout)
        init, shape = matrix_init(c.embedding_stddev), (c.vocab_size, c.width)
        self.embedding = self.param("embedding", init, shape)
        if not c.tie_embeddings:
            self.head = self.param("head", init, shape[::-1])
        if c.position == "learned":
            self.position = self.param("position", init, (c.length, c.width))

    def make_memory(self, states: Float[Array, "B S N"], lengths: Int[Array, " B"]) -> Memory:
        """Returns the memory: "keys_values" of each layer (L, B, ...), and "valid" (B, S)."""
        cross = dict(self.cross["layers"])
        keys_values = jax.vmap(self.config.cross.project_memory, (0, None))(cross, states)
        return {"keys_values": keys_values, "valid": jnp.arange(states.shape[1]) < lengths[:, None]}

    def decode(
        self,
        memory: Memory,
        inputs: Int[Array, "B T"],
        deterministic: bool,
        with_weights: bool = False,
    ) -> Decoded:
        """Returns float32 logits after each input and, if requested, the weights of all layers."""
        logits, _, weights = self._decode(memory, None, inputs, deterministic, with_weights)
        return logits, weights

    def init_state(self, memory: Memory, length: int) -> dict[str, Any]:
        """Returns the state before the first token, with room for `length` tokens."""
        return transformer.init_state(self.config.decoder, len(memory["valid"]), length)

    def step(
        self, memory: Memory, state: dict[str, Any], token: Int[Array, " B"]
    ) -> tuple[Float[Array, "B V"], dict[str, Any], Float[Array, "B H S"]]:
        """Returns float32 logits of the next token, the new state, and how the states were read."""
        found = self._decode(memory, state, token[:, None], True, True)
        return found[0][:, 0], found[1], found[2][:, :, 0]

    def _init_cross(self, key: jax.Array) -> dict[str, Any]:
        """Returns initial cross-attention parameters, stacked over layers like the layers' own."""
        described, depth = self.config.cross.parameters(), self.config.decoder.num_layers
        return {"layers": jax.vmap(init_function(described))(jax.random.split(key, depth))}

    def _decode(self, memory, state, tokens, deterministic, with_weights):
        c, table = self.config.decoder, self.embedding
        start = 0 if state is None else state["step"]
        x = lookup(table.astype(c.dtype), tokens)
        if c.position in ("learned", "sinusoidal"):
            learned = c.position == "learned"
            rows = self.position if learned else sinusoids(c.length, c.width, c.embedding_stddev)
            window = jax.lax.dynamic_slice_in_dim(jnp.asarray(rows), start, tokens.shape[1])
            x = x + window.astype(x.dtype)
        x = constrain(self.dropout(x, deterministic=deterministic), *HIDDEN)
        source = dict(self.cross["layers"]), memory["keys_values"]
        x, state, weights = self.decoder(
            x, state, source, memory["valid"], deterministic, with_weights
        )
        logits = linear(x, table.T if c.tie_embeddings else self.head)
        logits = constrain(logits.astype(jnp.float32), "batch", "length", "vocab")
        return logits, state, weights


Speller = RecurrentSpeller | TransformerSpeller


def parameter_axes(config: SpellerConfig, params: Any) -> Any:
    """Returns a tree with the `Axes` of each parameter of a speller."""
    if isinstance(config, RecurrentConfig):
        described = recurrent_parameters(config)
        return jax.tree.map(lambda p: p.axes, described, is_leaf=is_parameter)

    def axes(path: tuple, _: Any) -> Axes:
        names = [key.key for key in path]
        if names[0] == "cross":
            own = config.cross.parameters()[names[-1]].axes
        elif "mixer" in names:
            own = config.decoder.mixers[int(names[2])].parameters()[names[-1]].axes
        else:
            own = AXES[names[-1]]
        return own.stacked() if "layers" in names else own

    return jax.tree_util.tree_map_with_path(axes, params)


def state_bytes(config: SpellerConfig, width: int, length: int) -> int:
    """Returns the bytes needed to decode one sequence of `length` tokens from `length` states.

    Args:
      config: the speller's config.
      width: N, width of the states.
      length: number of tokens, and of the listener's states.
    """
    speller = make(config)
    dtype = config.dtype if isinstance(config, RecurrentConfig) else config.decoder.dtype

    def memory_and_state(speller: Speller) -> Any:
        states = jnp.zeros((1, length, width), dtype)
        memory = speller.make_memory(states, jnp.full((1,), length))
        state = speller.init_state(memory, length)
        # "initial" is already counted in the state, and "valid" is determined by one number.
        return {k: a for k, a in memory.items() if k not in ("initial", "valid")}, state

    found = jax.eval_shape(
        lambda: speller.init_with_output(jax.random.key(0), method=memory_and_state)[0]
    )
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(found) if leaf.ndim)


def make_recurrent_speller(
    model: Any, vocab_size: int, length: int, substitutes: Substitutes
) -> tuple[SpellerConfig, str]:
    """Returns the config of a recurrent speller and the name of its implementation."""
    config = recurrent_config(model, vocab_size, FRAMES)
    lengths = (FRAMES, 2 * FRAMES)
    readers = filter(None, (make_decoder_attention(model, model.attention, n) for n in lengths))
    if len({str(shapes(decoder_attention.parameters())) for decoder_attention in readers}) > 1:
        raise UserError(
            f"model.attention={model.attention!r} has parameters for a fixed number of source "
            "positions, and a recording may have any number of frames; choose another attention, "
            "such as 'location_aware'."
        )
    decoder_attention = windowed(config.decoder_attention, model)
    return replace(config, length=length, decoder_attention=decoder_attention), "recurrent"


def make_transformer_speller(
    model: Any, vocab_size: int, length: int, substitutes: Substitutes
) -> tuple[SpellerConfig, str]:
    """Returns the config of a transformer speller and the names of its implementations."""
    decoder = pattern_layers(model)
    layers = tuple(one.spec(length) for one in decoder)
    check_causal(layers, "a speller")
    cross = part_spec(model, FRAMES, "cross", CROSS, "cross")
    check_cross(cross, model.cross)

    def described(spec: MixerSpec) -> Mapping[str, Parameter]:
        return make_cross(spec, model.width).parameters()

    check_any_length(cross, described, "cross", model.cross)
    layers = tuple(with_substitute(one, substitutes) for one in layers)
    cross = with_substitute(cross, substitutes)
    position = added_position(decoder)
    config = TransformerSpellerConfig(
        decoder=transformer_config(model, vocab_size, length, layers, position=position),
        cross=make_cross(cross, model.width),
    )
    return config, implementation_names((*layers, cross))


def windowed(decoder_attention: DecoderAttention | None, model: Any) -> DecoderAttention | None:
    """Applies the window `model.median_window`, if set, to the reader. Raises UserError."""
    if model.median_window == 0:
        return decoder_attention
    where = f"model.median_window={model.median_window}"
    if decoder_attention is None:
        raise UserError(
            f"{where}: model.attention={model.attention!r} does not attend to the frames; "
            "leave it 0."
        )
    if isinstance(decoder_attention.alignment, Monotonic):
        raise UserError(
            f"{where}: model.attention={model.attention!r} only moves forward and takes no "
            "window; leave it 0, or choose another attention, such as 'location_aware'."
        )
    if model.mechanism.get("predicted_window") or model.attention == "local_p":
        raise UserError(
            f"{where}: model.attention={model.attention!r} predicts a window of its own; set only "
            "one of the two."
        )
    inner = Windowed(decoder_attention.alignment, model.median_window, decoder_attention.num_heads)
    return replace(decoder_attention, alignment=inner)
