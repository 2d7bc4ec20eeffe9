"""What kind of head a pattern of weights makes: spread, reach, and what it reads.

Measures are `Sums` (H,): the mean over rows that count is total / count, and sums add up over
batches. Weights are those of heads, (*b, H, T, S); a mask of rows, (*b, T), says which queries are
asked about, padding not among them. A row that reads nothing (weights 0, or NaN where everything
was masked) never counts. `visible`, (*b, T, S), is the mask of the attention: what a row may read.

Weights that do not sum to one are taken as they are where a weight is asked for, and divided by
their sum where a distribution is (`entropy`, `distance`, `diagonality`). Negative weights, which
differences of attention have, then count as zero. Arrays are of NumPy or JAX; everything can be
traced.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from research.tasks.task import Sums

Weights = Float[Array, "*b H T S"]
Rows = Bool[Array, "*b T"]


def entropy(weights: Weights, rows: Rows | None = None) -> Sums:
    """Returns the entropy of a row in nats: 0, one position is read; log n, n are read alike.

    The spread of attention that Ghader and Monz 2017 ("What does Attention in Neural Machine
    Translation Pay Attention to?") compare.
    """
    return _over_rows(_entropy(weights), weights, rows)


def normalized_entropy(
    weights: Weights, visible: Bool[Array, "*#b T S"], rows: Rows | None = None
) -> Sums:
    """Returns the entropy of a row over the most that it could have: 0 to 1.

    Divides by log n for a row that may read n positions, so that early rows of a causal head, and
    short sequences, compare with others. Rows that may read one position only do not count.
    """
    readable = _of_heads(visible).sum(-1)
    # log 1 = 0: a row without a choice has no spread.
    most = jnp.log(jnp.maximum(readable, 2).astype(jnp.float32))
    return _over_rows(_entropy(weights) / most, weights, rows, readable > 1)


def confidence(
    weights: Weights, rows: Rows | None = None, keys: Bool[Array, "*b S"] | None = None
) -> Sums:
    """Returns the largest weight of a row.

    Voita et al. 2019, "Analyzing Multi-Head Self-Attention: Specialized Heads Do the Heavy Lifting,
    the Rest Can Be Pruned", section 4, where the end token is no key that counts.

    Args:
      weights: of heads.
      rows: queries that count; None: all.
      keys: keys that count; None: all.
    """
    weights = _real(weights)
    counted = weights if keys is None else weights * jnp.asarray(keys)[..., None, None, :]
    return _over_rows(counted.max(-1), weights, rows)


def distance(weights: Weights, rows: Rows | None = None) -> Sums:
    """Returns how far a row reads in positions, the mean of |t - s| under its weights.

    The mean attention distance of Vig and Belinkov 2019, "Analyzing the Structure of Attention in a
    Transformer Language Model".
    """
    share = _shares(weights)
    return _over_rows((share * _gap(share)).sum(-1), weights, rows)


def diagonality(
    weights: Weights, visible: Bool[Array, "*#b T S"], rows: Rows | None = None
) -> Sums:
    """Returns 1 where a row reads its own position, 0 where it reads the furthest that it may.

    1 - sum_s w[t, s] |t - s| / max_s |t - s| of self-attention: Zhang et al. 2021, "On the
    Usefulness of Self-Attention for Automatic Speech Recognition with Transformers", the section on
    diagonality. Rows that may read their own position only do not count. For weights over a source
    see `research.interpret.alignment_measures.diagonality`.
    """
    share = _shares(weights)
    furthest = (_of_heads(visible) * _gap(share)).max(-1)
    near = 1 - (share * _gap(share)).sum(-1) / jnp.maximum(furthest, 1)
    return _over_rows(near, weights, rows, furthest > 0)


def previous_token(weights: Weights, rows: Rows | None = None) -> Sums:
    """Returns the weight at the position before; the first row has none and does not count.

    The positional heads of Voita et al. 2019, section 5, and the previous-token heads of Olsson et
    al. 2022, "In-context Learning and Induction Heads".
    """
    weights = _real(weights)
    t, s = jnp.arange(weights.shape[-2])[:, None], jnp.arange(weights.shape[-1])
    before = (s == t - 1).any(-1)
    return _over_rows((weights * (s == t - 1)).sum(-1), weights, rows, before)


def sink(weights: Weights, count: int = 1, rows: Rows | None = None) -> Sums:
    """Returns the weight on the first `count` positions, of rows after them.

    Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks", section 3.1 (four
    sinks). The first `count` rows of a causal head read little else and do not count.
    """
    weights = _real(weights)
    after = jnp.arange(weights.shape[-2]) >= count
    return _over_rows(weights[..., :count].sum(-1), weights, rows, after)


def duplicate_token(weights: Weights, tokens: Int[Array, "*b T"], rows: Rows | None = None) -> Sums:
    """Returns the weight on earlier positions with the row's own token.

    The duplicate token heads of Wang et al. 2022, "Interpretability in the Wild: a Circuit for
    Indirect Object Identification in GPT-2 small", section 3. Only rows whose token has occurred
    before count. Queries and keys are the same T tokens.
    """
    return _on_positions(weights, _repeats(tokens), rows)


def induction(weights: Weights, tokens: Int[Array, "*b T"], rows: Rows | None = None) -> Sums:
    """Returns the weight on positions right after an earlier one with the row's own token.

    Prefix matching of Olsson et al. 2022, "In-context Learning and Induction Heads", the section on
    definitions, over all earlier occurrences. Only rows whose token has occurred before count. What
    heads without the mechanism get depends on the text: Olsson et al. use repeated random tokens.
    """
    # Position s follows an occurrence of row t's token if s - 1 is one.
    after = jnp.pad(_repeats(tokens)[..., :-1], [(0, 0)] * tokens.ndim + [(1, 0)])
    return _on_positions(weights, after, rows)


def head_scores(
    weights: Weights,
    visible: Bool[Array, "*#b T S"],
    tokens: Int[Array, "*b T"] | None = None,
    rows: Rows | None = None,
    sinks: int = 1,
) -> dict[str, Sums]:
    """Returns every measure of self-attention, by name.

    Args:
      weights: of heads, those of all layers for example.
      visible: what each row may read.
      tokens: what stands at each position; None: leaves out what asks for tokens.
      rows: queries that count; None: all.
      sinks: positions at the start that are sinks.
    """
    scores = {
        "entropy": entropy(weights, rows),
        "normalized_entropy": normalized_entropy(weights, visible, rows),
        "confidence": confidence(weights, rows),
        "distance": distance(weights, rows),
        "diagonality": diagonality(weights, visible, rows),
        "previous_token": previous_token(weights, rows),
        "sink": sink(weights, sinks, rows),
    }
    if tokens is None:
        return scores
    return scores | {
        "duplicate_token": duplicate_token(weights, tokens, rows),
        "induction": induction(weights, tokens, rows),
    }


def _real(weights: Weights) -> Weights:
    """Float32, with 0 for NaN."""
    return jnp.nan_to_num(jnp.asarray(weights, jnp.float32))


def _shares(weights: Weights) -> Weights:
    """Rows that sum to one, or are zero."""
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
    """Whether the second position is before the first and has its token."""
    tokens = jnp.asarray(tokens)
    same = tokens[..., :, None] == tokens[..., None, :]
    return jnp.tril(same, k=-1)


def _on_positions(weights: Weights, asked: Bool[Array, "*b T S"], rows: Rows | None) -> Sums:
    """The weight on positions that are asked for; a row without any does not count."""
    weights, asked = _real(weights), _of_heads(asked)
    return _over_rows((weights * asked).sum(-1), weights, rows, asked.any(-1))


def _over_rows(
    values: Float[Array, "*b H T"],
    weights: Weights,
    rows: Rows | None,
    counts: Bool[Array, "*counts T"] | bool = True,
) -> Sums:
    """Sums over all but heads the values of rows that count, that are asked for and that read."""
    real = (_real(weights) != 0).any(-1) & counts
    if rows is not None:
        real &= jnp.asarray(rows)[..., None, :]
    axes = tuple(i for i in range(values.ndim) if i != values.ndim - 2)
    total = jnp.where(real, values, 0.0).sum(axes)
    return Sums(total, real.sum(axes).astype(jnp.float32))
