"""The compiled side of training: one program per static config and layout, shared by populations.

What is compiled is in `step`; where it runs is in `research.parallel`.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from research.configuration import flatten, from_plain, to_plain
from research.decoding.search import Search, check_model, search_of
from research.decoding.streaming import streaming
from research.errors import UserError, check_name
from research.interpret import questions as final
from research.interpret.columns import labels
from research.models.model import Model, parameter_shapes
from research.models.registry import MODELS, make_model, read_model
from research.models.transformer import SLOW_TO_TRACE, DecoderOptions
from research.parallel.layout import ONE_DEVICE, Layout, layout_of
from research.parallel.mesh import make_mesh
from research.parallel.parallelize import parallelize, place, under
from research.parallel.rules import spec
from research.tasks.registry import make_task
from research.tasks.task import Task
from research.training.optimizer import check_optimizer
from research.training.step import (
    Member,
    State,
    batch_shapes,
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


@dataclass(frozen=True)
class Program:
    """The compiled functions of one static config on one layout; populations of it share them.

    Attributes:
      task, model: what is learned and what learns it.
      measures: of the model's attention, beside the task's metrics.
      slices: labels of the entries of each sliced metric.
      implementation: how the mixers are computed, with "auto" resolved.
      layout: which devices do what.
      mesh: where arrays rest.
      members: sharding of the members' values.
      state: shapes and shardings of the state of the smallest population that the layout splits.
      init: (members) -> state.
      train: (state, members, data, start, stop) -> (state, sums); steps start .. stop - 1; `sums`
        hold each member's metrics summed over these steps.
      evaluate: {split: (params, data) -> sums} with params stacked over members.
      keep_best: (state, value, step) -> state, `value` (P,) the selection metric.
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
    train: Callable
    evaluate: dict[str, Callable]
    keep_best: Callable

    @functools.cached_property
    def data(self) -> Any:
        """The task's data on all devices."""
        return place(self.task.data, NamedSharding(self.mesh, PartitionSpec()))

    @property
    def parameters(self) -> Any:
        """Shapes and dtypes of the parameters of one member."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), self.state.params
        )


def static_config(config: ConfigDict) -> dict:
    """Returns the config without what may differ between members, as nested JSON values.

    The layout is no part of it either; it is the other half of what a program is made for.
    """
    plain = to_plain(config)
    plain.pop("parallel", None)
    for key in MEMBER_KEYS:
        node = plain
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node[parent]
        del node[leaf]
    return plain


def static_id(config: ConfigDict) -> str:
    """Returns a text that is equal for configs which can share a program."""
    return json.dumps(static_config(config), sort_keys=True)


def make_members(configs: Sequence[ConfigDict]) -> Member:
    """Returns the members of a population, as host arrays."""
    flat = [flatten(config) for config in configs]
    columns = ([f[key] for f in flat] for key in MEMBER_KEYS)
    seed, *others = columns
    arrays: list[Any] = [np.array(seed, np.uint32), *(np.array(o, np.float32) for o in others)]
    return Member(*arrays)


def make_program(config: ConfigDict, members: int = 1) -> Program:
    """Returns the program of a config, the same object for configs that can share it.

    Args:
      config: the whole config.
      members: P, of the populations that it will run; the layout depends on it.

    Raises UserError for a config that makes no sense.
    """
    check_optimizer(config.optimizer)
    check_train(config.train)
    search = search_of(config)
    final.check_final(config.interpret.final, config.interpret.examples)
    if config.task.batch_size % config.optimizer.accumulate:
        raise UserError(
            f"optimizer.accumulate={config.optimizer.accumulate} must divide "
            f"task.batch_size={config.task.batch_size}."
        )
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed={config.seed} must be in [0, 2^32).")
    check_name("model.name", config.model.name, MODELS)
    layout = layout_of(config, members)
    able = task_of(task_id(config)).models
    if config.model.name not in able:
        raise UserError(
            f"model.name={config.model.name!r} cannot learn the task {config.task.name!r}; "
            f"{', '.join(able)} can."
        )
    program = program_of(static_id(config), layout)
    check_read(config, program.task)
    if config.interpret.final:
        shapes = batch_shapes(program.task, 1)
        final.check_model(config.interpret.final, program.model, shapes)
    if program.task.decoded:
        check_model(search, program.model.config, "decoding.")
    if program.task.decoded and search.coverage_penalty and not heads_that_read(program):
        without = "model.attention", config.model.attention
        if config.model.get("ctc_weight") == 1:
            without = "model.ctc_weight", config.model.ctc_weight
        raise UserError(
            f"decoding.coverage_penalty={search.coverage_penalty} needs attention, and there is "
            f"none with {without[0]}={without[1]!r}; use 0."
        )
    check_longer(program, config)
    if stream := program.task.stream:
        decoder: Any = program.model
        for sinks in stream.sinks:
            streaming(decoder, stream.window, sinks)
    model = read_model(config.model)
    if not program.task.next_token or not isinstance(model, DecoderOptions):
        return program
    for mixer in model.specs(program.task.length):
        # `together == 0` means causal. Testing the property, not the name, covers masks to come.
        if not mixer.options.causal or (mixer.mask is not None and mixer.mask.together != 0):
            raise UserError(
                f"model.mask={mixer.values['mask']!r} shows the task {config.task.name!r} the "
                "tokens that it has to predict; use 'causal' or 'window'."
            )
    return program


def check_read(config: ConfigDict, task: Task) -> None:
    """Raises UserError for a changed key of how to search, ask or optimize that nothing reads."""
    optimizer, asked = config.optimizer, config.interpret
    decodes = f"task.name={config.task.name!r} decodes nothing"
    unread: dict[str, tuple[Any, str]] = {}
    if not task.decoded:
        defaults = {f.name: f.default for f in fields(Search)}
        unread |= {f"decoding.{key}": (defaults[key], decodes) for key in config.decoding}
    if not asked.final:
        unread["interpret.examples"] = 256, "interpret.final=() asks nothing"
    if optimizer.name != "adamw":
        why = f"optimizer.name={optimizer.name!r} has no moments"
        defaults = {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8}
        unread |= {f"optimizer.{key}": (value, why) for key, value in defaults.items()}
    if optimizer.schedule not in ("cosine", "linear"):
        why = f"optimizer.schedule={optimizer.schedule!r} does not decay to it"
        unread["optimizer.final_fraction"] = 0.1, why
    values = flatten(config)
    for key, (default, why) in unread.items():
        if values[key] != default:
            raise UserError(
                f"{key}={values[key]!r}: nothing reads it, {why}; leave it {default!r}."
            )


def check_longer(program: Program, config: ConfigDict) -> None:
    """Raises UserError for a model that is another one at the lengths that are only evaluated."""
    task = program.task
    if task.longest == task.length:
        return
    asked = f"task.eval_lengths={tuple(task.eval_lengths)}"
    for layer in read_model(config.model).layers():
        values = layer.spec(task.longest).values
        if values.get("rope_scaling") == "yarn" and not values["rope_original_length"]:
            raise UserError(
                f"{asked} with model.rope_scaling='yarn' needs model.rope_original_length."
            )
    batch = batch_shapes(task, 1)
    longer = model_of(config, task, SLOW_TO_TRACE, task.longest)
    if parameter_shapes(longer, batch) != program.parameters:
        raise UserError(
            f"{asked}: this model has parameters for task.length={task.length} tokens only "
            "(model.position='learned' has, for example), so it cannot be evaluated at more."
        )


def heads_that_read(program: Program) -> int:
    """Returns how many heads of a sequence-to-sequence model read the source, in all layers."""
    model, batch = program.model, batch_shapes(program.task, 1)

    def weights(params: Any, batch: Any) -> Any:
        return model.apply({"params": params}, batch, method="weights")

    return jax.eval_shape(weights, program.parameters, batch).shape[1]


def check_train(config: ConfigDict) -> None:
    """Raises UserError for a training length or interval below 1."""
    for key, value in config.items():
        if value < 1:
            raise UserError(f"train.{key}={value} must be at least 1.")


@functools.lru_cache(maxsize=64)
def program_of(static: str, layout: Layout = ONE_DEVICE) -> Program:
    """Returns the program of a `static_id` on a layout; `make_program` also checks the config."""
    return build_program(from_plain(json.loads(static)), layout, make_mesh(layout))


def build_program(
    config: ConfigDict, layout: Layout, mesh: Mesh, task: Task | None = None
) -> Program:
    """Returns the program of a config (its `MEMBER_KEYS` are not read) on a mesh.

    Args:
      config: the whole config.
      layout: what the mesh is for.
      mesh: of devices, or of descriptions of them.
      task: stands in for the config's, with data that may be shapes.
    """
    task = task or task_of(task_id(config))
    with jax.set_mesh(mesh):  # what suits the mechanism depends on it
        model, longer = model_of(config, task), None
        if task.longest > task.length:
            longer = model_of(config, task, length=task.longest)
        # Parameters are the same however they are used.
        quick = model_of(config, task, SLOW_TO_TRACE)
    # pmap's arrays rest on one device between its steps; the other functions are not mapped.
    rest = mesh if layout.how == "jit" else make_mesh(ONE_DEVICE, list(mesh.devices.flat)[:1])
    everywhere = NamedSharding(rest, PartitionSpec())
    init = jax.vmap(make_init(config, task, quick), spmd_axis_name="member")
    state = one_state(model, init, rest, layout)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    members = NamedSharding(rest, spec(("member",), (layout.member,), dict(rest.shape)))
    axis = "data" if layout.how == "pmap" and layout.member == 1 else None
    train = make_train(task, make_step(config, task, model, axis))
    keep_best = make_keep_best(task.select_higher)
    total, measures = config.train.eval_batches, config.interpret.measures
    return Program(
        task=task,
        model=model,
        measures=measures,
        slices={**task.slices, **labels(model, batch_shapes(task), measures)},
        implementation=model.implementation,
        layout=layout,
        mesh=rest,
        members=members,
        state=state,
        init=under(rest, jax.jit(init, in_shardings=members, out_shardings=placed)),
        train=parallelize(train, layout.how, mesh, (placed, members)),
        evaluate={
            split: under(
                rest,
                jax.jit(
                    make_evaluate(task, model, split, total, longer, measures),
                    out_shardings=everywhere,
                ),
            )
            for split in task.splits
        },
        keep_best=under(rest, jax.jit(keep_best, out_shardings=placed, donate_argnums=0)),
    )


def model_of(
    config: ConfigDict,
    task: Task,
    instead: Mapping[str, str] | None = None,
    length: int = 0,
) -> Model:
    """Returns the model of a config for a task.

    Args:
      config: the whole config.
      task: what it learns.
      instead: as `make_model` takes it.
      length: the longest sequence; 0: the task's.
    """
    length = length or task.length
    return make_model(config.model, task.vocab_size, length, instead, task.classes)


def one_state(model: Model, init: Callable, mesh: Mesh, layout: Layout) -> State:
    """Returns shapes and shardings of the state of `layout.member` members."""
    one: Any = jax.ShapeDtypeStruct((layout.member,), np.float32)
    seed: Any = jax.ShapeDtypeStruct((layout.member,), np.uint32)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(init, Member(seed, one, one, one))
    sizes = dict(mesh.shape)

    def place_leaf(leaf: Any, where: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, where))

    return jax.tree.map(place_leaf, state, state_specs(model, state, sizes, layout.fsdp))


def state_specs(model: Model, state: State, sizes: dict[str, int], fsdp: bool) -> State:
    """Returns where each leaf of a population's state lies on a mesh.

    The optimizer's copies of the parameters lie where the parameters do.

    Args:
      model: what is trained.
      state: arrays or shapes, with the leading member axis.
      sizes: {mesh axis: number of devices}.
      fsdp: whether parameters are split over the axis `data`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(model.parameter_axes(state.params))
    axes = {tuple(path): ("member", *own.names) for path, own in leaves}

    def lies(path: tuple, leaf: Any) -> PartitionSpec:
        # The path of a parameter's copy, .../mu/layers/0/..., ends with the parameter's own.
        own = next((axes[path[i:]] for i in range(len(path)) if path[i:] in axes), ("member",))
        names = own if len(own) == leaf.ndim else ("member",) + ("",) * (leaf.ndim - 1)
        return spec(names, leaf.shape, sizes, fsdp)

    return jax.tree_util.tree_map_with_path(lies, state)


def abstract_state(program: Program, members: int) -> State:
    """Returns shapes and shardings of the state of a population, leaves `ShapeDtypeStruct`."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (members, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding
        ),
        program.state,
    )


def forget_programs() -> None:
    """Drops all compiled programs of this process.

    On CPUs each holds hundreds of memory maps, of which Linux allows a process 65,530 by default: a
    sweep over many arms that kept them all would die in the compiler after some thirty.
    """
    program_of.cache_clear()
    jax.clear_caches()


def task_id(config: ConfigDict) -> str:
    """Returns a text that is equal for configs which can share a task."""
    return json.dumps(to_plain(config.task), sort_keys=True)


@functools.lru_cache(maxsize=8)
def task_of(plain: str) -> Task:
    """Returns the task of a `task_id`; programs that differ in their model share its data."""
    return make_task(from_plain(json.loads(plain)))
