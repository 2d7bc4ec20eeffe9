"""The same pure training step on many devices, partitioned by the compiler or by `pmap`."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Step = Callable[..., tuple[Any, Any]]
"""(state, members, data, start, stop) -> (state, sums), as `make_train` builds it."""


def parallelize(step: Step, how: str, mesh: Mesh, shardings: tuple[Any, Any]) -> Step:
    """Returns a compiled `step` for all devices of a mesh.

    Args:
      step: pure; state, members and sums have a leading member axis.
      how: "jit": arrays are global and the compiler partitions; the rules of `rules` say how.
        "pmap": one program per device, over the `data` axis of the mesh (each device takes its
        part of the batch and sums over it with the name "data") or over `member`. JAX keeps pmap
        in maintenance mode since 0.8; it has no axis but these two and no sharded state.
      mesh: with the axes of `layout.AXES`.
      shardings: of state and members between the steps, (tree, tree or one for all).
    """
    return _jit(step, mesh, *shardings) if how == "jit" else _pmap(step, mesh, *shardings)


def _jit(step: Step, mesh: Mesh, state: Any, members: Any) -> Step:
    everywhere = NamedSharding(mesh, PartitionSpec())
    return under(
        mesh,
        jax.jit(
            step,
            in_shardings=(state, members, everywhere, everywhere, everywhere),
            out_shardings=(state, everywhere),
            donate_argnums=0,
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
    # Over the batch everything is on every device, but pmap wants an argument that is not.
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


def under(mesh: Mesh, compiled: Any) -> Callable:
    """Returns a function that is traced and run with `mesh` active.

    Its attribute `lower` lowers with the mesh active too, for ahead-of-time compilation.
    """

    def call(*args: Any) -> Any:
        with jax.set_mesh(mesh):
            return compiled(*args)

    def lower(*args: Any) -> Any:
        with jax.set_mesh(mesh):
            return compiled.lower(*args)

    call.lower = lower  # ty: ignore[missing-attribute]
    return call


def place(tree: Any, shardings: Any) -> Any:
    """Returns the host arrays of `tree` as global arrays.

    Args:
      tree: arrays that every process has whole and alike.
      shardings: a tree of shardings, or one for all.
    """

    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)  # no copy of what is in its place

    def put(value: Any, sharding: Any) -> jax.Array:
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda value: put(value, shardings), tree)
    return jax.tree.map(put, tree, shardings)
