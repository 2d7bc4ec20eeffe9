"""Compiles what a test asks of a function: op by op, every op would be a program of its own."""

import jax


def compiled(function, *static):
    """Returns the function compiled, once to each shape of its arguments; it gives NumPy's arrays.

    Args:
      function: of arrays and trees of them.
      static: numbers of the arguments that are none.
    """
    run = jax.jit(function, static_argnums=static)
    return lambda *args, **options: jax.device_get(run(*args, **options))
