"""How attention is computed, as opposed to what is computed.

An implementation computes exactly the mechanism it is given or raises ``Unsupported`` with a
message that names the part it lacks and an implementation that has it. A new one is one file and
one line in ``IMPLEMENTATIONS``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Integer

from research.attention import blockwise, dense
from research.attention.biases import Bias
from research.attention.errors import Unsupported
from research.attention.masks import Mask, full
from research.attention.normalizers import Normalizer, softmax
from research.attention.scores import Score, scaled_dot


class Implementation(NamedTuple):
    """``attend(q, k, v, **mechanism)`` and ``lacks(score, mask, biases, normalizer) -> str``.

    ``lacks`` names the part of a mechanism that is missing and is empty if there is none.
    ``blocked`` says whether ``attend`` takes a ``block_size``.
    """

    attend: Callable[..., Any]
    lacks: Callable[[Score, Mask, tuple[Bias, ...], Normalizer], str]
    blocked: bool


def _nothing(score: Score, mask: Mask, biases: tuple[Bias, ...], normalizer: Normalizer) -> str:
    return ""


IMPLEMENTATIONS: dict[str, Implementation] = {
    "dense": Implementation(dense.attend, _nothing, blocked=False),
    "blockwise": Implementation(blockwise.attend, blockwise.lacks, blocked=True),
}


def refusal(
    implementation: str,
    score: Score,
    mask: Mask,
    biases: tuple[Bias, ...],
    normalizer: Normalizer,
) -> str:
    """Why this implementation cannot compute this mechanism, in one line; empty if it can."""
    if implementation not in IMPLEMENTATIONS:
        return (
            f"implementation {implementation!r} is unknown; there are {', '.join(IMPLEMENTATIONS)}"
        )
    mechanism = (score, mask, biases, normalizer)
    missing = IMPLEMENTATIONS[implementation].lacks(*mechanism)
    if not missing:
        return ""
    able = [name for name, other in IMPLEMENTATIONS.items() if not other.lacks(*mechanism)]
    return f"implementation {implementation!r} lacks {missing}; {', '.join(able)} has it"


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
    implementation: str = "dense",
    block_size: int = 0,
) -> Float[Array, "B T H Dv"]:
    """Attention by the named implementation; see ``dense.attend`` for what it computes.

    Args:
        q: queries, and so on as in ``dense.attend``.
        k: keys.
        v: values.
        score: how a query and a key match.
        mask: which pairs are allowed.
        biases: applied to the scores in order.
        normalizer: from scores to weights.
        q_index: absolute positions of the queries; 0 .. T-1 if None.
        kv_index: absolute positions of the keys; 0 .. S-1 if None.
        implementation: a name in ``IMPLEMENTATIONS``.
        block_size: queries and keys to a block where there are blocks; 0 chooses.

    Raises:
        Unsupported: the implementation is unknown or lacks a part of the mechanism.
    """
    if why := refusal(implementation, score, mask, biases, normalizer):
        raise Unsupported(why)
    chosen = IMPLEMENTATIONS[implementation]
    options = {"block_size": block_size} if chosen.blocked else {}
    return chosen.attend(
        q,
        k,
        v,
        score=score,
        mask=mask,
        biases=biases,
        normalizer=normalizer,
        q_index=q_index,
        kv_index=kv_index,
        **options,
    )
