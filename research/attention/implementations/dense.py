"""The reference implementation: every score in memory, every mechanism supported."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from research.attention.parts.biases import Bias
from research.attention.parts.masks import Mask, full
from research.attention.parts.normalizers import Normalizer, softmax
from research.attention.parts.scores import Score, scaled_dot

Positions = Integer[Array | np.ndarray, " N"]


def attend(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K Dv"],
    *,
    score: Score = scaled_dot(),  # noqa: B008 (frozen and without arrays)
    mask: Mask = full(),  # noqa: B008
    biases: tuple[Bias, ...] = (),
    normalizer: Normalizer = softmax,
    q_index: Integer[Array | np.ndarray, " T"] | None = None,
    kv_index: Integer[Array | np.ndarray, " S"] | None = None,
) -> Float[Array, "B T H Dv"]:
    """Attention (Vaswani et al. 2017, equation 1) with any score, mask, biases and normalizer.

    Args:
        q: queries. H is a multiple of K; grouped heads share keys and values without repeating
            them (Ainslie et al. 2023, section 2.2).
        k: keys.
        v: values.
        score: how a query and a key match.
        mask: which pairs are allowed.
        biases: applied to the scores in order.
        normalizer: from scores to weights.
        q_index: absolute positions of the queries; 0 .. T-1 if None.
        kv_index: absolute positions of the keys; 0 .. S-1 if None.

    Returns:
        (B, T, H, Dv) in the dtype of q. Scores and weights are float32 (or wider) inside. A query
        with no allowed key gets zeros.
    """
    numerator, divisor = _parts(q, k, score, mask, biases, normalizer, q_index, kv_index)
    (b, h, t, s), (kv_heads, width) = numerator.shape, v.shape[2:]
    dtype = numerator.dtype
    weights = numerator.astype(v.dtype)
    # Dividing after the product with the values touches T*Dv numbers instead of T*S.
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
    *,
    score: Score = scaled_dot(),  # noqa: B008
    mask: Mask = full(),  # noqa: B008
    biases: tuple[Bias, ...] = (),
    normalizer: Normalizer = softmax,
    q_index: Integer[Array | np.ndarray, " T"] | None = None,
    kv_index: Integer[Array | np.ndarray, " S"] | None = None,
) -> Float[Array, "B H T S"]:
    """The attention weights that ``attend`` with the same arguments applies, float32 or wider."""
    numerator, divisor = _parts(q, k, score, mask, biases, normalizer, q_index, kv_index)
    return numerator / divisor


def scores(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    *,
    score: Score = scaled_dot(),  # noqa: B008
    biases: tuple[Bias, ...] = (),
    q_index: Integer[Array | np.ndarray, " T"] | None = None,
    kv_index: Integer[Array | np.ndarray, " S"] | None = None,
) -> Float[Array, "B H T S"]:
    """What the normalizer of ``attend`` sees, biases applied and nothing masked yet."""
    q_index, kv_index = _columns(q, k, q_index, kv_index)
    found = score(q, k, q_index, kv_index)
    head = jnp.arange(q.shape[2])[:, None, None]
    for bias in biases:
        found = bias(found, head, q_index, kv_index)
    return found


def _columns(q, k, q_index, kv_index):
    """Positions of queries (T, 1) and keys (1, S)."""
    q_index = (jnp.arange(q.shape[1]) if q_index is None else q_index)[:, None]
    kv_index = (jnp.arange(k.shape[1]) if kv_index is None else kv_index)[None, :]
    return q_index, kv_index


def _parts(q, k, score, mask, biases, normalizer, q_index, kv_index):
    """Numerator and divisor of the weights."""
    found = scores(q, k, score=score, biases=biases, q_index=q_index, kv_index=kv_index)
    at = _columns(q, k, q_index, kv_index)
    return normalizer.parts(found, None if type(mask) is Mask else mask(*at))
