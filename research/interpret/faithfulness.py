"""Faithfulness tests of attention: permutation, adversarial weights, and erasure of tokens.

Permutations and adversaries of attention follow Jain and Wallace 2019, "Attention is not
Explanation". Wiegreffe and Pinter 2019, "Attention is not not Explanation", show the limits of
these tests: the weights of one layer are not free to vary, as the rest of the model was trained
with them. All functions are traceable.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

OutputFromWeights = Callable[[Float[Array, " S"]], Float[Array, " C"]]
"""The output distribution of a model on one example, given its attention."""

FRACTIONS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5)
"""Fractions of the tokens to erase: those of DeYoung et al. 2020, section 4.2, and 0."""


def jensen_shannon(p: Float[Array, "*#b S"], q: Float[Array, "*#b S"]) -> Float[Array, "*#b"]:
    """Returns the Jensen-Shannon divergence in nats, 0 to log 2.

    Lin 1991, "Divergence Measures Based on the Shannon Entropy", eq. 4.1 with equal weights. The
    gradient is finite also where both are zero.
    """
    p, q = jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32)
    found = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
    # Rounding can make it slightly negative.
    return jnp.maximum(found, 0)


def total_variation(p: Float[Array, "*#b C"], q: Float[Array, "*#b C"]) -> Float[Array, "*#b"]:
    """Returns the total variation distance, half the sum of absolute differences: 0 to 1."""
    return jnp.abs(jnp.asarray(p) - jnp.asarray(q)).sum(-1) / 2


def permutation_test(
    f_weights: OutputFromWeights,
    weights: Float[Array, " S"],
    key: Array,
    number: int = 100,
    real: Bool[Array, " S"] | None = None,
    batch_size: int = 32,
) -> Float[Array, ""]:
    """Returns the median change of the output, in total variation, over random permutations.

    Jain and Wallace 2019, section 4.2.1.

    Args:
      f_weights: the model as a function of its attention.
      weights: the model's attention.
      key: random key for the permutations.
      number: number of permutations.
      real: positions whose weights are permuted, False at padding; None: all.
      batch_size: outputs computed at once.
    """
    weights = jnp.asarray(weights, jnp.float32)
    real = jnp.ones(weights.shape, bool) if real is None else jnp.asarray(real)
    output = f_weights(weights)

    def change(key: Array) -> Float[Array, ""]:
        return total_variation(f_weights(_permuted(weights, real, key)), output)

    keys = jax.random.split(key, number)
    return jnp.median(jax.lax.map(change, keys, batch_size=min(batch_size, number)))


class Adversaries(NamedTuple):
    """Attention distributions far from the model's own that give nearly the same output.

    Attributes:
      weights: (K, S), each a distribution.
      divergence: (K,) Jensen-Shannon divergence from the model's attention in nats.
      change: (K,) total variation distance from the model's output, at most epsilon.
    """

    weights: Float[Array, "K S"]
    divergence: Float[Array, " K"]
    change: Float[Array, " K"]


def adversarial_weights(
    f_weights: OutputFromWeights,
    weights: Float[Array, " S"],
    key: Array,
    epsilon: float = 0.01,
    steps: int = 500,
    number: int = 5,
    real: Bool[Array, " S"] | None = None,
    length: float = 0.1,
) -> Adversaries:
    """Returns attention distributions far from the model's that hardly change its output.

    The search of Jain and Wallace 2019, section 4.2.2: gradient ascent on the divergence from the
    model's attention plus the divergence between adversaries, with a penalty while the change of
    the output exceeds epsilon. Each adversary is the furthest point of its path that stayed within
    epsilon, or the model's own attention if there is none. The largest `divergence` is a lower
    bound of the paper's epsilon-max JSD: there are many local maxima, and more adversaries find
    better ones.

    Gradients are with respect to logits. The gradient of the penalty is scaled to twice the length
    of the other, however sensitive the output is, so that the search continues along the
    constraint. With Adam and a fixed penalty of 500 it stalls at the edge of the constraint.

    Args:
      f_weights: the model as a function of its attention; differentiable.
      weights: the model's attention, a distribution.
      key: random key for the starting points of the adversaries.
      epsilon: largest permitted change of the output, in total variation.
      steps: number of ascent steps.
      number: number of adversaries.
      real: positions that may have weight, False at padding; None: all.
      length: length of the first step in logits; decays linearly to 0.
    """
    weights = jnp.asarray(weights, jnp.float32)
    real = jnp.ones(weights.shape, bool) if real is None else jnp.asarray(real)
    output = f_weights(weights)

    def judged(logits: Float[Array, "K S"]) -> Adversaries:
        attention = jax.nn.softmax(logits, where=real)
        change = total_variation(jax.vmap(f_weights)(attention), output)
        return Adversaries(attention, jensen_shannon(attention, weights), change)

    def apart(logits: Float[Array, "K S"]) -> Float[Array, ""]:
        found = judged(logits)
        return found.divergence.sum() + _mutual_divergence(found.weights)

    def step(carry: tuple[Array, Adversaries], size: Float[Array, ""]) -> tuple:
        logits, best = carry
        found = judged(logits)
        beyond = (found.change > epsilon)[:, None]
        away = jax.grad(lambda logits: judged(logits).change.sum())(logits)
        ascent = _unit(jax.grad(apart)(logits)) - 2 * beyond * _unit(away)
        return (logits + size * ascent, _better(best, found, epsilon)), None

    logits = jax.random.normal(key, (number, *weights.shape))
    none = jnp.zeros(number)
    best = Adversaries(jnp.broadcast_to(weights, logits.shape), none, none)
    sizes = length * jnp.linspace(1, 0, steps)
    logits, best = jax.lax.scan(step, (logits, best), sizes)[0]
    return _better(best, judged(logits), epsilon)


def erasures(
    ranking: Float[Array, " S"],
    real: Bool[Array, " S"] | None = None,
    fractions: tuple[float, ...] = FRACTIONS,
) -> tuple[Bool[Array, "R S"], Bool[Array, "R S"]]:
    """Returns masks of the tokens left after erasing the top-ranked ones, and of only the latter.

    DeYoung et al. 2020, "ERASER: A Benchmark to Evaluate Rationalized NLP Models": the drop in
    probability of the predicted class under the first masks is comprehensiveness (eq. 1), high for
    a faithful ranking; under the second masks it is sufficiency (eq. 2), which is low. Means over
    the fractions are the areas over the perturbation curve of section 4.2, which includes the point
    with no token erased.

    Args:
      ranking: attributions; ties go to the earlier position.
      real: False at padding; None: no padding.
      fractions: fractions of the real tokens, rounded up to whole tokens.
    """
    ranking = jnp.asarray(ranking)
    real = jnp.ones(ranking.shape, bool) if real is None else jnp.asarray(real)
    # The argsort of an argsort is the rank of each position; padding ranks last.
    rank = jnp.argsort(jnp.argsort(jnp.where(real, -ranking, jnp.inf), stable=True))
    # The tolerance keeps a product that rounding lifts above a whole number from gaining a token.
    count = jnp.ceil(jnp.asarray(fractions) * real.sum() * (1 - 1e-6))
    chosen = rank < count[:, None]
    return real & ~chosen, real & chosen


def _mutual_divergence(weights: Float[Array, "K S"]) -> Float[Array, ""]:
    """Returns half the mean Jensen-Shannon divergence between two distributions; 0 if K is 1."""
    number = weights.shape[0]
    pairs = jensen_shannon(weights[:, None], weights[None]).sum() / 2
    return pairs / max(number * (number - 1), 1)


def _entropy(p: Float[Array, "*b S"]) -> Float[Array, "*b"]:
    # The derivative of -p log p is infinite at 0; the clamp keeps gradients finite.
    return jax.scipy.special.entr(jnp.maximum(p, jnp.finfo(jnp.float32).tiny)).sum(-1)


def _permuted(
    weights: Float[Array, " S"], real: Bool[Array, " S"], key: Array
) -> Float[Array, " S"]:
    # Both orders list the real positions first, then padding from left to right: it stays put.
    others = 1.0 + jnp.arange(weights.shape[0])
    in_order = jnp.argsort(~real, stable=True)
    shuffled = jnp.argsort(jnp.where(real, jax.random.uniform(key, weights.shape), others))
    return weights.at[in_order].set(weights[shuffled])


def _unit(x: Float[Array, "K S"]) -> Float[Array, "K S"]:
    """Returns rows scaled to Euclidean norm 1; zero rows stay zero."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-20)


def _better(best: Adversaries, found: Adversaries, epsilon: float) -> Adversaries:
    better = (found.change <= epsilon) & (found.divergence > best.divergence)
    return Adversaries(
        jnp.where(better[:, None], found.weights, best.weights),
        jnp.where(better, found.divergence, best.divergence),
        jnp.where(better, found.change, best.change),
    )
