"""Attention transfer: teaches new attention to give what the attention that it replaces gave.

A model that was converted to another attention (`research.models.conversion`) has parameters that
start at their initial values, such as a feature map. Before it is trained as a whole, these are
trained alone, each layer by itself, on the vectors that the layer gets in the model that was
trained: so errors of one layer do not reach the next. What is minimised is the mean square of the
difference between the heads' outputs (Zhang et al. 2024 (LoLCATs), section 3).
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from research.attention.mixers.across_layers import AcrossLayers
from research.attention.mixers.mixer import Mixer
from research.attention.parts.segments import segments
from research.errors import UserError
from research.interpret.capture import record, stacked
from research.models.conversion import OF_EVERY_MIXER
from research.models.model import Model
from research.models.stacks import STACK
from research.parallel.parallelize import bind_mesh, to_global_arrays
from research.parallel.processes import fetch
from research.tasks.task import Task
from research.training.feeding import feed_steps
from research.training.program import Program, parameter_shardings
from research.training.step import data_key, shard_batch

Own = list[dict[str, Array]]
"""For each group of layers {name: parameter that is trained}, stacked over its layers."""


class Layers(NamedTuple):
    """Every n-th layer from a first one on, which have the same pair of mixers.

    Attributes:
      first: the first layer.
      every: n.
      before: the mixer that was trained.
      after: the one that replaces it.
      own: names of the parameters of `after` that `before` does not have.
    """

    first: int
    every: int
    before: Mixer
    after: Mixer
    own: tuple[str, ...]

    def parameters(self, params: PyTree, pattern: int) -> dict[str, Float[Array, "N ..."]]:
        """Returns the mixers' parameters, stacked over these layers.

        Args:
          params: parameters of a model.
          pattern: how many layers its pattern has.
        """
        slot = params[STACK][str(self.first % pattern)]["mixer"]
        return {name: a[self._repeats(pattern)] for name, a in slot.items()}

    def put(self, params: PyTree, pattern: int, own: Mapping[str, np.ndarray]) -> PyTree:
        """Returns parameters of a model, host arrays, with some of these layers replaced."""
        flat, slot = flatten_dict(params), (STACK, str(self.first % pattern), "mixer")
        for name, value in own.items():
            whole = np.array(flat[*slot, name])
            whole[self._repeats(pattern)] = value
            flat[*slot, name] = whole
        return unflatten_dict(flat)

    def _repeats(self, pattern: int) -> slice:
        return slice(self.first // pattern, None, self.every // pattern)


def taught_layers(before: Model, after: Model) -> list[Layers]:
    """Returns the layers whose attention can be taught.

    Args:
      before: the model that was trained.
      after: the model that it was converted to.

    Raises UserError if there are none, or they need more than their input.
    """
    olds, news = (getattr(model.config, "mixers", ()) for model in (before, after))
    if not olds:
        raise UserError(f"it teaches decoders, and the model is a {type(before).__name__}")
    every, found = math.lcm(len(olds), len(news)), []
    for first in range(every):
        old, new = olds[first % len(olds)], news[first % len(news)]
        kept = OF_EVERY_MIXER & set(old.parameters())
        own = tuple(name for name in new.parameters() if name not in kept)
        if type(old) is type(new) or not own:
            continue
        if isinstance(old, AcrossLayers):
            raise UserError("it cannot teach from layers that use values or keys of earlier ones")
        found.append(Layers(first, every, old, new, own))
    if not found:
        raise UserError(
            "no attention of the model has parameters that the trained one lacks, so there is "
            "nothing to teach; model.mixer='hedgehog' has a feature map that is learned"
        )
    return found


def make_transfer(program: Program, before: Model, steps: int, rate: float) -> Callable:
    """Returns (config, params, teacher) -> (params, record), which teaches one member.

    `params` are host arrays, in which the result has what was taught, and `teacher` those of the
    model that was trained. The record has the mean squares of each layer before and after, on a
    batch that was not trained on.

    Args:
      program: the program of the model that is taught.
      before: the model that was trained.
      steps: number of steps.
      rate: learning rate of Adam at the first step; it falls to 0 as a cosine.
    """
    layers, mesh = taught_layers(before, program.model), program.mesh
    pattern = len(program.model.config.mixers)
    rule = optax.adam(optax.cosine_decay_schedule(rate, steps))
    losses = make_losses(program, before, layers)

    def train(own: Own, state: Any, given: Any, start: Array, stop: Array) -> tuple[Own, Any]:
        def body(step: Array, carry: tuple[Own, Any]) -> tuple[Own, Any]:
            own, state = carry
            grads = jax.grad(lambda own: losses(own, given, step).sum())(own)
            updates, state = rule.update(grads, state)
            return jax.tree.map(jnp.add, own, updates), state

        return jax.lax.fori_loop(start, stop, body, (own, state))

    run, measure = bind_mesh(mesh, jax.jit(train)), bind_mesh(mesh, jax.jit(losses))

    def transfer(config: ConfigDict, params: PyTree, teacher: PyTree) -> tuple[PyTree, dict]:
        seeds = np.array([config.seed], np.uint32)
        both = [
            to_global_arrays(tree, parameter_shardings(model, tree, mesh, program.layout.fsdp))
            for model, tree in ((program.model, params), (before, teacher))
        ]
        first = [select(one.parameters(both[0], pattern), one.own) for one in layers]
        ends = [*range(0, steps, program.chunk_steps), steps]
        spans = [*itertools.pairwise(ends), (steps, steps + 1)]
        own, state = first, rule.init(first)
        for (start, stop), data in zip(spans, feed_steps(program, seeds, spans), strict=True):
            given = (*both, data, seeds[0])
            if start < steps:
                own, state = run(own, state, given, np.int32(start), np.int32(stop))
        told = [fetch(measure(one, given, np.int32(steps))).tolist() for one in (first, own)]
        record = {"steps": steps, "before": told[0], "after": told[1]}
        for one, taught in zip(layers, own, strict=True):
            params = one.put(params, pattern, jax.tree.map(fetch, taught))
        return params, record

    return transfer


def make_losses(program: Program, before: Model, layers: Sequence[Layers]) -> Callable:
    """Returns (own, given, step) -> mean squares, one for each layer that is taught.

    `given` are the parameters of the new model, those of the model that was trained, the data and
    the member's seed.
    """
    task, patterns = program.task, [len(m.config.mixers) for m in (before, program.model)]

    def losses(own: Own, given: tuple[Any, ...], step: Array) -> Float[Array, " L"]:
        params, teacher, data, seed = given
        batch = shard_batch(task.batch(of_one_member(task, data), data_key(seed), step, 0))
        ids = batch.get("segments")
        mask = None if ids is None else segments(ids, ids)
        inputs = stacked(record(before, teacher, batch, ("mixed",))[1], "mixed")
        found = []
        for one, taught in zip(layers, own, strict=True):

            def of_layer(layer: tuple, one: Layers = one) -> Float[Array, ""]:
                old, new, x = layer
                apart = outputs(one.before, old, x, mask) - outputs(one.after, new, x, mask)
                return jnp.square(apart.astype(jnp.float32)).mean()

            new = one.parameters(params, patterns[1]) | taught
            old = one.parameters(teacher, patterns[0])
            found.append(jax.lax.map(of_layer, (old, new, inputs[one.first :: one.every])))
        return jnp.concatenate(found)

    return losses


def outputs(mixer: Mixer, params: dict[str, Array], x: Float[Array, "B T M"], mask: Any) -> Array:
    """Returns what the heads read, (B, T, H D), or the mixer's output if it has no "out"."""
    if "out" in params:
        size = math.prod(params["out"].shape[:-1])
        plain = jnp.eye(size).reshape(*params["out"].shape[:-1], size)
        params = {n: p for n, p in params.items() if n != "out_bias"} | {"out": plain}
    return mixer(params, x, mask=mask)


def of_one_member(task: Task, data: Any) -> Any:
    """Returns the data of a population of one without the axis of members."""
    if not task.streamed:
        return data
    return {n: a[0] if "member" in task.data_axes.get(n, ()) else a for n, a in data.items()}


def select(params: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    """Returns the parameters of these names."""
    return {name: params[name] for name in names}
