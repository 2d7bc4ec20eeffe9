"""Pure functions that initialize, train and evaluate a population of models.

Members of a population differ in values that change no shape (seed, learning rate, weight decay,
initial scale). `vmap` runs them in parallel, and a loop on the device runs many steps per dispatch.
Each member has its own best parameters and can diverge without affecting the others. An ordinary
run is a population of one.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from research.interpret.head_metrics import with_head_measures
from research.models.mixer_layer import LOSSES, SCORES, losses_of_layers
from research.models.model import Model
from research.parallel.rules import constrain
from research.tasks.items import fingerprints, sums_of_items
from research.tasks.task import Batch, Sums, Task, log_normalizer
from research.training.optimizer import make_optimizer, read_optimizer
from research.training.qk_clip import clip_heads, largest_of_all

AXES_OF_BATCH = ("batch", "length", "", "")


class Member(NamedTuple):
    """Values of the config keys in `MEMBER_KEYS`, each an array (P,)."""

    seed: jax.Array
    learning_rate: jax.Array
    weight_decay: jax.Array
    init_scale: jax.Array


class Best(NamedTuple):
    """Parameters with the best validation metric so far, the metric's value, and the step."""

    params: Any
    value: jax.Array
    step: jax.Array


class State(NamedTuple):
    """Training state; every leaf has a leading member axis P.

    Attributes:
      params: current parameters, the ones to evaluate; see `UpdateRule.gradient_point`.
      optimizer: optax state.
      diverged_at: int32, step of the first non-finite loss or gradient; -1: none. From that step
        on the member is frozen at its last finite parameters.
      best: see `Best`.
    """

    params: Any
    optimizer: Any
    diverged_at: jax.Array
    best: Best


class Evaluated(NamedTuple):
    """Results of P members on one split.

    Attributes:
      sums: {metric: sums over the split}, each (P,), or (P, slices) for a sliced metric.
      items: {scalar metric of the task: sums of each item}, each (P, N), for a test set that all
        seeds share; {} for other splits.
      ids: (P, N) uint32, `fingerprints` of the items; None without items.
    """

    sums: dict[str, Sums]
    items: dict[str, Sums]
    ids: jax.Array | None


def select(condition: jax.Array, new: Any, old: Any) -> Any:
    """Selects `new` where the condition, scalar or (P,), holds, else `old`, leaf by leaf."""

    def pick(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(
            condition.reshape(condition.shape + (1,) * (a.ndim - condition.ndim)), a, b
        )

    return jax.tree.map(pick, new, old)


def random_stream(seed: jax.Array, number: int) -> jax.Array:
    """Returns an independent random key per use: 0 initial parameters, 1 data, 2 dropout."""
    return jax.random.fold_in(jax.random.key(seed), number)


def data_key(seed: jax.Array) -> jax.Array:
    """Returns the key from which the batches of a seed are drawn."""
    return random_stream(seed, 1)


def shard_batch(batch: Batch, data_axis: str | None = None) -> Batch:
    """Shards a batch over devices.

    Under jit (`data_axis` None) this adds sharding constraints; under pmap it returns this device's
    slice of the batch along the named axis.
    """
    if data_axis is None:
        # Leaves are (B, T, ...), or (B,) for one value per sequence.
        return jax.tree.map(lambda a: constrain(a, *AXES_OF_BATCH[: a.ndim]), batch)
    devices, index = jax.lax.axis_size(data_axis), jax.lax.axis_index(data_axis)

    def part(a: jax.Array) -> jax.Array:
        size = a.shape[0] // devices
        return jax.lax.dynamic_slice_in_dim(a, index * size, size)

    return jax.tree.map(part, batch)


def batch_shapes(task: Task, rows: int | None = None, bucket: int = 0) -> Batch:
    """Returns the shapes of a training batch, with `rows` rows if given."""

    def batch(data: Any, key: jax.Array) -> Batch:
        return task.batch(data, key, 0, bucket)

    # Cached on the task: each of its programs needs the shapes several times, and some batches take
    # as long to trace as a small model.
    known = vars(task).setdefault("_batch_shapes", {})
    if bucket not in known:
        key = jax.eval_shape(lambda: jax.random.key(0))
        known[bucket] = jax.eval_shape(batch, task.data_shapes(), key)
    shapes = known[bucket]
    if rows is None:
        return shapes
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype), shapes)


def width_ratio(config: ConfigDict) -> float:
    """Returns the base width of muP over the model's width; 1 without muP."""
    base = config.model.get("base_width") or config.model.width
    return base / config.model.width


def make_init(config: ConfigDict, task: Task, model: Model) -> Callable[[Member], State]:
    """Returns a function from a member to its initial state."""
    shapes, begin = batch_shapes(task, 1), make_begin(config, task, model)

    def init(member: Member) -> State:
        example = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        params = model.init(random_stream(member.seed, 0), example, method="forward")["params"]
        axes = model.parameter_axes(params)
        return begin(
            jax.tree.map(lambda p, a: p * member.init_scale if a.matrix else p, params, axes)
        )

    return init


def make_begin(config: ConfigDict, task: Task, model: Model) -> Callable[[Any], State]:
    """Returns a function from a member's first parameters to its state before the first step."""
    worst = -jnp.inf if task.select_higher else jnp.inf
    described = read_optimizer(config)

    def begin(params: Any) -> State:
        axes = model.parameter_axes(params)
        optimizer = make_optimizer(
            described, config.train.steps, 0.0, 0.0, axes, width_ratio(config)
        )
        best = Best(params, jnp.float32(worst), jnp.int32(0))
        return State(params, optimizer.init(params), jnp.int32(-1), best)

    return begin


def objective(sums: dict[str, Sums]) -> Sums:
    """Returns the sums of the training objective: "objective" if the task has it, else "loss"."""
    return sums.get("objective", sums["loss"])


def make_gradients(config: ConfigDict, task: Task, model: Model) -> Callable:
    """Returns (params, batch, key) -> (gradients, sums, scores); sums over targets, not means.

    Scores are the collection `SCORES`, {} without `optimizer.qk_clip`.

    Splits the batch into `optimizer.accumulate` parts and processes them sequentially. Losses of
    mixers are means over queries: each counts as if every target had it, and layers add up.
    """
    parts, z_loss = config.optimizer.accumulate, config.optimizer.z_loss
    reported = [LOSSES, SCORES] if config.optimizer.qk_clip else [LOSSES]

    def loss(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple]:
        outputs, found = model.apply(
            {"params": params},
            batch,
            deterministic=False,
            rngs={"dropout": key},
            method="forward",
            mutable=reported,
        )
        sums = task.metrics(outputs, batch)
        total, count = objective(sums)
        for name, layers in losses_of_layers(found).items():
            total = total + config.optimizer.auxiliary_loss * layers.sum() * count
            sums[name] = Sums(layers.mean() * count, count)
        if z_loss:
            squares = jnp.square(log_normalizer(outputs))
            total = total + z_loss * jnp.where(batch["targets"] >= 0, squares, 0.0).sum()
        scalars = {name: s for name, s in sums.items() if s.total.ndim == 0}
        return total, (scalars, found.get(SCORES, {}))

    def gradients(params: Any, batch: Batch, key: jax.Array) -> tuple[Any, dict[str, Sums], Any]:
        grad = jax.grad(loss, has_aux=True)
        if parts == 1:
            grads, (sums, scores) = grad(params, batch, key)
            return grads, sums, scores
        # Part i takes sequences i, i + parts, ...: devices hold contiguous ranges of the batch, so
        # strided parts need no communication.
        split = jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), batch)

        def add(total: Any, part: tuple) -> tuple[Any, Any]:
            grads, (sums, scores) = grad(params, *part)
            return jax.tree.map(jnp.add, total, (grads, sums)), scores

        first = jax.tree.map(lambda a: a[0], split)
        grads, (sums, _) = jax.eval_shape(grad, params, first, key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (grads, sums))
        total, scores = jax.lax.scan(add, zeros, (split, jax.random.split(key, parts)))
        return *total, jax.tree.map(lambda a: a.max(0), scores)

    return gradients


def make_step(
    config: ConfigDict,
    task: Task,
    model: Model,
    data_axis: str | None = None,
) -> Callable:
    """Returns (state, member, data, step, bucket) -> (state, sums): one optimizer step of a member.

    Args:
      config: the whole config.
      task: the task.
      model: the model.
      data_axis: name of the pmap axis over devices; each device takes its slice of the batch, and
        gradients and metrics are summed over devices. None: arrays are global (jit).
    """
    gradients, described = make_gradients(config, task, model), read_optimizer(config)

    def step(
        state: State, member: Member, data: Any, index: jax.Array, bucket: int = 0
    ) -> tuple[State, Any]:
        batch = shard_batch(task.batch(data, data_key(member.seed), index, bucket), data_axis)
        key = jax.random.fold_in(random_stream(member.seed, 2), index)
        if data_axis is not None:
            # Devices have different rows, so their dropout masks must differ too.
            key = jax.random.fold_in(key, jax.lax.axis_index(data_axis))
        point = described.name.gradient_point(state.optimizer, state.params)
        grads, sums, scores = gradients(point, batch, key)
        if data_axis is not None:
            grads, sums = jax.lax.psum((grads, sums), data_axis)
            scores = jax.lax.pmax(scores, data_axis)
        # Divide the total gradient by the total count: a mean of means would be wrong with masked
        # targets and parts or devices of unequal counts.
        total, count = objective(sums)
        grads = jax.tree.map(lambda g: g / jnp.maximum(count, 1.0), grads)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        # A diverged member keeps its state; the others of the vmap go on.
        alive = (state.diverged_at < 0) & finite
        optimizer = make_optimizer(
            described,
            config.train.steps,
            member.learning_rate,
            member.weight_decay,
            model.parameter_axes(state.params),
            width_ratio(config),
        )
        updates, new = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        if described.qk_clip:
            params = clip_heads(params, scores, described.qk_clip)
            sums["largest_score"] = Sums(largest_of_all(scores), jnp.float32(1.0))
        state = State(
            params=select(alive, params, state.params),
            optimizer=select(alive, new, state.optimizer),
            diverged_at=jnp.where((state.diverged_at < 0) & ~finite, index, state.diverged_at),
            best=state.best,
        )
        sums["gradient_norm"] = Sums(norm, jnp.float32(1.0))
        return state, sums

    return step


def make_train(task: Task, step: Callable) -> Callable:
    """Returns (state, members, data, start, stop) -> (state, sums), which trains a population.

    It runs `step` for steps start .. stop - 1 and sums each member's metrics over these steps.
    """

    def train(state: State, members: Member, data: Any, start: jax.Array, stop: jax.Array):
        of_members = None
        if task.streamed:  # each member has its own part of a chunk
            axes = task.data_axes
            of_members = {name: 0 if "member" in axes.get(name, ()) else None for name in data}
        # One branch per batch shape (bucket). The bucket depends on the step alone, never on the
        # member: vmap of a switch over a mapped index would compute every branch. Each branch is
        # wrapped in jit so that `eval_shape` below and the loop share one trace of the first.
        steps = [
            jax.jit(
                jax.vmap(
                    functools.partial(step, bucket=bucket),
                    in_axes=(0, 0, of_members, None),
                    spmd_axis_name="member",
                ),
                inline=True,
            )
            for bucket in range(len(task.frequencies_in(1)))
        ]
        shapes = jax.eval_shape(steps[0], state, members, data, start)[1]
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def body(i: jax.Array, carry: tuple) -> tuple:
            state, sums = carry
            if len(steps) == 1:
                state, new = steps[0](state, members, data, i)
            else:
                state, new = jax.lax.switch(task.bucket(i), steps, state, members, data, i)
            return state, jax.tree.map(jnp.add, sums, new)

        # The trip count is an argument, so chunks of all lengths run the same program, and results
        # do not depend on where a run was interrupted.
        return jax.lax.fori_loop(start, stop, body, (state, zeros))

    return train


def make_evaluate(
    task: Task,
    model: Model,
    split: str,
    total: int,
    longer: Model | None = None,
    measures: Sequence[str] = (),
) -> Callable[..., Evaluated]:
    """Returns (params, data, seeds) -> results on `total` batches of a split, params (P, ...).

    `seeds`, (P,) uint32, are the members' seeds; they are read only if the task has a separate test
    set for each seed.

    Args:
      task: the task.
      model: the trained model.
      split: name of a split of the task.
      total: number of batches.
      longer: the model built for length `task.longest`, for sequences longer than in training.
      measures: names of attention measures to compute besides the task's metrics.
    """
    of_training = with_head_measures(task, model, measures)
    of_longer = with_head_measures(task, longer, measures) if longer else of_training

    own = split == "test" and task.test_of_seed
    # The error of a test set of each seed's own is in the spread over seeds already.
    keeps_items = split == "test" and not own

    def of_bucket(params: Any, data: Any, bucket: int, batches: int) -> Evaluated:
        def body(index: jax.Array) -> Evaluated:
            def one(params: Any, data: Any) -> Evaluated:
                batch = shard_batch(task.evaluation(data, split, index, batches, bucket))
                longer = batch["inputs"].shape[1] > task.length
                outputs, sums = (of_longer if longer else of_training)(params, batch)
                if not keeps_items:
                    return Evaluated(sums, {}, None)
                return Evaluated(sums, sums_of_items(task, outputs, batch), fingerprints(batch))

            axes = (0, 0 if own else None)
            return jax.vmap(one, in_axes=axes, spmd_axis_name="member")(params, data)

        stacked = jax.lax.map(body, jnp.arange(batches))
        sums = jax.tree.map(lambda a: a.sum(0), stacked.sums)
        # (batches, P, B) -> (P, batches * B)
        items, ids = jax.tree.map(
            lambda a: a.swapaxes(0, 1).reshape(a.shape[1], -1), (stacked.items, stacked.ids)
        )
        return Evaluated(sums, items, ids)

    def evaluate(params: Any, data: Any, seeds: Any = None) -> Evaluated:
        batches = task.evaluation_batches(split, total)
        data = seeds if own else data
        found = [of_bucket(params, data, b, n) for b, n in enumerate(batches) if n]
        sums = jax.tree.map(lambda *sums: sum(sums[1:], sums[0]), *(f.sums for f in found))
        items, ids = jax.tree.map(
            lambda *parts: jnp.concatenate(parts, 1), *((f.items, f.ids) for f in found)
        )
        return Evaluated(sums, items, ids)

    return evaluate


def make_keep_best(higher: bool) -> Callable[[State, jax.Array, jax.Array], State]:
    """Returns (state, value (P,), step) -> state, which updates each member's best parameters.

    Args:
      higher: whether a higher value is better.
    """

    def keep_best(state: State, value: jax.Array, step: jax.Array) -> State:
        better = value > state.best.value if higher else value < state.best.value
        new = Best(state.params, value, jnp.full_like(state.best.step, step))
        return state._replace(best=select(better, new, state.best))

    return keep_best
