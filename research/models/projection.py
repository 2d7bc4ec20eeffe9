"""The product with a weight matrix, with a backward pass laid out for what compilers do well."""

import jax
from jaxtyping import Array, Float


@jax.custom_vjp
def linear(x: Float[Array, "*b M"], w: Float[Array, "M F"]) -> Float[Array, "*b F"]:
    """Returns x w, with ``w`` cast to the dtype of ``x``.

    The values are those of ``x @ w``. The backward pass chooses which operand of the gradient of
    ``w`` is copied transposed in memory; on a CPU the wrong one, fused with the activation that
    made it, costs more than the product.
    """
    return x @ w.astype(x.dtype)


def _linear_forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple]:
    return linear(x, w), (x, w)


def _linear_backward(saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    rows, grads = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    # A product over rows makes the compiler copy its left operand transposed; automatic
    # differentiation always puts `g` there. The narrower of the two is the cheaper one.
    dw = rows.T @ grads if w.shape[0] <= w.shape[1] else (grads.T @ rows).T
    return g @ w.astype(g.dtype).T, dw.astype(w.dtype)


linear.defvjp(_linear_forward, _linear_backward)
