"""Stacks of transformer layers for encoders and decoders, their options and decoding state."""

from dataclasses import dataclass, fields
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from research.attention.mixers.cross_attention import CrossAttention
from research.attention.mixers.projections import NORM_EPSILON
from research.attention.parameters import matrix_axes, table_axes, vector_axes
from research.attention.parts.masks import Mask, padding
from research.attention.spec import MixerSpec
from research.models.block import (
    KEPT,
    TransformerConfig,
    run_layers,
)
from research.models.canon import empty_pasts
from research.models.layers import (
    ModelSize,
    hidden_stddev,
    implementation_names,
    make_mixers,
)
from research.models.primitives import (
    ACTIVATIONS,
    NORMS,
)
from research.models.residual import NORM_PLACEMENTS, final_norm
from research.options import option
from research.parallel.rules import constrain

# Logical axes of all parameters outside the mixers. The rows of the position table are not sharded,
# because they are few.
AXES = {
    "embedding": table_axes("vocab", "width"),
    "head": table_axes("width", "vocab"),
    "head_bias": vector_axes("vocab"),
    "position": table_axes("", "width"),
    "in": matrix_axes("width", "feedforward"),
    "gate": matrix_axes("width", "feedforward"),
    "out": matrix_axes("feedforward", "width"),
    "taps": table_axes("taps", "width", roles="oo"),
    "hidden_taps": table_axes("taps", "feedforward", roles="oo"),
    "in_bias": vector_axes("feedforward"),
    "gate_bias": vector_axes("feedforward"),
    "out_bias": vector_axes("width"),
    "scale": vector_axes("width"),
    "bias": vector_axes("width"),
}

OF_DECODER: dict[str, Any] = {
    "tie_embeddings": True,
    "base_width": 0,
    "output_cap": 0.0,
    "output_scale": 1.0,
    "output_bias": False,
    "embedding_scale": 1.0,
    "parallel_residual": False,
    "loss_chunk": 0,
    "canon": "none",
}
"""{option that only some models of transformer layers have: its value in the others}."""

SourceKeysValues = dict[str, Float[Array, "L B S K D"]]
"""Projected keys and values of a source, for the cross-attention of every layer."""


def finish_logits(
    c: TransformerConfig, logits: Float[Array, "B T V"], bias: Float[Array, " V"] | None = None
) -> Float[Array, "B T V"]:
    """Returns float32 logits: scaled, plus a bias, then bounded by cap * tanh(x / cap).

    They are multiplied by `output_scale`, and from the base width.

    Sources: Yang et al. 2022, table 8 (output multiplier); Gemma Team 2024 (Gemma 2), section 2.
    """
    logits = logits.astype(jnp.float32)
    if c.base_width:
        logits = logits * (c.base_width / c.width)
    if c.output_scale != 1:
        logits = logits * c.output_scale
    if bias is not None:
        logits = logits + bias
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
        x, _ = run_layers(c, x, mask=mask, deterministic=deterministic)
        return final_norm(c, x)


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
        x, (new, found) = run_layers(
            c,
            x,
            old,
            sources,
            padding(valid),
            q_index,
            deterministic=deterministic,
            cross=self.cross,
            weights=weights,
        )
        if state is not None:
            state = {"step": state["step"] + x.shape[1], "layers": new}
        if weights:
            # From (repeats, pattern, B, H, T, S) to (B, L H, T, S): merge repeats and pattern into
            # layers, then put layers next to heads to merge those.
            found = jnp.moveaxis(found.reshape(-1, *found.shape[2:]), 1, 0)
            found = found.reshape(found.shape[0], -1, *found.shape[3:]).astype(jnp.float32)
        return final_norm(c, x), state, found


def init_state(config: TransformerConfig, batch: int, length: int) -> dict:
    """Returns the decoding state of `batch` empty sequences with room for `length` tokens."""
    repeats = config.num_layers // len(config.mixers)
    dtype = jnp.dtype(config.dtype)
    layers = tuple(mixer.init_state(batch, length, dtype) for mixer in config.mixers)
    if pasts := empty_pasts(config, batch, dtype):
        layers = tuple({"mixer": state, "canon": pasts} for state in layers)
    stacked = jax.tree.map(lambda a: jnp.stack([a] * repeats), layers)
    return {"step": jnp.int32(0), "layers": stacked}


OF_BLOCKS = (
    "feedforward",
    "activation",
    "norm",
    "norm_epsilon",
    "norm_placement",
    "remat",
    "remat_keeps",
)
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
    norm: str = option(
        "rmsnorm",
        "type of the norms of the sublayers; zero_centered: the gain is 1 + a parameter",
        allowed=NORMS,
        source="Zhang and Sennrich 2019; Ba et al. 2016; Gemma Team 2024 (Gemma)",
    )
    norm_epsilon: float = option(
        NORM_EPSILON, "added to the mean square in these norms, and in model.qk_norm", above=0
    )
    norm_placement: str = option(
        "pre",
        "where the norms are: pre: before each sublayer; post: after its sum with the residual "
        "stream; sandwich: before it and after it; output: after it",
        allowed=NORM_PLACEMENTS,
        source="Xiong et al. 2020; Vaswani et al. 2017, section 3.1; Gemma Team 2024 (Gemma 2); "
        "OLMo Team 2024 (OLMo 2)",
    )
    embedding_norm: bool = option(
        False,
        "normalizes embeddings, with the positions that are added to them, before the first layer",
        source="Devlin et al. 2019 (BERT), in their code; Le Scao et al. 2022 (BLOOM), section 3.2",
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
        **OF_DECODER,
        "init_stddev": hidden_stddev(model),
        "position": "none",
        "vocab_size": vocab_size,
        "length": length,
        "mixers": make_mixers(specs),
        # The options hold the requested name, possibly "auto"; the config holds the resolved one.
        "implementation": implementation_names(specs),
    }
    for one in fields(TransformerConfig):
        if one.name not in values or one.name in OF_DECODER:
            values[one.name] = getattr(model, one.name, values.get(one.name))
    return TransformerConfig(**values | changes)
