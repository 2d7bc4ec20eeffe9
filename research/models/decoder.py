"""Decoder-only transformer, a language model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.attention.errors import Unsupported
from research.attention.parameters import Axes
from research.attention.parts.segments import segments as segments_mask
from research.attention.spec import MixerSpec
from research.errors import UserError
from research.losses.token_scores import token_scores
from research.models.block import TransformerConfig, run_layers
from research.models.canon import POINTS
from research.models.layers import (
    Layer,
    Substitutes,
    added_position,
    pattern_layers,
    with_substitute,
)
from research.models.model import Model
from research.models.primitives import linear, lookup, matrix_init, sinusoids
from research.models.residual import HIDDEN, final_norm, norm
from research.models.transformer import (
    AXES,
    TransformerOptions,
    finish_logits,
    init_state,
    transformer_config,
)
from research.options import option
from research.parallel.rules import constrain
from research.tasks.task import Batch, TokenOutputs


class Decoder(nn.Module):
    """Decoder-only transformer that maps tokens to logits of the next token.

    `decoder(tokens)` processes a whole sequence, as in training. `decoder(tokens, state)` continues
    from a decoding state (see `init_state`) by any number of tokens and returns the new state.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        state: Any = None,
        *,
        deterministic: bool = True,
        targets: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
    ) -> tuple[TokenOutputs, Any]:
        """Returns float32 logits (B, T, V) and the new decoding state (None without one).

        Args:
          tokens: the next T tokens.
          state: decoding state before them; None for a whole sequence.
          deterministic: disables dropout.
          targets: if given, their `TokenScores` are returned in place of the logits.
          segments: ids of contiguous segments, none of which depends on another; None for one
            segment. Not with a state.
          positions: positions of the tokens for the encoding that is added to them; None: their
            places in the sequence.
        """
        if state is not None and segments is not None:
            raise ValueError("segments are for whole sequences, not for decoding")
        c = self.config
        dtype = jnp.dtype(c.dtype)
        embedding_init = matrix_init(c.embedding_stddev)
        table = self.param("embedding", embedding_init, (c.vocab_size, c.width)).astype(dtype)
        step = jnp.int32(0) if state is None else state["step"]
        x = lookup(table, tokens) * c.embedding_scale
        if c.position in ("sinusoidal", "learned"):
            if c.position == "learned":
                encoding = self.param("position", embedding_init, (c.length, c.width))
            else:
                sizes = c.embedding_stddev, c.embedding_scale
                encoding = sinusoids(c.length, c.width, *sizes)
            if positions is None:
                added = jax.lax.dynamic_slice_in_dim(encoding, step, tokens.shape[1])
            else:
                added = jnp.asarray(encoding)[positions]
            x = x + added.astype(dtype)
        if c.embedding_norm:
            x = norm(c, "embedding_norm", x)
        x = constrain(nn.Dropout(c.dropout, deterministic=deterministic)(x), *HIDDEN)

        old = None if state is None else state["layers"]
        mask = None if segments is None else segments_mask(segments, segments)
        x, (layer_states, _) = run_layers(c, x, old, mask=mask, deterministic=deterministic)
        if state is not None:
            state = {"step": step + tokens.shape[1], "layers": layer_states}

        x = final_norm(c, x)
        head = bias = None
        if not c.tie_embeddings:
            head = self.param("head", embedding_init, (c.width, c.vocab_size))
        if c.output_bias:
            bias = self.param("head_bias", nn.initializers.zeros, (c.vocab_size,))

        def logits_of(x: Float[Array, "B t M"]) -> Float[Array, "B t V"]:
            tied = x @ constrain(table, "vocab", "").T if head is None else linear(x, head)
            return finish_logits(c, tied, bias)

        if targets is not None:
            return token_scores(logits_of, x, targets, c.loss_chunk), state
        return logits_of(x), state

    def forward(self, batch: Batch, *, deterministic: bool = True) -> TokenOutputs:
        """Returns the float32 logits of "inputs" (B, T).

        With `loss_chunk`, returns the `TokenScores` of "targets" (B, T) instead. "segments" and
        "positions" (B, T), if any, are those of `__call__`.
        """
        options = {name: batch.get(name) for name in ("segments", "positions")}
        options["targets"] = batch.get("targets") if self.config.loss_chunk else None
        return self(batch["inputs"], deterministic=deterministic, **options)[0]

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


@dataclass(frozen=True, kw_only=True)
class DecoderOptions(TransformerOptions):
    """A decoder: a transformer that predicts the next token"""

    source = "Vaswani et al. 2017; Radford et al. 2019"

    tie_embeddings: bool = option(True, "use the embedding matrix as the output matrix, too")
    base_width: int = option(
        0,
        "width at which learning rate and initial sizes were chosen: muP carries them over to "
        "`width`; feedforward has to grow with it, and heads get wider unless head_width is set; "
        "0: off",
        least=0,
        source="Yang et al. 2022, table 8",
    )
    output_cap: float = option(
        0.0,
        "bounds logits of tokens by cap * tanh(logit / cap); 0: off",
        least=0,
        source="Gemma Team 2024 (Gemma 2), section 2",
    )
    output_scale: float = option(
        1.0,
        "factor on logits of tokens, such as T5's width**-0.5 where embeddings are tied",
        above=0,
        source="Raffel et al. 2020 (T5), in their code",
    )
    output_bias: bool = option(False, "adds a bias to the logits of tokens")
    embedding_scale: float = option(
        1.0,
        "factor on embeddings where they are looked up, not where they are the output matrix; the "
        "first transformer's and Gemma's is sqrt(width)",
        above=0,
        source="Vaswani et al. 2017, section 3.4",
    )
    loss_chunk: int = option(
        0,
        "positions of a sequence whose logits exist at once in training and evaluation; 0: all",
        least=0,
    )
    parallel_residual: bool = option(
        False,
        "adds mixer and feed-forward layer of the same input, x + f(norm1(x)) + g(norm2(x))",
        source="Wang and Komatsuzaki 2021 (GPT-J); Black et al. 2022 (GPT-NeoX), section 2.1",
    )
    canon: str = option(
        "none",
        "Canon layers, x plus a causal convolution of four taps: a: before the mixer; c: before "
        "the feed-forward layer; d: before its activation",
        allowed=POINTS,
        source="Allen-Zhu 2025 (Physics of Language Models 4.1), section 4",
    )
    pattern: tuple[str, ...] = option(
        (),
        'attention keys that differ in each layer, as "key=value, ...", repeated up to '
        "num_layers; (): all layers are alike",
    )

    def layers(self) -> tuple[Layer, ...]:
        """Returns the layers of the pattern; see `ModelOptions`."""
        return pattern_layers(self)

    def specs(self, length: int) -> tuple[MixerSpec, ...]:
        """Returns the mixers of the pattern for sequences of at most this length."""
        return tuple(one.spec(length) for one in self.layers())

    def make(
        self, vocab_size: int, length: int, substitutes: Substitutes | None = None, classes: int = 0
    ) -> Model:
        """Returns the decoder; see `ModelOptions`."""
        specs = tuple(with_substitute(one, substitutes or {}) for one in self.specs(length))
        check_base_width(self, specs)
        if not self.feedforward and {"c", "d"} & set(self.canon):
            raise UserError(
                f"model.canon={self.canon!r} has a layer at the feed-forward layer, and "
                "model.feedforward=0 leaves that out; use 'a' or 'none'."
            )
        check_parallel_residual(self)
        position = added_position(self.layers())
        return Decoder(transformer_config(self, vocab_size, length, specs, position=position))


def check_parallel_residual(model: DecoderOptions) -> None:
    """Raises UserError for parallel sublayers of blocks that cannot have them."""
    start = "model.parallel_residual=True: "
    if not model.parallel_residual:
        return
    if not model.feedforward:
        raise UserError(
            f"{start}model.feedforward=0 leaves nothing beside the mixer; use False there."
        )
    if model.norm_placement == "post":
        raise UserError(
            f"{start}model.norm_placement='post' normalizes the sum of x and one sublayer, and "
            "here both are in one sum; use 'pre', 'sandwich' or 'output'."
        )


SCALED_SCORES = ("scaled_dot", "cosine", "learned_cosine")
"""Scores whose size muP keeps: q . k / D, and those that are bounded."""


def check_base_width(model: Any, specs: Sequence[MixerSpec]) -> None:
    """Raises UserError if muP has no rule for a mixer, or for the score of one."""
    for spec in specs:
        score = spec.values.get("score") or "scaled_dot"
        if model.base_width and (spec.name != "softmax" or score not in SCALED_SCORES):
            raise UserError(
                f"model.base_width={model.base_width}: muP has no rule here for mixer "
                f"{spec.name!r} with score {score!r}; it has for mixer 'softmax' with "
                f"{', '.join(SCALED_SCORES)}. Use 0."
            )
