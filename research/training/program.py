"""The compiled side of training: a population as one program.

Members differ in values that change no shape (seed, learning rate, weight decay, initial scale).
`vmap` runs them side by side, one loop on the device runs many steps per dispatch, and each keeps
its own best parameters and its own failure. A population of one is the ordinary run.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from research.configuration import flatten, from_plain, to_plain
from research.errors import UserError
from research.models.layers import implementation_of, layer_options
from research.models.transformer import (
    Decoder,
    make_transformer,
)
from research.tasks.registry import make_task
from research.tasks.task import Batch, Sums, Task
from research.training.optimizer import check_optimizer, make_optimizer

MEMBER_KEYS = (
    "seed",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "model.init_scale",
)
"""Config keys that may differ between the members of one population."""


class Member(NamedTuple):
    """The values of `MEMBER_KEYS`, arrays (P,)."""

    seed: jax.Array
    learning_rate: jax.Array
    weight_decay: jax.Array
    init_scale: jax.Array


class Best(NamedTuple):
    """The parameters with the best validation value so far, with that value and its step."""

    params: Any
    value: jax.Array
    step: jax.Array


class State(NamedTuple):
    """Training state; every leaf has a leading member axis P.

    Attributes:
      params: current parameters.
      optimizer: optax state.
      diverged_at: int32, step of the first loss or gradient that was not finite; -1: none. From
        then on the member is frozen at its last finite parameters.
      best: see `Best`.
    """

    params: Any
    optimizer: Any
    diverged_at: jax.Array
    best: Best


@dataclass(frozen=True)
class Program:
    """The compiled functions of one static config; populations of it share them.

    Attributes:
      task, model: what is learned and what learns it.
      implementation: how the mixers are computed, with "auto" resolved.
      init: (members) -> state.
      train: (state, members, data, start, stop) -> (state, sums); steps start .. stop - 1; `sums`
        hold each member's metrics summed over these steps.
      evaluate: {split: (params, data) -> sums} with params stacked over members.
      keep_best: (state, value, step) -> state, `value` (P,) the selection metric.
    """

    task: Task
    model: Decoder
    implementation: str
    init: Callable
    train: Callable
    evaluate: dict[str, Callable]
    keep_best: Callable


def static_config(config: ConfigDict) -> dict:
    """Returns the config without what may differ between members, as nested JSON values."""
    plain = to_plain(config)
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
    """Returns the members of a population."""
    flat = [flatten(config) for config in configs]
    columns = ([f[key] for f in flat] for key in MEMBER_KEYS)
    seed, *others = columns
    return Member(jnp.array(seed, jnp.uint32), *(jnp.array(o, jnp.float32) for o in others))


def make_program(config: ConfigDict) -> Program:
    """Returns the program of a config, the same object for configs that can share it.

    Raises UserError for a config that makes no sense.
    """
    check_optimizer(config.optimizer)
    check_train(config.train)
    if config.task.batch_size % config.optimizer.accumulate:
        raise UserError(
            f"optimizer.accumulate={config.optimizer.accumulate} must divide "
            f"task.batch_size={config.task.batch_size}."
        )
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed={config.seed} must be in [0, 2^32).")
    program = program_of(static_id(config))
    for options in layer_options(config.model, program.task.length):
        # together == 0 is what the mask algebra calls causal; masks to come are judged by it too.
        # A mixer that is causal by itself is left with the mask option at its default.
        if program.task.next_token and options.build_mask().together != 0:
            raise UserError(
                f"model.mask={options.mask!r} shows the task {config.task.name!r} the tokens that "
                "it has to predict; use 'causal' or 'window'."
            )
    return program


def check_train(config: ConfigDict) -> None:
    """Raises UserError for a training length or interval below 1."""
    for key, value in config.items():
        if value < 1:
            raise UserError(f"train.{key}={value} must be at least 1.")


@functools.lru_cache(maxsize=64)
def program_of(static: str) -> Program:
    """Returns the program of a `static_id`; `make_program` also checks the config."""
    config = from_plain(json.loads(static))
    task = task_of(json.dumps(to_plain(config.task)))
    model = make_transformer(config.model, task.vocab_size, task.length)
    step = make_step(config, task, model)
    metric, higher = task.select

    def train(state: State, members: Member, data: Any, start: jax.Array, stop: jax.Array):
        every_member = jax.vmap(step, in_axes=(0, 0, None, None))
        shapes = jax.eval_shape(every_member, state, members, data, start)[1]
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def body(i: jax.Array, carry: tuple) -> tuple:
            state, sums = carry
            state, new = every_member(state, members, data, i)
            return state, jax.tree.map(jnp.add, sums, new)

        # The trip count is an argument: one program for chunks of every length, so that where a
        # run was cut changes nothing in what is computed.
        return jax.lax.fori_loop(start, stop, body, (state, zeros))

    def evaluate(split: str) -> Callable:
        total = config.train.eval_batches

        def one(params: Any, batch: Batch) -> dict[str, Sums]:
            return task.metrics(model.apply({"params": params}, batch["inputs"])[0], batch)

        def sums(params: Any, data: Any) -> dict[str, Sums]:
            def body(index: jax.Array) -> dict[str, Sums]:
                batch = task.evaluation(data, split, index, total)
                return jax.vmap(one, in_axes=(0, None))(params, batch)

            stacked = jax.lax.map(body, jnp.arange(total))
            return jax.tree.map(lambda a: a.sum(0), stacked)

        return jax.jit(sums)

    def keep_best(state: State, value: jax.Array, step: jax.Array) -> State:
        better = value > state.best.value if higher else value < state.best.value
        new = Best(state.params, value, jnp.full_like(state.best.step, step))
        return state._replace(best=choose(better, new, state.best))

    return Program(
        task=task,
        model=model,
        implementation=implementation_of(layer_options(config.model, task.length)),
        init=jax.jit(jax.vmap(make_init(config, task, model))),
        train=jax.jit(train, donate_argnums=0),
        evaluate={split: evaluate(split) for split in task.splits},
        keep_best=jax.jit(keep_best, donate_argnums=0),
    )


def forget_programs() -> None:
    """Drops all compiled programs of this process.

    On CPUs each holds hundreds of memory maps, of which Linux allows a process 65,530 by default: a
    sweep over many arms that kept them all would die in the compiler after some thirty.
    """
    program_of.cache_clear()
    jax.clear_caches()


@functools.lru_cache(maxsize=8)
def task_of(plain: str) -> Task:
    """Returns the task of a config in JSON; programs that differ in their model share its data."""
    return make_task(from_plain(json.loads(plain)))


def choose(condition: jax.Array, new: Any, old: Any) -> Any:
    """Returns `new` where the (P,) or scalar condition holds, else `old`, leaf by leaf."""

    def pick(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(
            condition.reshape(condition.shape + (1,) * (a.ndim - condition.ndim)), a, b
        )

    return jax.tree.map(pick, new, old)


def stream(seed: jax.Array, number: int) -> jax.Array:
    """Returns an independent key per use: 0 initial parameters, 1 data, 2 dropout."""
    return jax.random.fold_in(jax.random.key(seed), number)


def make_init(config: ConfigDict, task: Task, model: Decoder) -> Callable[[Member], State]:
    """Returns member -> initial state (of one member)."""
    worst = -jnp.inf if task.select[1] else jnp.inf

    def init(member: Member) -> State:
        tokens = jnp.zeros((1, task.length), jnp.int32)
        params = model.init(stream(member.seed, 0), tokens)["params"]
        params = jax.tree.map(lambda p: p * member.init_scale if p.ndim >= 2 else p, params)
        optimizer = make_optimizer(config.optimizer, config.train.steps, 0.0, 0.0)
        best = Best(params, jnp.float32(worst), jnp.int32(0))
        return State(params, optimizer.init(params), jnp.int32(-1), best)

    return init


def make_step(config: ConfigDict, task: Task, model: Decoder) -> Callable:
    """Returns (state, member, data, step) -> (state, sums) of one member: one optimizer step."""
    parts = config.optimizer.accumulate

    def loss(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, Sums]]:
        logits, _ = model.apply(
            {"params": params},
            batch["inputs"],
            deterministic=config.model.dropout == 0,
            rngs={"dropout": key},
        )
        sums = task.metrics(logits, batch)
        return sums["loss"].total, {name: s for name, s in sums.items() if s.total.ndim == 0}

    def gradients(params: Any, batch: Batch, key: jax.Array) -> tuple[Any, dict[str, Sums]]:
        """Returns gradients and metrics, both summed over targets."""
        grad = jax.grad(loss, has_aux=True)
        if parts == 1:
            return grad(params, batch, key)
        split = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), batch)

        def add(total: Any, part: tuple) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, grad(params, *part)), None

        first = jax.tree.map(lambda a: a[0], split)
        shapes = jax.eval_shape(grad, params, first, key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(add, zeros, (split, jax.random.split(key, parts)))[0]

    def step(state: State, member: Member, data: Any, index: jax.Array) -> tuple[State, Any]:
        batch = task.batch(data, jax.random.fold_in(stream(member.seed, 1), index))
        grads, sums = gradients(
            state.params, batch, jax.random.fold_in(stream(member.seed, 2), index)
        )
        # Sum over sum, not a mean of means: right with masked targets and uneven parts.
        grads = jax.tree.map(lambda g: g / jnp.maximum(sums["loss"].count, 1.0), grads)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(sums["loss"].total) & jnp.isfinite(norm)
        alive = (state.diverged_at < 0) & finite
        optimizer = make_optimizer(
            config.optimizer, config.train.steps, member.learning_rate, member.weight_decay
        )
        updates, new = optimizer.update(grads, state.optimizer, state.params)
        state = State(
            params=choose(alive, optax.apply_updates(state.params, updates), state.params),
            optimizer=choose(alive, new, state.optimizer),
            diverged_at=jnp.where((state.diverged_at < 0) & ~finite, index, state.diverged_at),
            best=state.best,
        )
        sums["gradient_norm"] = Sums(norm, jnp.float32(1.0))
        return state, sums

    return step
