"""What a model would predict if it stopped after each layer."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from research.interpret.capture import record, stacked
from research.models.projection import linear
from research.models.transformer import Decoder, Norm
from research.tasks.task import Batch

Normalize = Callable[[Float[Array, "*b M"]], Float[Array, "*b M"]]
Unembed = Callable[[Float[Array, "*b M"]], Float[Array, "*b V"]]


def logit_lens(
    residuals: Float[Array, "layers *b T M"], norm: Normalize, unembed: Unembed
) -> Float[Array, "layers *b T V"]:
    """Returns the logits read off the residual stream, float32.

    nostalgebraist 2020, "interpreting GPT: the logit lens": the model's last normalization and
    unembedding applied to every layer. The last are the model's own logits.

    Args:
      residuals: the stream before the first layer and after each, L + 1 of them.
      norm: what the model does between its last layer and the unembedding, with its parameters.
      unembed: from the width to logits, with its parameters.
    """
    return unembed(norm(jnp.asarray(residuals))).astype(jnp.float32)


def decoder_lens(model: Decoder, params: PyTree, batch: Batch) -> Float[Array, "layers B T V"]:
    """Returns the logit lens of a decoder: in front of its layers and behind each, L + 1 in all.

    Args:
      model: the decoder.
      params: its parameters.
      batch: with "inputs" (B, T).
    """
    recorded = record(model, params, batch, ("entry", "exit"))[1]
    entries, exits = (stacked(recorded, site) for site in ("entry", "exit"))
    c = model.config
    head = params["embedding"].T if c.tie_embeddings else params["head"]

    def norm(x: Float[Array, "*b M"]) -> Float[Array, "*b M"]:
        return Norm(c.norm, c.use_bias).apply({"params": params["norm"]}, x)  # ty: ignore

    return logit_lens(
        jnp.concatenate([entries[:1], exits]), norm, lambda x: linear(x, head.astype(x.dtype))
    )
