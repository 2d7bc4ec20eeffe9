"""Logit lens: the predictions of a model read off its residual stream after each layer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from research.interpret.capture import record, stacked
from research.models.decoder import Decoder
from research.models.primitives import Norm, linear
from research.models.transformer import finish_logits
from research.tasks.task import Batch

Normalize = Callable[[Float[Array, "*b M"]], Float[Array, "*b M"]]
Unembed = Callable[[Float[Array, "*b M"]], Float[Array, "*b V"]]


def logit_lens(
    residuals: Float[Array, "layers *b T M"], norm: Normalize, unembed: Unembed
) -> Float[Array, "layers *b T V"]:
    """Returns float32 logits computed from the residual stream at each layer.

    nostalgebraist 2020, "interpreting GPT: the logit lens": applies the model's final normalization
    and unembedding to every layer. The last entry is the model's own logits.

    Args:
      residuals: residual stream before the first layer and after each layer, L + 1 entries.
      norm: the model's final normalization, with its parameters bound.
      unembed: the map from the model width to logits, with its parameters bound.
    """
    return unembed(norm(jnp.asarray(residuals))).astype(jnp.float32)


def decoder_lens(model: Decoder, params: PyTree, batch: Batch) -> Float[Array, "layers B T V"]:
    """Returns the logit lens of a decoder before its first layer and after each, L + 1 entries.

    Args:
      model: the decoder.
      params: its parameters.
      batch: a batch with "inputs" (B, T).
    """
    recorded = record(model, params, batch, ("entry", "exit"))[1]
    entries, exits = (stacked(recorded, site) for site in ("entry", "exit"))
    c = model.config
    head = params["embedding"].T if c.tie_embeddings else params["head"]

    def norm(x: Float[Array, "*b M"]) -> Float[Array, "*b M"]:
        if "norm" not in params:  # "post" layers end in a norm of their own
            return x
        return Norm(c.norm, c.use_bias, c.norm_epsilon).apply({"params": params["norm"]}, x)  # ty: ignore

    def unembed(x: Float[Array, "layers B T M"]) -> Float[Array, "layers B T V"]:
        bias = params.get("head_bias")
        return jax.vmap(lambda y: finish_logits(c, linear(y, head.astype(y.dtype)), bias))(x)

    return logit_lens(jnp.concatenate([entries[:1], exits]), norm, unembed)
