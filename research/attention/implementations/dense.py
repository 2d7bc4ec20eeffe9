"""The reference implementation: materializes all scores and supports every mechanism."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from research.attention.parts.biases import RowBias
from research.attention.parts.indexer import Indexer, allowed_pairs
from research.attention.parts.masks import Mask
from research.attention.parts.mechanism import PLAIN, Mechanism


def attend(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K Dv"],
    mechanism: Mechanism = PLAIN,
    *,
    q_index: Integer[Array | np.ndarray, " T"] | None = None,
    kv_index: Integer[Array | np.ndarray, " S"] | None = None,
) -> Float[Array, "B T H Dv"]:
    """Computes attention (Vaswani et al. 2017, equation 1) with any mechanism.

    Args:
      q: queries. H is a multiple of K; grouped heads share keys and values without repeating
        them (Ainslie et al. 2023, section 2.2).
      k: keys.
      v: values.
      mechanism: how queries read keys; its arrays are bound.
      q_index: absolute positions of the queries; 0 .. T-1 if None.
      kv_index: absolute positions of the keys; 0 .. S-1 if None.

    Returns:
      (B, T, H, Dv) in the dtype of q. Scores and weights are float32 (or wider) inside. A query
      with no allowed key gets zeros.
    """
    if mechanism.has_content:
        mechanism = mechanism.evaluate(q, k, q_index, kv_index)
    at = _columns(q.shape[1], k.shape[1], q_index, kv_index)
    numerator, divisor = _parts(mechanism.score(q, k, *at), mechanism, at)
    (b, h, t, s), (kv_heads, width) = numerator.shape, v.shape[2:]
    dtype = numerator.dtype
    weights = numerator.astype(v.dtype)
    # Dividing after the product with the values normalizes T*Dv numbers instead of T*S.
    if h == kv_heads:
        out = jnp.einsum("bhts,bshd->bhtd", weights, v, preferred_element_type=dtype)
    else:
        weights = weights.reshape(b, kv_heads, h // kv_heads, t, s)
        out = jnp.einsum("bkgts,bskd->bkgtd", weights, v, preferred_element_type=dtype)
        out = out.reshape(b, h, t, width)
    return jnp.swapaxes(out / divisor, 1, 2).astype(q.dtype)


def weights(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    mechanism: Mechanism = PLAIN,
    *,
    q_index: Integer[Array | np.ndarray, " T"] | None = None,
    kv_index: Integer[Array | np.ndarray, " S"] | None = None,
) -> Float[Array, "B H T S"]:
    """Returns the attention weights of `attend` for the same arguments, float32 or wider."""
    if mechanism.has_content:
        mechanism = mechanism.evaluate(q, k, q_index, kv_index)
    at = _columns(q.shape[1], k.shape[1], q_index, kv_index)
    numerator, divisor = _parts(mechanism.score(q, k, *at), mechanism, at)
    return numerator / divisor


def scores(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    mechanism: Mechanism = PLAIN,
    *,
    q_index: Integer[Array | np.ndarray, " T"] | None = None,
    kv_index: Integer[Array | np.ndarray, " S"] | None = None,
) -> Float[Array, "B H T S"]:
    """Returns the scores that `attend` normalizes: biases applied, mask not yet applied."""
    if mechanism.has_content:
        mechanism = mechanism.evaluate(q, k, q_index, kv_index)
    at = _columns(q.shape[1], k.shape[1], q_index, kv_index)
    return _biased(mechanism.score(q, k, *at), mechanism, at)


def stored_after(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K Dv"],
    mechanism: Mechanism,
    *,
    q_index: Integer[Array | np.ndarray, " T"],
    kv_index: Integer[Array | np.ndarray, " S"],
) -> dict[str, Float[Array, "B S ..."]]:
    """Returns what to store per key once the queries of `attend` have read the keys.

    Of biases that change it, by their names as in `Mechanism.project_tokens`.
    """
    mechanism = mechanism.evaluate(q, k, q_index, kv_index)
    at, found = _columns(q.shape[1], k.shape[1], q_index, kv_index), {}
    scores, head = mechanism.score(q, k, *at), jnp.arange(q.shape[2])[:, None, None]
    for n, bias in enumerate(mechanism.biases):
        if isinstance(bias, RowBias):
            stored = bias.stored_after(scores, *at, mechanism.mask)
            found |= {} if stored is None else {f"biases_{n}": stored}
        scores = _with_bias(bias, scores, mechanism.mask, head, at)
    return found


def largest_scores(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K Dv"],
    mechanism: Mechanism,
    *,
    q_index: Integer[Array | np.ndarray, " T"],
    kv_index: Integer[Array | np.ndarray, " S"],
) -> Float[Array, " H"]:
    """Returns the largest score of each head over visible pairs, before biases; -inf for none."""
    mechanism = mechanism.evaluate(q, k, q_index, kv_index)
    at = q_index[:, None], kv_index[None, :]
    return jnp.where(mechanism.mask(*at), mechanism.score(q, k, *at), -jnp.inf).max((0, 2, 3))


def selection_loss(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K Dv"],
    mechanism: Mechanism,
    *,
    q_index: Integer[Array | np.ndarray, " T"],
    kv_index: Integer[Array | np.ndarray, " S"],
) -> Float[Array, ""]:
    """Returns the loss that trains the selection of a mechanism, from all weights of `attend`.

    See `KeyScores.divergence`; it has gradients by the selection's parameters and nothing else.
    """
    at, chooses = (q_index, kv_index), mechanism.selection
    assert isinstance(chooses, Indexer)
    evaluated = mechanism.evaluate(q, k, *at)
    seen = weights(q, k, evaluated, q_index=q_index, kv_index=kv_index)
    return chooses.evaluate(q, k, *at).divergence(seen, allowed_pairs(evaluated.mask, *at))


def _columns(t, s, q_index, kv_index):
    """Returns the positions of queries, (T, 1), and keys, (1, S)."""
    q_index = (jnp.arange(t) if q_index is None else q_index)[:, None]
    kv_index = (jnp.arange(s) if kv_index is None else kv_index)[None, :]
    return q_index, kv_index


def _biased(scores, mechanism, at):
    head = jnp.arange(scores.shape[1])[:, None, None]
    for bias in mechanism.biases:
        scores = _with_bias(bias, scores, mechanism.mask, head, at)
    return scores


def _with_bias(bias, scores, mask, head, at):
    if isinstance(bias, RowBias):
        return bias.of_rows(scores, *at, mask)
    return bias(scores, head, *at)


def _parts(scores, mechanism, at):
    """Returns numerator and divisor of the weights."""
    mask = mechanism.mask
    # The base class allows every pair: None spares the normalizer a select over T*S numbers.
    allowed = None if type(mask) is Mask else mask(*at)
    return mechanism.normalizer.numerator_and_divisor(_biased(scores, mechanism, at), allowed)
