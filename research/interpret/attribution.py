"""Attribution methods: how much each input position contributes to one output of a model.

The caller provides the output as a scalar function of one example: the logit or probability of a
class, or a loss. Attributions have shape (S,), one per position; where the method is signed, a
negative value lowers the output. All functions are traceable.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

ScalarOfEmbeddings = Callable[[Float[Array, "S M"]], Float[Array, ""]]
ScalarOfTokens = Callable[[Int[Array, " S"]], Float[Array, ""]]
OfWeights = Callable[[Float[Array, "*w"]], Float[Array, ""]]


def gradient(f: ScalarOfEmbeddings, embeddings: Float[Array, "S M"]) -> Float[Array, " S"]:
    """Returns the norm of the gradient at each position, unsigned.

    Simonyan et al. 2013, "Deep Inside Convolutional Networks: Visualising Image Classification
    Models and Saliency Maps", section 3, with the Euclidean norm over the width.
    """
    return jnp.linalg.norm(jax.grad(f)(embeddings), axis=-1)


def gradient_times_input(
    f: ScalarOfEmbeddings, embeddings: Float[Array, "S M"]
) -> Float[Array, " S"]:
    """Returns the gradient times the embedding, summed over the width.

    Denil et al. 2014, "Extraction of Salient Sentences from Labelled Documents". It equals the
    gradient with respect to the token's entry in the one-hot input, whose absolute value Jain and
    Wallace 2019, "Attention is not Explanation", compare with attention (section 4.1).
    """
    return (jax.grad(f)(embeddings) * embeddings).sum(-1)


def integrated_gradients(
    f: ScalarOfEmbeddings,
    embeddings: Float[Array, "S M"],
    baseline: Float[Array, "S M"] | None = None,
    steps: int = 64,
    batch_size: int = 8,
) -> Float[Array, " S"]:
    """Returns integrated gradients along the line from the baseline, summed over the width.

    Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", eq. 1, by the midpoint
    rule. They sum to f(embeddings) - f(baseline) (proposition 1) up to the error of the
    discretization: see `completeness_gap`.

    Args:
      f: function to explain.
      embeddings: embeddings of the input.
      baseline: embeddings of an uninformative input; None: zeros.
      steps: number of gradients to average.
      batch_size: gradients computed at once; memory grows with it.
    """
    baseline = jnp.zeros_like(embeddings) if baseline is None else baseline
    way = embeddings - baseline

    def at(part: Float[Array, ""]) -> Float[Array, " S"]:
        return (jax.grad(f)(baseline + part * way) * way).sum(-1)

    parts = (jnp.arange(steps, dtype=jnp.float32) + 0.5) / steps
    return jax.lax.map(at, parts, batch_size=min(batch_size, steps)).mean(0)


def completeness_gap(
    f: ScalarOfEmbeddings,
    embeddings: Float[Array, "S M"],
    attributions: Float[Array, " S"],
    baseline: Float[Array, "S M"] | None = None,
) -> Float[Array, ""]:
    """Returns the sum of integrated gradients minus its exact value, f(embeddings) - f(baseline).

    Sundararajan et al. 2017, section 5, advise more steps if it exceeds 5 % of that difference.
    """
    baseline = jnp.zeros_like(embeddings) if baseline is None else baseline
    return attributions.sum() - (f(embeddings) - f(baseline))


def leave_one_out(
    f: ScalarOfTokens,
    tokens: Int[Array, " S"],
    replacement: int | Int[Array, ""],
    batch_size: int = 32,
) -> Float[Array, " S"]:
    """Returns how much f falls when one token is replaced, for each token.

    Li et al. 2016, "Understanding Neural Networks through Representation Erasure", eq. 1 without
    the division.

    Args:
      f: function to explain.
      tokens: the input.
      replacement: an uninformative token.
      batch_size: inputs computed at once.
    """
    tokens = jnp.asarray(tokens)

    def without(position: Int[Array, ""]) -> Float[Array, ""]:
        return f(tokens.at[position].set(replacement))

    positions = jnp.arange(tokens.shape[0])
    found = jax.lax.map(without, positions, batch_size=min(batch_size, tokens.shape[0]))
    return f(tokens) - found


def gradient_times_attention(f: OfWeights, weights: Float[Array, "*w"]) -> Float[Array, "*w"]:
    """Returns each weight times the gradient of f with respect to it.

    The first-order estimate of how much f falls without the weight: Serrano and Smith 2019, "Is
    Attention Interpretable?", rank weights by this product. The gradient ignores that the weights
    sum to one.
    """
    return jax.grad(f)(weights) * weights
