"""Dispatches attention to an implementation: how it is computed, as opposed to what is computed.

An implementation computes exactly the mechanism it is given or raises `Unsupported` with a
message that names the part it lacks and an implementation that has it. A new implementation is one
file and one line in `IMPLEMENTATIONS`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from research.attention.errors import Unsupported
from research.attention.implementations import (
    blockwise,
    dense,
    flash,
    fused,
    gather,
    ring,
    rows,
    sharding,
    splash,
)
from research.attention.implementations.sharding import platform
from research.attention.parts.mechanism import PLAIN, Mechanism


class Implementation(NamedTuple):
    """One way to compute attention.

    Attributes:
      attend: `attend(q, k, v, mechanism)`.
      unsupported_part: `(mechanism) -> str` names the part of the mechanism that is not supported;
        empty if all are.
      takes_block_size: whether `attend` takes a `block_size`.
      platforms: supported platforms; elsewhere it raises `Unsupported`, except splash, which is
        interpreted on CPUs for tests.
      dtypes: supported dtypes of the queries; empty means all.
      any_positions: whether positions may be traced, as in a decoder's chunk.
      shards_sequence: whether it is meant for sequences that are sharded over devices.
      names_residuals: whether it names what its backward pass reads; see `flash.named`.
    """

    attend: Callable[..., Any]
    unsupported_part: Callable[[Mechanism], str]
    takes_block_size: bool
    platforms: tuple[str, ...] = ("cpu", "gpu", "tpu")
    dtypes: tuple[str, ...] = ()
    any_positions: bool = True
    shards_sequence: bool = False
    names_residuals: bool = False


def _nothing(mechanism: Mechanism) -> str:
    return ""


IMPLEMENTATIONS: dict[str, Implementation] = {
    "dense": Implementation(dense.attend, _nothing, takes_block_size=False),
    "blockwise": Implementation(
        blockwise.attend, blockwise.unsupported_part, takes_block_size=True, names_residuals=True
    ),
    "rows": Implementation(rows.attend, rows.unsupported_part, takes_block_size=True),
    "jax_xla": Implementation(fused.attend_xla, fused.unsupported_by_xla, takes_block_size=False),
    "jax_cudnn": Implementation(
        fused.attend_cudnn,
        fused.unsupported_by_cudnn,
        takes_block_size=False,
        platforms=("gpu",),
        dtypes=fused.CUDNN_DTYPES,
        any_positions=False,
    ),
    "splash": Implementation(
        splash.attend,
        splash.unsupported_part,
        takes_block_size=False,
        platforms=("tpu",),
        dtypes=splash.DTYPES,
        any_positions=False,
        names_residuals=True,
    ),
    "ring": Implementation(
        ring.attend,
        ring.unsupported_part,
        takes_block_size=True,
        shards_sequence=True,
        names_residuals=True,
    ),
    "gather": Implementation(
        gather.attend,
        _nothing,
        takes_block_size=True,
        shards_sequence=True,
        names_residuals=True,
    ),
}

# Up to this length the scores of one head are small enough that blocks are pure overhead. Measured
# on CPU.
DENSE_UP_TO = 1024


def choose_implementation(
    length: int,
    mechanism: Mechanism,
    *,
    head_width: int = 0,
    dtype: Any = None,
    backend: str | None = None,
) -> str:
    """Returns the fastest implementation known to support this mechanism on whole sequences.

    If the active mesh shards sequences: ring, or gather for mechanisms that ring lacks. Otherwise
    cuDNN on GPUs and splash on TPUs, if they support the mechanism and the dtype is known to be one
    of theirs; otherwise dense for short sequences, and for long ones blockwise, or rows where
    blockwise lacks a part. The result works for any statically known positions, and for every dtype
    if `dtype` is None.

    Args:
      length: the longest sequence.
      mechanism: the attention mechanism.
      head_width: the larger of D and Dv; 0 if unknown.
      dtype: of queries, keys and values; None if unknown.
      backend: "cpu", "gpu" or "tpu"; None means the platform that the computation will run on.
    """
    backend = platform() if backend is None else backend
    name = "" if dtype is None else jnp.dtype(dtype).name
    if sharding.context_size() > 1:
        return "gather" if IMPLEMENTATIONS["ring"].unsupported_part(mechanism) else "ring"

    def can(chosen: str) -> bool:
        found = IMPLEMENTATIONS[chosen]
        return name in found.dtypes and not found.unsupported_part(mechanism)

    # cuDNN supports head widths above 128 only on some GPU generations.
    if backend == "gpu" and 0 < head_width <= 128 and can("jax_cudnn"):
        return "jax_cudnn"
    if backend == "tpu" and length % splash.BLOCKS[-1] == 0 and can("splash"):
        return "splash"
    if length <= DENSE_UP_TO:
        return "dense"
    in_blocks = (
        b for b in ("blockwise", "rows") if not IMPLEMENTATIONS[b].unsupported_part(mechanism)
    )
    return next(in_blocks, "dense")


def unsupported_reason(implementation: str, mechanism: Mechanism) -> str:
    """Returns one line on why this implementation lacks this mechanism; empty if it does not."""
    if implementation not in IMPLEMENTATIONS:
        return (
            f"implementation {implementation!r} is unknown; there are {', '.join(IMPLEMENTATIONS)}"
        )
    missing = IMPLEMENTATIONS[implementation].unsupported_part(mechanism)
    if not missing:
        return ""
    split = sharding.context_size() > 1
    able = [
        name
        for name, other in IMPLEMENTATIONS.items()
        if other.shards_sequence == split
        and platform() in other.platforms
        and not other.unsupported_part(mechanism)
    ]
    have = "has" if len(able) == 1 else "have"
    return f"implementation {implementation!r} lacks {missing}; {', '.join(able)} {have} it"


def decoding_implementation(implementation: str, length: int) -> str:
    """Returns the implementation to use for `length` new queries against a decoding cache.

    A single query gains nothing from blocks, because its scores are linear in length anyway. The
    positions of several queries are traced, which some implementations do not support.
    """
    return (
        implementation if length > 1 and IMPLEMENTATIONS[implementation].any_positions else "dense"
    )


def attend(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K Dv"],
    mechanism: Mechanism = PLAIN,
    *,
    q_index: Integer[Array | np.ndarray, " T"] | None = None,
    kv_index: Integer[Array | np.ndarray, " S"] | None = None,
    implementation: str = "dense",
    block_size: int = 0,
) -> Float[Array, "B T H Dv"]:
    """Computes attention with the named implementation; see `dense.attend` for the definition.

    Args:
      q: queries; shapes and meaning of all arrays as in `dense.attend`.
      k: keys.
      v: values.
      mechanism: the attention mechanism, with bound arrays.
      q_index: absolute positions of the queries; 0 .. T-1 if None.
      kv_index: absolute positions of the keys; 0 .. S-1 if None.
      implementation: a name in `IMPLEMENTATIONS`.
      block_size: queries and keys per block, for implementations with blocks; 0 chooses.

    Raises:
      Unsupported: the implementation is unknown, or lacks a part of the mechanism, this dtype,
        this device or positions that are not known while tracing.
    """
    if why := unsupported_reason(implementation, mechanism):
        raise Unsupported(why)
    chosen = IMPLEMENTATIONS[implementation]
    options = {"block_size": block_size} if chosen.takes_block_size else {}
    out = chosen.attend(q, k, v, mechanism, q_index=q_index, kv_index=kv_index, **options)
    return out if chosen.names_residuals else flash.named(out)
