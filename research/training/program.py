"""Compiles training: one program per static config and layout, shared by populations.

The functions to compile are in `step`; their placement on devices is in `research.parallel`.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from research.configuration import flatten, from_plain, to_plain
from research.interpret.head_metrics import measure_labels
from research.models.layers import LACK_SEGMENTS, SLOW_TO_TRACE
from research.models.model import Model
from research.models.registry import make_model
from research.parallel.layout import ONE_DEVICE, Layout, resolve_layout
from research.parallel.mesh import make_mesh
from research.parallel.parallelize import bind_mesh, parallelize, to_global_arrays
from research.parallel.rules import partition_spec
from research.tasks.registry import make_task
from research.tasks.task import Task
from research.training.schema import resolve
from research.training.step import (
    Member,
    State,
    batch_shapes,
    data_key,
    make_begin,
    make_evaluate,
    make_init,
    make_keep_best,
    make_step,
    make_train,
)

MEMBER_KEYS = (
    "seed",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "model.init_scale",
)
"""Config keys that may differ between the members of one population."""

HOST_KEYS = ("init_from", "init_heads", "init_without_heads", "transfer_steps", "transfer_rate")
"""Keys of `config.train` that only the host reads; they may differ between members, too."""


@dataclass(frozen=True)
class Program:
    """The compiled functions of one static config on one layout, shared by populations.

    Attributes:
      task, model: the task and the model.
      measures: names of attention measures to compute besides the task's metrics.
      slices: labels of the entries of each sliced metric.
      implementation: names of the mixers' implementations, with "auto" resolved.
      layout: how members, data and parameters are divided over devices.
      mesh: mesh on which arrays stay between calls.
      members: sharding of the members' values.
      state: shapes and shardings of the state of `layout.member` members, the smallest population
        that this layout can shard.
      init: (members) -> state, with random parameters.
      begin: (params) -> state, with these parameters.
      train: (state, members, data, start, stop) -> (state, sums); runs steps start .. stop - 1 and
        sums each member's metrics over these steps. Its data are `training_data`.
      evaluate: {split: (params, data, seeds) -> `Evaluated`} with params stacked over members.
      keep_best: (state, value, step) -> state, `value` (P,) the selection metric.
      chunk_steps: steps between two stops at most, for tasks that are streamed.
    """

    task: Task
    model: Model
    measures: Sequence[str]
    slices: Mapping[str, Sequence[str]]
    implementation: str
    layout: Layout
    mesh: Mesh
    members: NamedSharding
    state: State
    init: Callable
    begin: Callable
    train: Callable
    evaluate: dict[str, Callable]
    keep_best: Callable
    chunk_steps: int

    @functools.cached_property
    def data(self) -> Any:
        """The task's data on the devices: replicated, or in parts as `Task.data_axes` says."""
        return to_global_arrays(
            self.task.data, data_shardings(self.task, self.task.data, self.mesh)
        )

    def training_data(self, seeds: np.ndarray, start: int, stop: int) -> Any:
        """Returns what `train` reads in steps start .. stop - 1, at most `chunk_steps` if streamed.

        Args:
          seeds: (P,) uint32, the members' seeds.
          start, stop: the steps.
        """
        if not self.task.streamed:
            return self.data
        chunk = self.task.chunk(seeds, data_key, start, stop, self.chunk_steps)
        return self.data | to_global_arrays(chunk, data_shardings(self.task, chunk, self.mesh))

    @property
    def parameters(self) -> Any:
        """Shapes and dtypes of the parameters of one member."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), self.state.params
        )


def static_config(config: ConfigDict) -> dict:
    """Returns the keys a run reads that its program depends on, as nested JSON values.

    These are all but `MEMBER_KEYS`, `HOST_KEYS` and the layout.

    A program is determined by this and by its layout.
    """
    plain = to_plain(resolve(config))
    del plain["parallel"]
    for key in MEMBER_KEYS:
        node = plain
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node[parent]
        del node[leaf]
    given = {key: plain["train"].pop(key, "") for key in HOST_KEYS}
    if given["init_from"]:  # no steps are allowed then
        plain["train"]["init_from"] = "a run"
    return plain


def static_id(config: ConfigDict) -> str:
    """Returns a string that is equal for configs that can share a program."""
    return json.dumps(static_config(config), sort_keys=True)


def make_members(configs: Sequence[ConfigDict]) -> Member:
    """Returns the members of a population, with host arrays."""
    flat = [flatten(config) for config in configs]
    columns = ([f[key] for f in flat] for key in MEMBER_KEYS)
    seed, *others = columns
    arrays: list[Any] = [np.array(seed, np.uint32), *(np.array(o, np.float32) for o in others)]
    return Member(*arrays)


def make_program(config: ConfigDict, members: int = 1) -> Program:
    """Returns the program of a config, the same object for configs that can share it.

    Building it checks the parts one by one, not whether they go together: `validation.check_config`
    does.

    Args:
      config: the whole config.
      members: P, number of members of the population; the layout depends on it.

    Raises UserError for invalid options of a part, or a layout that the devices do not allow.
    """
    return cached_program(static_id(config), resolve_layout(resolve(config), members))


@functools.lru_cache(maxsize=64)
def cached_program(static: str, layout: Layout = ONE_DEVICE) -> Program:
    """Returns the cached program of a `static_id` on a layout, without validating the config."""
    return build_program(from_plain(json.loads(static)), layout, make_mesh(layout))


def build_program(
    config: ConfigDict, layout: Layout, mesh: Mesh, task: Task | None = None
) -> Program:
    """Returns the program of a config on a mesh; does not read `MEMBER_KEYS`.

    Args:
      config: the whole config.
      layout: the layout that the mesh was made for.
      mesh: mesh of devices, or of descriptions of devices to compile for.
      task: replaces the config's task; its data may be shapes.
    """
    task = task or cached_task(task_id(config))
    with jax.set_mesh(mesh):  # the choice of implementation depends on the mesh
        model, longer = model_of(config, task), None
        if task.longest > task.length:
            longer = model_of(config, task, length=task.longest)
        # Parameters do not depend on the implementation, so initialize with one that traces fast.
        quick = model_of(config, task, SLOW_TO_TRACE)
    # Under pmap, arrays stay on one device between steps; only the train step is mapped.
    rest = mesh if layout.how == "jit" else make_mesh(ONE_DEVICE, list(mesh.devices.flat)[:1])
    everywhere = NamedSharding(rest, PartitionSpec())
    init = jax.vmap(make_init(config, task, quick), spmd_axis_name="member")
    begin = jax.vmap(make_begin(config, task, quick), spmd_axis_name="member")
    state = state_structure(model, init, rest, layout)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    members = NamedSharding(rest, partition_spec(("member",), (layout.member,), dict(rest.shape)))
    axis = "data" if layout.how == "pmap" and layout.member == 1 else None
    train = make_train(task, make_step(config, task, model, axis))
    chunk_steps = steps_between_stops(config.train)
    lies = everywhere
    if task.data_axes:
        seeds = np.zeros(layout.member, np.uint32)
        chunk = task.chunk(seeds, data_key, 0, 0, chunk_steps) if task.streamed else {}
        lies = data_shardings(task, {**task.data, **chunk}, rest)
    keep_best = make_keep_best(task.select_higher)
    total, measures = config.train.eval_batches, config.interpret.measures
    return Program(
        task=task,
        model=model,
        measures=measures,
        slices={**task.slices, **measure_labels(model, batch_shapes(task), measures)},
        implementation=model.implementation,
        layout=layout,
        mesh=rest,
        members=members,
        state=state,
        init=bind_mesh(rest, jax.jit(init, in_shardings=members, out_shardings=placed)),
        begin=bind_mesh(
            rest,
            jax.jit(begin, in_shardings=(placed.params,), out_shardings=placed),
        ),
        train=parallelize(train, layout.how, mesh, (placed, members, lies)),
        evaluate={
            split: bind_mesh(
                rest,
                jax.jit(
                    make_evaluate(task, model, split, total, longer, measures),
                    out_shardings=everywhere,
                ),
            )
            for split in task.splits
        },
        keep_best=bind_mesh(rest, jax.jit(keep_best, out_shardings=placed, donate_argnums=0)),
        chunk_steps=chunk_steps,
    )


def steps_between_stops(config: ConfigDict) -> int:
    """Returns the most steps of `config.train` after which something is logged, saved..."""
    least = min(config.log_every, config.eval_every, config.checkpoint_every, config.steps)
    return max(least, 1)  # arrays of no steps have shapes that nothing takes


def data_shardings(task: Task, data: Any, mesh: Mesh) -> Any:
    """Returns the sharding of each array of a task's data; one for all if none is in parts."""
    if not task.data_axes:
        return NamedSharding(mesh, PartitionSpec())
    sizes = dict(mesh.shape)

    def place(name: str, leaf: Any) -> NamedSharding:
        axes = task.data_axes.get(name, ("",) * len(leaf.shape))
        return NamedSharding(mesh, partition_spec(axes, leaf.shape, sizes))

    return {name: place(name, leaf) for name, leaf in data.items()}


def model_of(
    config: ConfigDict,
    task: Task,
    substitutes: Mapping[str, str] | None = None,
    length: int = 0,
) -> Model:
    """Returns the model of a config for a task.

    Args:
      config: the whole config.
      task: the task.
      substitutes: {implementation: substitute}, see `make_model`.
      length: maximum sequence length; 0: the task's.
    """
    length = length or task.length
    if task.packed:
        substitutes = LACK_SEGMENTS | dict(substitutes or {})
    return make_model(config.model, task.vocab_size, length, substitutes, task.classes)


def state_structure(model: Model, init: Callable, mesh: Mesh, layout: Layout) -> State:
    """Returns shapes and shardings of the state of `layout.member` members."""
    one: Any = jax.ShapeDtypeStruct((layout.member,), np.float32)
    seed: Any = jax.ShapeDtypeStruct((layout.member,), np.uint32)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(init, Member(seed, one, one, one))
    sizes = dict(mesh.shape)

    def place_leaf(leaf: Any, where: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, where))

    return jax.tree.map(place_leaf, state, state_specs(model, state, sizes, layout.fsdp))


def parameter_shardings(model: Model, params: Any, mesh: Mesh, fsdp: bool) -> Any:
    """Returns the sharding of each parameter of one model.

    Args:
      model: the model.
      params: arrays or shapes, without a member axis.
      mesh: the mesh.
      fsdp: whether parameters are sharded over the axis `data`.
    """
    sizes = dict(mesh.shape)

    def lies(leaf: Any, axes: Any) -> NamedSharding:
        return NamedSharding(mesh, partition_spec(axes.names, leaf.shape, sizes, fsdp))

    return jax.tree.map(lies, params, model.parameter_axes(params))


def state_specs(model: Model, state: State, sizes: dict[str, int], fsdp: bool) -> State:
    """Returns the partition spec of each leaf of a population's state.

    The optimizer's moments are sharded like the parameters they belong to.

    Args:
      model: the model.
      state: arrays or shapes, with the leading member axis.
      sizes: {mesh axis: number of devices}.
      fsdp: whether parameters are sharded over the axis `data`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(model.parameter_axes(state.params))
    axes = {tuple(path): ("member", *own.names) for path, own in leaves}

    def lies(path: tuple, leaf: Any) -> PartitionSpec:
        # The path of an optimizer moment, .../mu/layers/0/..., ends with the parameter's path.
        own = next((axes[path[i:]] for i in range(len(path)) if path[i:] in axes), ("member",))
        names = own if len(own) == leaf.ndim else ("member",) + ("",) * (leaf.ndim - 1)
        return partition_spec(names, leaf.shape, sizes, fsdp)

    return jax.tree_util.tree_map_with_path(lies, state)


def abstract_state(program: Program, members: int) -> State:
    """Returns a population's state with a `ShapeDtypeStruct` (shape and sharding) per leaf."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (members, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding
        ),
        program.state,
    )


def clear_programs() -> None:
    """Drops all compiled programs of this process.

    On CPUs each holds hundreds of memory maps, and Linux allows a process 65,530 by default, so a
    sweep that kept them all would crash in the compiler after about thirty arms.
    """
    cached_program.cache_clear()
    jax.clear_caches()


def task_id(config: ConfigDict) -> str:
    """Returns a string that is equal for configs that can share a task."""
    return json.dumps(to_plain(resolve(config).task), sort_keys=True)


@functools.lru_cache(maxsize=8)
def cached_task(plain: str) -> Task:
    """Returns the cached task of a `task_id`, so programs with different models share its data."""
    return make_task(from_plain(json.loads(plain)))
