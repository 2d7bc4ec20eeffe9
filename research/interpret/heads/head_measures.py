"""Measures that characterize attention heads by their weights: entropy, distance, induction, ...

Measures return `Sums` (H,): total / count is the mean over the rows counted, and sums add up over
batches. `weights` has shape (*b, H, T, S). `rows`, (*b, T), marks the queries to include, False at
padding. A row without any weight (all 0, or NaN because everything was masked) is never counted.
`visible`, (*b, T, S), is the attention mask: the keys that a query may attend to.

Rows that do not sum to one are used as they are where a single weight is measured, and normalized
where a distribution is needed (`entropy`, `distance`, `diagonality`). Negative weights, which
differential attention has, are set to zero first. Arrays may be NumPy or JAX; all functions are
traceable.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from research.tasks.task import Sums

Weights = Float[Array, "*b H T S"]
Rows = Bool[Array, "*b T"]


def entropy(weights: Weights, rows: Rows | None = None) -> Sums:
    """Returns the entropy of a row in nats: 0 for one position, log n for n equal weights.

    Ghader and Monz 2017, "What does Attention in Neural Machine Translation Pay Attention to?",
    compare attention by it.
    """
    return _over_rows(_entropy(weights), weights, rows)


def normalized_entropy(
    weights: Weights, visible: Bool[Array, "*#b T S"], rows: Rows | None = None
) -> Sums:
    """Returns the entropy of a row relative to its maximum: 0 to 1.

    Divides by log n for a row with n visible positions, so that early rows of a causal head and
    short sequences are comparable with others. Rows with a single visible position do not count.
    """
    readable = _of_heads(visible).sum(-1)
    # At least log 2, as log 1 = 0 would divide by zero; rows with one position are not counted.
    most = jnp.log(jnp.maximum(readable, 2).astype(jnp.float32))
    return _over_rows(_entropy(weights) / most, weights, rows, readable > 1)


def confidence(
    weights: Weights, rows: Rows | None = None, keys: Bool[Array, "*b S"] | None = None
) -> Sums:
    """Returns the largest weight of a row.

    Voita et al. 2019, "Analyzing Multi-Head Self-Attention: Specialized Heads Do the Heavy Lifting,
    the Rest Can Be Pruned", section 4, which excludes the end token from the keys.

    Args:
      weights: attention weights.
      rows: queries to include; None: all.
      keys: keys to include; None: all.
    """
    weights = _real(weights)
    counted = weights if keys is None else weights * jnp.asarray(keys)[..., None, None, :]
    return _over_rows(counted.max(-1), weights, rows)


def distance(weights: Weights, rows: Rows | None = None) -> Sums:
    """Returns the mean attention distance |t - s| of a row, in positions.

    Vig and Belinkov 2019, "Analyzing the Structure of Attention in a Transformer Language Model".
    """
    share = _shares(weights)
    return _over_rows((share * _gap(share)).sum(-1), weights, rows)


def diagonality(
    weights: Weights, visible: Bool[Array, "*#b T S"], rows: Rows | None = None
) -> Sums:
    """Returns the diagonality of a row: 1 for its own position, 0 for the furthest visible one.

    1 - sum_s w[t, s] |t - s| / max_s |t - s| of self-attention: Zhang et al. 2021, "On the
    Usefulness of Self-Attention for Automatic Speech Recognition with Transformers", the section on
    diagonality. Rows that see no position but their own do not count. For cross-attention see
    `research.interpret.alignment_measures.diagonality`.
    """
    share = _shares(weights)
    furthest = (_of_heads(visible) * _gap(share)).max(-1)
    near = 1 - (share * _gap(share)).sum(-1) / jnp.maximum(furthest, 1)
    return _over_rows(near, weights, rows, furthest > 0)


def previous_token(weights: Weights, rows: Rows | None = None) -> Sums:
    """Returns the weight on the previous position; the first row has none and does not count.

    The positional heads of Voita et al. 2019, section 5, and the previous-token heads of Olsson et
    al. 2022, "In-context Learning and Induction Heads".
    """
    weights = _real(weights)
    t, s = jnp.arange(weights.shape[-2])[:, None], jnp.arange(weights.shape[-1])
    before = (s == t - 1).any(-1)
    return _over_rows((weights * (s == t - 1)).sum(-1), weights, rows, before)


def sink(weights: Weights, count: int = 1, rows: Rows | None = None) -> Sums:
    """Returns the weight on the first `count` positions, for the rows after them.

    Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks", section 3.1 (four
    sinks). The first `count` rows do not count: a causal head has little else to attend to there.
    """
    weights = _real(weights)
    after = jnp.arange(weights.shape[-2]) >= count
    return _over_rows(weights[..., :count].sum(-1), weights, rows, after)


def duplicate_token(weights: Weights, tokens: Int[Array, "*b T"], rows: Rows | None = None) -> Sums:
    """Returns the weight on earlier positions that hold the same token as the row.

    The duplicate token heads of Wang et al. 2022, "Interpretability in the Wild: a Circuit for
    Indirect Object Identification in GPT-2 small", section 3. Only rows whose token has occurred
    before count. Queries and keys are the same T tokens.
    """
    return _on_positions(weights, _repeats(tokens), rows)


def induction(weights: Weights, tokens: Int[Array, "*b T"], rows: Rows | None = None) -> Sums:
    """Returns the weight on positions right after an earlier occurrence of the row's token.

    Prefix matching of Olsson et al. 2022, "In-context Learning and Induction Heads", the section on
    definitions, over all earlier occurrences. Only rows whose token has occurred before count. The
    score of heads that do no induction depends on the text: Olsson et al. use repeated random
    tokens.
    """
    # Position s follows an occurrence of row t's token if s - 1 is one.
    after = jnp.pad(_repeats(tokens)[..., :-1], [(0, 0)] * tokens.ndim + [(1, 0)])
    return _on_positions(weights, after, rows)


def _real(weights: Weights) -> Weights:
    """Returns the weights in float32, with NaN (fully masked rows) replaced by 0."""
    return jnp.nan_to_num(jnp.asarray(weights, jnp.float32))


def _shares(weights: Weights) -> Weights:
    """Returns the positive weights normalized over each row; rows without any are zero."""
    positive = jnp.maximum(_real(weights), 0)
    total = positive.sum(-1, keepdims=True)
    return positive / jnp.where(total > 0, total, 1)


def _entropy(weights: Weights) -> Float[Array, "*b H T"]:
    return jax.scipy.special.entr(_shares(weights)).sum(-1)


def _gap(weights: Weights) -> Float[Array, "T S"]:
    rows, columns = weights.shape[-2:]
    return jnp.abs(jnp.arange(rows)[:, None] - jnp.arange(columns)).astype(jnp.float32)


def _of_heads(mask: Bool[Array, "*b T S"]) -> Bool[Array, "*b 1 T S"]:
    return jnp.asarray(mask)[..., None, :, :]


def _repeats(tokens: Int[Array, "*b T"]) -> Bool[Array, "*b T T"]:
    """Returns [t, s]: whether position s < t holds the same token as t."""
    tokens = jnp.asarray(tokens)
    same = tokens[..., :, None] == tokens[..., None, :]
    return jnp.tril(same, k=-1)


def _on_positions(weights: Weights, asked: Bool[Array, "*b T S"], rows: Rows | None) -> Sums:
    """Returns the weight on the positions marked in `asked`; rows without any do not count."""
    weights, asked = _real(weights), _of_heads(asked)
    return _over_rows((weights * asked).sum(-1), weights, rows, asked.any(-1))


def _over_rows(
    values: Float[Array, "*b H T"],
    weights: Weights,
    rows: Rows | None,
    counts: Bool[Array, "*counts T"] | bool = True,
) -> Sums:
    """Sums values over every axis but heads, for rows in `rows` and `counts` that have weight."""
    real = (_real(weights) != 0).any(-1) & counts
    if rows is not None:
        real &= jnp.asarray(rows)[..., None, :]
    axes = tuple(i for i in range(values.ndim) if i != values.ndim - 2)
    total = jnp.where(real, values, 0.0).sum(axes)
    return Sums(total, real.sum(axes).astype(jnp.float32))
