"""What training, decoding and planning need of a model.

A model is a Linen module, a frozen dataclass with a hashable `config`, that owns parameters and
nothing else. Its methods run in `model.apply({"params": params}, ..., method="of_batch")`.
"""

from typing import Any, Protocol

import jax
from jaxtyping import Array, Float, Int, PyTree

from research.tasks.task import Batch


class Model(Protocol):
    """Every model.

    Attributes:
      config: its static description.
      implementation: how its mixers are computed, with "auto" resolved.
    """

    config: Any
    init: Any
    apply: Any

    @property
    def implementation(self) -> str: ...

    def of_batch(self, batch: Batch, *, deterministic: bool = True) -> Any:
        """Returns what the task's metrics read, of a whole batch: logits (B, T, V) mostly."""
        ...

    def parameter_axes(self, params: PyTree) -> PyTree:
        """Returns the axes of each parameter, `Axes` to each leaf."""
        ...

    def state_bytes(self, length: int) -> int | None:
        """Returns the bytes of one sequence's decoding state; None if it cannot be decoded."""
        ...


class SequenceToSequence(Model, Protocol):
    """A model of a target given a source.

    Logits of `of_batch` at position t equal those of `step` after the first t inputs. Every leaf of
    a memory or state either has the batch as one of its axes or is shared by all rows.
    """

    def encode(self, source: Array, source_length: Int[Array, " B"]) -> PyTree:
        """Returns the memory: all that reading the source takes.

        Args:
          source: (B, S) tokens, right-padded.
          source_length: how many of them there are.
        """
        ...

    def init_state(self, memory: PyTree, length: int) -> PyTree:
        """Returns the state before the first token, with room for `length` of them."""
        ...

    def step(
        self, memory: PyTree, state: PyTree, token: Int[Array, " B"]
    ) -> tuple[Float[Array, "B V"], PyTree, Float[Array, "B H S"]]:
        """Returns float32 logits of the next token, the state, and how the source was read.

        The weights are those of all heads, of the first layer first; H = 0 without attention.
        """
        ...

    def weights(self, batch: Batch) -> Float[Array, "B H T S"]:
        """Returns how each target of a batch reads the source, given the targets before."""
        ...


def matrices(model: Model, params: PyTree) -> PyTree:
    """Returns whether each parameter is a matrix, as it is declared, a bool to each leaf.

    Args:
      model: the model.
      params: its parameters or their shapes; leading axes of their own do not matter.
    """
    return jax.tree.map(lambda _, axes: axes.matrix, params, model.parameter_axes(params))


def parameter_shapes(model: Model, batch: PyTree) -> PyTree:
    """Returns the shapes of a model's parameters.

    Args:
      model: the model.
      batch: shapes of a batch that it is made for.
    """

    def init(key: jax.Array, batch: PyTree) -> PyTree:
        return model.init(key, batch, method="of_batch")["params"]

    return jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)), batch)
