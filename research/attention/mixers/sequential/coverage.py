"""Coverage: scores depend on the total weight that previous queries gave to each key."""

import dataclasses

from jaxtyping import Array, Float, PyTree

from research.attention.mixers.sequential.alignments import Position, Positions, Stateful
from research.attention.parameters import Parameter, bind, described, matrix_axes, matrix_init
from research.attention.parts.masks import Mask
from research.attention.parts.normalizers import Normalizer, softmax


@dataclasses.dataclass(frozen=True)
class Coverage(Stateful):
    """Weights from v . tanh(W q + U k + c w + b), where c is the sum of a key's previous weights.

    See et al. 2017, equations 10 and 11. It is the coverage of Tu et al. 2016, section 3.1, with
    one number per key and without fertility. For the first query c is zero.

    Attributes:
      normalizer: maps scores to weights.
    """

    normalizer: Normalizer = softmax

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters by name.

        W "query" (H, D, A), U "key" (K, D, A), b "bias", v "vector" and w "coverage" (H, A), and
        "normalizer_..." if it has parameters.
        """
        # Initialized as small as v, because the coverage grows with the number of queries.
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
