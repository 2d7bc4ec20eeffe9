"""Coverage: what was read before counts in what is read next."""

import dataclasses

from jaxtyping import Array, Float, PyTree

from research.attention.mixers.sequential.alignments import Position, Positions, Stateful
from research.attention.parameters import Parameter, bind, described, matrix_axes, matrix_init
from research.attention.parts.masks import Mask
from research.attention.parts.normalizers import Normalizer, softmax


@dataclasses.dataclass(frozen=True)
class Coverage(Stateful):
    """Weights from v . tanh(W q + U k + c w + b), c what the queries before gave this key in all.

    See et al. 2017, equations 10 and 11: c is the sum of the weights before. It is the coverage of
    Tu et al. 2016, section 3.1, of one number to a key and without fertility. The first query has
    zeros before it.

    Attributes:
      normalizer: from scores to weights.
    """

    normalizer: Normalizer = softmax

    def parameters(self) -> dict[str, Parameter]:
        """W "query" (H, D, A), U "key" (K, D, A), b "bias", v "vector" and w "coverage" (H, A),
        and "normalizer_..." if it learns."""
        # As small as v: the sums grow with the queries.
        covered = matrix_init(0.0, self.score_width)
        return {
            **self._energy(),
            "coverage": Parameter(
                (self.num_heads, self.score_width), covered, matrix_axes("heads", "")
            ),
            **described(self.normalizer, "normalizer"),
        }

    def step(
        self,
        params: dict[str, Array],
        q: Float[Array, "B 1 H D"],
        memory: dict[str, Float[Array, "B S ..."]],
        q_index: Position,
        kv_index: Positions,
        mask: Mask | None,
        state: PyTree,
    ) -> tuple[Float[Array, "B H S"], PyTree]:
        """See `Alignment`."""
        place = state[..., None] * params["coverage"].astype(state.dtype)[:, None]
        allowed = None if mask is None else mask(q_index[:, None], kv_index[None, :])
        normalizer = bind(self.normalizer, "normalizer", params)
        weights = normalizer(self._scores(params, q, memory, place), allowed)[:, :, 0]
        weights = weights.astype(state.dtype)
        return weights, state + weights
