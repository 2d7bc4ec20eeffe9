"""How much each input position matters to one number that a model computes.

The number is a function that the caller gives: the logit or the probability of a class, or a loss,
of one example. Attributions are (S,), one for each position; a negative one speaks against what is
explained, where the method has a sign. Everything can be traced.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

OfEmbeddings = Callable[[Float[Array, "S M"]], Float[Array, ""]]
OfTokens = Callable[[Int[Array, " S"]], Float[Array, ""]]
OfWeights = Callable[[Float[Array, "*w"]], Float[Array, ""]]


def gradient(f: OfEmbeddings, embeddings: Float[Array, "S M"]) -> Float[Array, " S"]:
    """Returns the length of the gradient at each position, no sign.

    Simonyan et al. 2013, "Deep Inside Convolutional Networks: Visualising Image Classification
    Models and Saliency Maps", section 3, with the Euclidean norm over the width.
    """
    return jnp.linalg.norm(jax.grad(f)(embeddings), axis=-1)


def gradient_times_input(f: OfEmbeddings, embeddings: Float[Array, "S M"]) -> Float[Array, " S"]:
    """Returns the gradient times the embedding, summed over the width.

    Denil et al. 2014, "Extraction of Salient Sentences from Labelled Documents". It is also the
    gradient with respect to the weight of the token in its one-hot input, whose size Jain and
    Wallace 2019, "Attention is not Explanation", compare attention with (section 4.1).
    """
    return (jax.grad(f)(embeddings) * embeddings).sum(-1)


def integrated_gradients(
    f: OfEmbeddings,
    embeddings: Float[Array, "S M"],
    baseline: Float[Array, "S M"] | None = None,
    steps: int = 64,
    batch_size: int = 8,
) -> Float[Array, " S"]:
    """Returns integrated gradients along the straight line from the baseline, over the width.

    Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", eq. 1, by the midpoint
    rule. They sum to f(embeddings) - f(baseline) (proposition 1) as well as `steps` allow: see
    `completeness_gap`.

    Args:
      f: what is explained.
      embeddings: of the input.
      baseline: an input that says nothing; None: zeros.
      steps: gradients that are taken.
      batch_size: gradients that are taken at once, the copies of the model's memory.
    """
    baseline = jnp.zeros_like(embeddings) if baseline is None else baseline
    way = embeddings - baseline

    def at(part: Float[Array, ""]) -> Float[Array, " S"]:
        return (jax.grad(f)(baseline + part * way) * way).sum(-1)

    parts = (jnp.arange(steps, dtype=jnp.float32) + 0.5) / steps
    return jax.lax.map(at, parts, batch_size=min(batch_size, steps)).mean(0)


def completeness_gap(
    f: OfEmbeddings,
    embeddings: Float[Array, "S M"],
    attributions: Float[Array, " S"],
    baseline: Float[Array, "S M"] | None = None,
) -> Float[Array, ""]:
    """Returns the sum of integrated gradients minus what it should be, f's change.

    Sundararajan et al. 2017, section 5, advise more steps while it is more than 5 % of the change.
    """
    baseline = jnp.zeros_like(embeddings) if baseline is None else baseline
    return attributions.sum() - (f(embeddings) - f(baseline))


def leave_one_out(
    f: OfTokens, tokens: Int[Array, " S"], replacement: int, batch_size: int = 32
) -> Float[Array, " S"]:
    """Returns how much f falls when a token is replaced, for each alone.

    Li et al. 2016, "Understanding Neural Networks through Representation Erasure", eq. 1 without
    the division.

    Args:
      f: what is explained.
      tokens: the input.
      replacement: a token that says nothing.
      batch_size: inputs that are computed at once.
    """
    tokens = jnp.asarray(tokens)

    def without(position: Int[Array, ""]) -> Float[Array, ""]:
        return f(tokens.at[position].set(replacement))

    positions = jnp.arange(tokens.shape[0])
    found = jax.lax.map(without, positions, batch_size=min(batch_size, tokens.shape[0]))
    return f(tokens) - found


def gradient_times_attention(f: OfWeights, weights: Float[Array, "*w"]) -> Float[Array, "*w"]:
    """Returns each weight times the gradient of f with respect to it.

    What f would lose without the weight, to first order: the product that Serrano and Smith 2019,
    "Is Attention Interpretable?", rank weights by. The gradient moves each weight alone, as if they
    did not have to sum to one.
    """
    return jax.grad(f)(weights) * weights
