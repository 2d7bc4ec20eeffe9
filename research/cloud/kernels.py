"""What the rows of a TPU cost a fused kernel: they have 128 lanes, and narrower heads are padded.

A Pallas kernel gets and returns arrays in rows of 128 lanes. With heads of 16, these arrays take
eight times the memory that their shapes say, and the matrix unit multiplies eight times the numbers
that count.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

LANES = 128


class Kernel(NamedTuple):
    """A kernel of attention.

    Attributes:
      extra: bytes by which padding makes its queries, keys, values and outputs larger.
      padding: factor by which padded heads are wider.
    """

    extra: float = 0.0
    padding: float = 1.0


def padded_kernel(jaxpr: Any) -> Kernel:
    """Returns the most padded Pallas kernel that a jaxpr calls, inner jaxprs included."""
    return max(map(_measure, _kernel_calls(jaxpr)), default=Kernel())


def _kernel_calls(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
            continue  # what it computes inside is in fast memory
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from _kernel_calls(getattr(value, "jaxpr", value))


def _is_jaxpr(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")


def _measure(equation: Any) -> Kernel:
    given, made = ([v.aval for v in variables] for variables in (equation.invars, equation.outvars))
    # Queries, keys and values are all that has axes of heads and positions before the last.
    heads = [a for a in given if a.ndim >= 4 and jnp.issubdtype(a.dtype, jnp.floating)]
    kinds = {(a.shape[-1], a.dtype) for a in heads}
    heads += [a for a in made if a.ndim >= 4 and (a.shape[-1], a.dtype) in kinds]
    plain, padded = (sum(size(a) for a in heads) for size in (_bytes, _padded))
    return Kernel(
        extra=float(padded - plain),
        padding=padded / plain if plain else 1.0,
    )


def _bytes(array: Any) -> int:
    return math.prod(array.shape) * array.dtype.itemsize


def _padded(array: Any) -> int:
    *others, last = array.shape
    return math.prod(others) * -(-last // LANES) * LANES * array.dtype.itemsize
