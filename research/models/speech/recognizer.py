"""Speech recognizers: a listener (encoder), with a speller (attention decoder), CTC, or both.

Listen, Attend and Spell (Chan et al. 2016), the attention of Chorowski et al. 2015, the
Speech-Transformer (Dong et al. 2018) and the Conformer (Gulati et al. 2020) are choices of the two
parts; the objective can combine the speller's with CTC (Graves et al. 2006; Kim et al. 2017).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.attention.mixers.rnn import CELLS
from research.attention.parameters import table_axes, vector_axes
from research.errors import UserError
from research.losses import ctc as connectionist
from research.models.encoder_decoder import CROSS
from research.models.layers import Layer, Substitutes, part_layer, pattern_layers
from research.models.primitives import linear, matrix_init
from research.models.recurrent.attention import ATTENTIONS, decoder_attention_layer
from research.models.speech import listeners, spellers
from research.models.speech.listeners import Listener, ListenerConfig, make_listener
from research.models.speech.spellers import (
    Memory,
    SpellerConfig,
    make_recurrent_speller,
    make_transformer_speller,
)
from research.models.transformer import OF_BLOCKS, TransformerOptions
from research.options import Declared, option
from research.parallel.rules import constrain
from research.tasks.speech.recognition_scores import SpeechOutputs
from research.tasks.task import BOS, EOS, PAD, Batch

SPELLERS = {"recurrent": make_recurrent_speller, "transformer": make_transformer_speller}
NO_LABEL = -1e9
"""Logit of tokens that are not CTC labels: their probability is practically zero."""


@dataclass(frozen=True)
class SpeechConfig:
    """Static description of a speech recognizer.

    Attributes:
      vocab_size: V.
      length: maximum number of tokens in a target, including the end token.
      ctc_weight: lambda of the objective (1 - lambda) attention + lambda CTC (Kim et al. 2017,
        equation 9); 0: no CTC; 1: no speller.
      listener: config of the listener, which maps frames to states.
      speller: config of the speller, which maps states to tokens; None: no speller.
      implementation: names of the implementations, listener first.
    """

    vocab_size: int
    length: int
    ctc_weight: float
    listener: ListenerConfig
    speller: SpellerConfig | None
    implementation: str


class SpeechModel(nn.Module):
    """Maps frames and target tokens to `SpeechOutputs`; a `SequenceToSequence` of model.py."""

    config: SpeechConfig

    def setup(self) -> None:
        c = self.config
        self.listener = Listener(c.listener)
        if c.speller is not None:
            self.speller = spellers.make(c.speller)
        if c.ctc_weight:
            init = matrix_init(c.listener.init_stddev)
            self.head = self.param("ctc", init, (c.listener.width, c.vocab_size))
            self.bias = self.param("ctc_bias", nn.initializers.zeros, (c.vocab_size,))

    def forward(self, batch: Batch, *, deterministic: bool = True) -> SpeechOutputs:
        """Returns the outputs from which the metrics of speech recognition are computed.

        Args:
          batch: "source" (B, S, F) float32 frames, right-padded, "source_length" (B,) and "inputs"
            (B, T) int32.
          deterministic: disables dropout, and adds the labelling found by greedy decoding. The
            speller's has up to 2 T tokens, so that insertion errors show in the error rate.
        """
        c = self.config
        states, lengths = self._listen(batch["source"], batch["source_length"], deterministic)
        ctc = self._ctc_logits(states) if c.ctc_weight else None
        # Decoding during initialization would only cost compile time.
        looks = deterministic and not self.is_initializing()
        logits = labelling = None
        if c.speller is not None:
            memory = self.speller.make_memory(states, lengths)
            logits, _ = self.speller.decode(memory, batch["inputs"], deterministic)
            room = min(2 * batch["inputs"].shape[1], c.length)
            labelling = self._spelled(memory, room) if looks else None
        elif looks:
            labelling = connectionist.greedy(ctc, lengths, PAD).tokens
        weight = jnp.float32(c.ctc_weight)
        return SpeechOutputs(logits, ctc, lengths, weight, labelling)

    def encode(
        self, source: Float[Array, "B S F"], source_length: Int[Array, " B"]
    ) -> dict[str, Any]:
        """Returns the memory of the R states.

        "valid" (B, R): False at padding. "ctc" (B, R, V): log p, if the model has CTC. And the
        memory of the speller, if there is one.
        """
        states, lengths = self._listen(source, source_length, deterministic=True)
        memory: Memory = {"valid": jnp.arange(states.shape[1]) < lengths[:, None]}
        if self.config.speller is not None:
            memory |= self.speller.make_memory(states, lengths)
        if self.config.ctc_weight:
            memory["ctc"] = jax.nn.log_softmax(self._ctc_logits(states))
        return memory

    def init_state(self, memory: Memory, length: int) -> Any:
        """Returns the state before the first token, with room for `length` tokens.

        Raises UserError if the model has no speller.
        """
        return self._speller().init_state(memory, length)

    def step(
        self, memory: Memory, state: Any, token: Int[Array, " B"]
    ) -> tuple[Float[Array, "B V"], Any, Float[Array, "B H R"]]:
        """Returns float32 logits of the next token, the new state, and the attention weights.

        Raises UserError if the model has no speller.
        """
        return self._speller().step(memory, state, token)

    def weights(self, batch: Batch) -> Float[Array, "B H T R"]:
        """Returns the attention weights of each target position (teacher forcing) on the states.

        H is 0 without attention or without a speller.
        """
        states, lengths = self._listen(batch["source"], batch["source_length"], True)
        if self.config.speller is None:
            rows, targets = batch["inputs"].shape
            return jnp.zeros((rows, 0, targets, states.shape[1]))
        memory = self.speller.make_memory(states, lengths)
        return self.speller.decode(memory, batch["inputs"], True, with_weights=True)[1]

    def ctc(self, memory: Memory) -> tuple[Float[Array, "B R V"], Int[Array, " B"]]:
        """Returns log p of each frame's label, with PAD as the blank, and the number of frames.

        Raises UserError if the model has no CTC.
        """
        if not self.config.ctc_weight:
            raise UserError("model.ctc_weight=0.0: this model has no CTC; it needs more than 0.")
        return memory["ctc"], memory["valid"].sum(-1, dtype=jnp.int32)

    @nn.nowrap
    def subsampled(self, length: Any) -> Any:
        """Returns R, the number of states for `length` frames."""
        return listeners.subsampled(self.config.listener.levels, length)

    @property
    def implementation(self) -> str:
        """Names of the implementations of the mixers, listener first."""
        return self.config.implementation

    @nn.nowrap
    def parameter_axes(self, params: Any) -> Any:
        """Returns a tree with the `Axes` of each parameter.

        Args:
          params: parameters or their shapes; extra leading axes (population) are not described.
        """
        c = self.config
        found: dict[str, Any] = {
            "listener": listeners.parameter_axes(c.listener, params["listener"])
        }
        if c.speller is not None:
            found["speller"] = spellers.parameter_axes(c.speller, params["speller"])
        if c.ctc_weight:
            found |= {"ctc": table_axes("width", "vocab"), "ctc_bias": vector_axes("vocab")}
        return found

    @nn.nowrap
    def state_bytes(self, length: int) -> int | None:
        """Returns the bytes needed to decode one sequence of `length` tokens from `length` states.

        Returns None without a speller.
        """
        c = self.config
        if c.speller is None:
            return None
        return spellers.state_bytes(c.speller, c.listener.width, length)

    def _listen(self, source: Array, source_length: Array, deterministic: bool) -> tuple:
        return self.listener(source, source_length, deterministic)

    def _speller(self) -> Any:
        if self.config.speller is None:
            raise UserError(
                "model.ctc_weight=1.0: this model has no speller; its CTC output can be decoded, "
                "and less than 1 gives it one."
            )
        return self.speller

    def _ctc_logits(self, states: Float[Array, "B R N"]) -> Float[Array, "B R V"]:
        logits = linear(states, self.head).astype(jnp.float32) + self.bias
        number = jnp.arange(logits.shape[-1])
        logits = jnp.where((number == BOS) | (number == EOS), NO_LABEL, logits)
        return constrain(logits, "batch", "length", "vocab")

    def _spelled(self, memory: Memory, length: int) -> Int[Array, "B T"]:
        # A bound Linen module cannot be called inside lax.scan, so separate it from its parameters.
        speller, variables = self.speller.unbind()
        state = self.speller.init_state(memory, length)

        def step(state: Any, token: Array) -> tuple:
            return speller.apply(variables, memory, state, token, method="step")[:2]

        return greedy_tokens(step, state, len(memory["valid"]), length)


def greedy_tokens(
    step: Callable[[Any, Array], tuple[Array, Any]], state: Any, rows: int, length: int
) -> Int[Array, "B T"]:
    """Returns the result of greedy decoding: the tokens before the end token, then PAD.

    Args:
      step: (state, token (B,)) -> logits (B, V) of the next token and the new state.
      state: the state before the first token.
      rows: B.
      length: T, the maximum number of tokens.
    """

    def one(carry: tuple, _: None) -> tuple:
        state, token, ended = carry
        logits, state = step(state, token)
        number = jnp.arange(logits.shape[-1])
        possible = jnp.where((number == PAD) | (number == BOS), -jnp.inf, logits)
        token = possible.argmax(-1).astype(jnp.int32)
        ended |= token == EOS
        token = jnp.where(ended, PAD, token)
        return (state, token, ended), token

    first = state, jnp.full(rows, BOS, jnp.int32), jnp.zeros(rows, bool)
    return jax.lax.scan(one, first, length=length)[1].T


RECURRENT, TRANSFORMER = "recurrent", "transformer"
OF_RECURRENT = ("cell", "attention", "input_feeding", "embedding_width", "median_window")


@dataclass(frozen=True, kw_only=True)
class SpeechOptions(TransformerOptions):
    """A listener that reads frames of sound, and a speller that writes, or CTC, or both

    A transformer or Conformer listener uses the mechanism keys, and `encoder`, like the encoder of
    an encoder-decoder; a transformer speller uses them, and `cross`, like its decoder; a recurrent
    speller uses them like a recurrent model. Speller options may be set even for CTC alone, so that
    an ablation can have arms with and without a speller.
    """

    source = "Chan et al. 2016; Kim et al. 2017"

    listener: str = option("bilstm", "encoder of the frames", allowed=listeners.LISTENERS)
    encoder_layers: int = option(0, "number of listener layers; 0: num_layers", least=0)
    encoder: str = option(
        "mask=full",
        "attention keys that differ in the listener, as key=value, ...",
        when={"listener": ("transformer", "conformer")},
    )
    subsampling: str = option(
        "convolution",
        "how the frame rate is reduced; pyramid: between the layers of a bilstm "
        "listener (Chan 2016)",
        allowed=listeners.SUBSAMPLINGS,
    )
    levels: int = option(
        2,
        "how many times the number of frames is halved",
        least=0,
        most=listeners.MOST_LEVELS,
    )
    filter_conv: int = option(
        15,
        "kernel size of the Conformer's convolution over time; odd",
        least=1,
        when={"listener": ("conformer",)},
    )
    speller: str = option(RECURRENT, "decoder, which generates the tokens", allowed=tuple(SPELLERS))
    cross: str = option(
        "mask=full, position=none",
        "attention keys that differ in the cross-attention, as key=value, ...",
        when={"speller": (TRANSFORMER,)},
    )
    pattern: tuple[str, ...] = option(
        (),
        'attention keys that differ in each layer of the speller, as "key=value, ..."; '
        "(): all layers are alike",
        when={"speller": (TRANSFORMER,)},
    )
    cell: str = option("lstm", "type of cell in a recurrent speller", allowed=tuple(CELLS))
    attention: str = option(
        "additive", "how a recurrent speller attends to the frames", allowed=tuple(ATTENTIONS)
    )
    input_feeding: bool = option(
        True, "feed the attentional vector of a step to the next one (Luong 2015, 3.3)"
    )
    embedding_width: int = option(0, "width of the embeddings; 0: width", least=0)
    median_window: int = option(
        0,
        "attend only to this many frames on either side of the median of the previous "
        "weights; 0: to all frames",
        least=0,
    )
    tie_embeddings: bool = option(True, "use the embedding matrix as the output matrix, too")
    ctc_weight: float = option(
        0.0, "weight of CTC in the objective (Kim 2017); 1: no speller", least=0, most=1
    )

    def reads(self, declared: Declared) -> bool:
        """Returns whether an option is read, given the listener and the speller."""
        if not super().reads(declared) or declared.name == "embedding_norm":
            return False
        if declared.name == "norm_placement" and self.listener == "conformer":
            return self.speller == TRANSFORMER  # a Conformer block has norms of its own
        if declared.name in OF_BLOCKS:
            return self.listener != "bilstm" or self.speller == TRANSFORMER
        if declared.name in OF_RECURRENT:
            return self.speller == RECURRENT or self.ctc_weight == 1
        return True

    def layers(self) -> tuple[Layer, ...]:
        """Returns the layers of the listener and of the speller; see `ModelOptions`."""
        depth = self.encoder_layers or self.num_layers
        found: tuple[Layer, ...] = ()
        if self.listener != "bilstm":
            found = (part_layer(self, "encoder", {"mask": "full", "num_layers": depth}),)
        if self.speller == TRANSFORMER:
            return (*found, *pattern_layers(self), part_layer(self, "cross", CROSS))
        decoder_attention = decoder_attention_layer(self, self.attention)
        return found if decoder_attention is None else (*found, decoder_attention)

    def make(
        self, vocab_size: int, length: int, substitutes: Substitutes | None = None, classes: int = 0
    ) -> SpeechModel:
        """Returns the recognizer, for any number of frames; see `ModelOptions`."""
        listener, heard = make_listener(self, vocab_size, substitutes or {})
        speller, said = None, ""
        if self.ctc_weight < 1:
            speller, said = SPELLERS[self.speller](self, vocab_size, length, substitutes or {})
        names = ", ".join(filter(None, (heard, said))).split(", ")
        return SpeechModel(
            SpeechConfig(
                vocab_size=vocab_size,
                length=length,
                ctc_weight=float(self.ctc_weight),
                listener=listener,
                speller=speller,
                implementation=", ".join(dict.fromkeys(names)),
            )
        )
