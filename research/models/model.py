"""The model interface that training, decoding and planning depend on.

A model is a Linen module: a frozen dataclass with a hashable `config` that owns parameters and no
other variables. Call its methods as `model.apply({"params": params}, ..., method="forward")`.
"""

from typing import Any, Protocol

import jax
from jaxtyping import Array, Float, Int, PyTree

from research.tasks.task import Batch


class Model(Protocol):
    """Interface of every model.

    Attributes:
      config: static, hashable description of the model.
      implementation: names of the implementations of its mixers, with "auto" resolved.
    """

    config: Any
    init: Any
    apply: Any

    @property
    def implementation(self) -> str: ...

    def forward(self, batch: Batch, *, deterministic: bool = True) -> Any:
        """Returns the outputs that the task's metrics take, usually logits (B, T, V)."""
        ...

    def parameter_axes(self, params: PyTree) -> PyTree:
        """Returns a tree with the `Axes` of each parameter."""
        ...

    def state_bytes(self, length: int) -> int | None:
        """Returns the bytes of one sequence's decoding state; None if the model cannot decode."""
        ...


class SequenceToSequence(Model, Protocol):
    """Interface of models that predict a target sequence from a source sequence.

    The logits of `forward` at position t equal the logits of `step` after the first t inputs.
    Every leaf of a memory or state either has a batch axis or is shared by all rows.
    """

    def encode(self, source: Array, source_length: Int[Array, " B"]) -> PyTree:
        """Returns the memory: the encoded source in the form that the decoder attends to.

        Args:
          source: (B, S) tokens, right-padded.
          source_length: number of tokens without padding.
        """
        ...

    def init_state(self, memory: PyTree, length: int) -> PyTree:
        """Returns the state before the first token, with room for `length` tokens."""
        ...

    def step(
        self, memory: PyTree, state: PyTree, token: Int[Array, " B"]
    ) -> tuple[Float[Array, "B V"], PyTree, Float[Array, "B H S"]]:
        """Returns float32 logits of the next token, the new state, and the attention weights.

        The weights cover all heads of all layers, first layer first; H = 0 without attention.
        """
        ...

    def weights(self, batch: Batch) -> Float[Array, "B H T S"]:
        """Returns the attention weights of each target position (teacher forcing) on the source."""
        ...


def parameter_shapes(model: Model, batch: PyTree) -> PyTree:
    """Returns the shapes of a model's parameters without computing them.

    Args:
      model: the model.
      batch: shapes of an example batch.
    """

    def init(key: jax.Array, batch: PyTree) -> PyTree:
        return model.init(key, batch, method="forward")["params"]

    return jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)), batch)
