"""Compiles the pure training step for many devices, partitioned by the compiler or by `pmap`."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Step = Callable[..., tuple[Any, Any]]
"""(state, members, data, start, stop) -> (state, sums), as built by `make_train`."""


def parallelize(step: Step, how: str, mesh: Mesh, shardings: tuple[Any, Any, Any]) -> Step:
    """Returns a compiled `step` for all devices of a mesh.

    Args:
      step: pure function; state, members and sums have a leading member axis.
      how: "jit": arrays are global and the compiler partitions them, by the table in `rules`.
        "pmap": one program per device, over the `data` axis of the mesh (each device takes its
        part of the batch, and sums reduce over the axis name "data") or over `member`. JAX has kept
        pmap in maintenance mode since 0.8; it supports no other axes and no sharded state.
      mesh: mesh with the axes `layout.AXES`.
      shardings: shardings of state and members between steps, and of the data: (tree, tree or one
        for all, likewise). pmap replicates the data.
    """
    return _jit(step, mesh, *shardings) if how == "jit" else _pmap(step, mesh, *shardings[:2])


def _jit(step: Step, mesh: Mesh, state: Any, members: Any, data: Any) -> Step:
    everywhere = NamedSharding(mesh, PartitionSpec())
    return bind_mesh(
        mesh,
        jax.jit(
            step,
            in_shardings=(state, members, data, everywhere, everywhere),
            out_shardings=(state, everywhere),
            donate_argnums=0,  # the new state reuses the memory of the old one
        ),
    )


def _pmap(step: Step, mesh: Mesh, state: Any, members: Any) -> Step:
    devices = list(mesh.devices.flat)
    over_batch = mesh.shape["member"] == 1

    def split(a: Any) -> Any:
        return a.reshape(len(devices), -1, *a.shape[1:])

    def join(a: jax.Array) -> jax.Array:
        return a.reshape(-1, *a.shape[2:])

    mapped_over = NamedSharding(Mesh(devices, ("member",)), PartitionSpec("member"))
    # When splitting the batch, every argument is replicated, but pmap needs at least one mapped
    # argument: a device index that the step ignores.
    mapped = jax.pmap(
        lambda _, *arguments: step(*arguments),
        axis_name="data" if over_batch else "member",
        in_axes=(0, *(None,) * 5) if over_batch else (0, 0, 0, None, None, None),
        out_axes=None if over_batch else 0,
        devices=devices,
    )

    def call(*arguments: Any) -> tuple[Any, Any]:
        if not over_batch:
            divided = jax.device_put(jax.tree.map(split, arguments[:2]), mapped_over)
            arguments = (*divided, *arguments[2:])
        new, sums = mapped(np.arange(len(devices)), *arguments)
        if not over_batch:
            new, sums = jax.tree.map(join, (new, sums))
        return jax.device_put(new, state), sums

    return call


def bind_mesh(mesh: Mesh, compiled: Any) -> Callable:
    """Returns `compiled` wrapped to be traced and run with `mesh` active.

    Its attribute `lower` also lowers with the mesh active, for ahead-of-time compilation.
    """

    def call(*args: Any) -> Any:
        with jax.set_mesh(mesh):
            return compiled(*args)

    def lower(*args: Any) -> Any:
        with jax.set_mesh(mesh):
            return compiled.lower(*args)

    call.lower = lower  # ty: ignore[missing-attribute]
    return call


def to_global_arrays(tree: Any, shardings: Any) -> Any:
    """Returns the host arrays of `tree` as global arrays.

    Args:
      tree: full arrays, identical on every process. A leaf with shape, dtype and [slices] that is
        no array is asked only for the parts that lie on devices of this process.
      shardings: a tree of shardings, or one for all arrays.
    """

    def put(value: Any, sharding: Any) -> jax.Array:
        if hasattr(value, "__array__") or not hasattr(value, "shape"):
            if jax.process_count() == 1:
                return jax.device_put(value, sharding)  # copies only what is not yet in place
            value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda value: put(value, shardings), tree)
    return jax.tree.map(put, tree, shardings)
