"""Position encodings that act on vectors. (Those that act on scores are in biases.py.)"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer


def sinusoidal(length: int, width: int) -> Float[np.ndarray, "{length} {width}"]:
    """The fixed table of Vaswani et al. 2017, section 3.5, as float32.

    Entry (t, 2i) is sin(t / 10000**(2i / width)) and entry (t, 2i + 1) the cosine.
    """
    position = np.arange(length)[:, None]
    angle = position / 10000.0 ** (2 * (np.arange(width) // 2) / width)
    return np.where(np.arange(width) % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)


def rope(
    x: Float[Array, "B T H D"],
    positions: Integer[Array | np.ndarray, " T"],
    base: float = 10000.0,
) -> Float[Array, "B T H D"]:
    """Rotates queries or keys by their positions (Su et al. 2021, equations 15 and 34).

    Channel i is paired with channel i + D/2 (as in GPT-NeoX), which is the paper's pairing of
    neighbours up to a permutation of the channels; pair i turns by position * base**(-2i / D).
    Angles are float32 whatever the dtype of x.

    Raises:
        ValueError: D is odd.
    """
    width = x.shape[-1]
    if width % 2:
        raise ValueError(f"rope: head width = {width}; it must be even, channels turn in pairs")
    frequency = base ** (-np.arange(0, width, 2, dtype=np.float32) / width)
    angle = jnp.asarray(positions, jnp.float32)[:, None, None] * frequency
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    left, right = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=-1)
    turned = [left * cos - right * sin, right * cos + left * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
