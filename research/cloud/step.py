"""Traces and compiles the training step for planning, without data and without the target devices.

Nothing is run and no data is read, see `planned_data`.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from research.cloud.data import arrays_read
from research.errors import UserError
from research.parallel.layout import Layout
from research.parallel.mesh import make_mesh
from research.tasks.task import Task
from research.training.program import abstract_state, build_program, data_shardings
from research.training.step import Member


def member_shapes(*members: int) -> Member:
    """Returns the shapes of a single member, or of a population of the given size."""
    value: Any = jax.ShapeDtypeStruct(members, jnp.float32)
    seed: Any = jax.ShapeDtypeStruct(members, jnp.uint32)
    return Member(seed, value, value, value)


class OutOfMemory(Exception):
    """The temporaries alone exceed the device memory; `bytes` is what they would need."""

    def __init__(self, needed: float):
        super().__init__(f"{needed:.4g} bytes of temporaries")
        self.bytes = needed


def compile_step(
    config: ConfigDict, task: Task, layout: Layout, members: int, devices: Sequence[Any]
) -> Any:
    """Returns the compiled training program of a population, for devices that need not exist.

    It is the same program that `research.train` runs: a loop over steps, with the number of steps
    as an argument.

    Raises OutOfMemory, and UserError when the compiler refuses it for another reason.
    """
    mesh = make_mesh(layout, devices)
    # Programs for absent devices can be written to the compilation cache, but not read from it.
    cached = jax.config.jax_enable_compilation_cache  # ty: ignore[missing-attribute]
    jax.config.update("jax_enable_compilation_cache", devices[0].platform != "tpu" and cached)
    try:
        with jax.default_device(devices[0]):
            return _lower(config, task, layout, members, mesh).compile()
    except jax.errors.JaxRuntimeError as error:
        raise _explained(error) from None
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)


def _lower(config: ConfigDict, task: Task, layout: Layout, members: int, mesh: Mesh) -> Any:
    program = build_program(config, layout, mesh, task)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def put(tree: Any, sharding: NamedSharding) -> Any:
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree
        )

    train: Any = program.train
    return train.lower(
        abstract_state(program, members),
        put(member_shapes(members), program.members),
        _data_shapes(config, task, members, mesh),
        *(put(jax.ShapeDtypeStruct((), jnp.int32), everywhere),) * 2,
    )


def _data_shapes(config: ConfigDict, task: Task, members: int, mesh: Mesh) -> Any:
    """Returns the shapes of what the training program reads, as it lies on the devices."""
    data = arrays_read(config, task, members)
    lies = data_shardings(task, data, mesh)
    if not task.data_axes:
        lies = jax.tree.map(lambda _: lies, data)
    return jax.tree.map(
        lambda a, where: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), data, lies
    )


def _explained(error: Exception) -> Exception:
    text = str(error)
    found = re.search(r"\(([\d.]+)([KMG])\) exceeds available", text)
    if "RESOURCE_EXHAUSTED" in text and found:
        return OutOfMemory(float(found[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[found[2]])
    return UserError(f"the compiler refuses it: {' '.join(text.split())[:300]}")
