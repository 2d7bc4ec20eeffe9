"""What training needs of a device by a plain formula: bytes from shapes, seconds from FLOPs.

Kept between steps are the parameters, the optimizer's state, the best parameters (float32) and the
data: sizes of arrays over what the layout's rules divide them by, which is exact. A step adds

    activations   what the gradient reads of the forward pass, as `jax.vjp` keeps it for one
                  device's part of the batch, positions, heads and vocabulary; the gradient of the
                  logits; and `WORKING` of what one layer keeps without remat, for the layer at work
    gradients     `COPIES` of one layer's float32 parameters, which are gathered, cast and
                  differentiated while it is at work; the sums of an accumulated batch

The two factors are fitted to programs that libtpu 0.0.42.1 compiled for v5e. Of their temporaries
(`memory_analysis().temp_size_in_bytes`) the formula gives 0.96 to 1.07 for 125M and 1.3B parameters
with remat, splash or blockwise, 2 to 32 sequences on a device; 0.84 and 1.04 for 8,192 and 131,072
tokens over 8 devices; 0.83 without remat; 1.16 dense, on v6e. A TPU pads rows to 128 numbers, which
the formula does not know: 0.64 with heads of 16, 1.16 with one head of 768.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from research.attention.spec import MixerSpec
from research.cloud.step import local_task, member_shapes
from research.configuration import apply_deltas
from research.models.model import Model
from research.models.registry import make_model, read_model
from research.models.transformer import SLOW_TO_TRACE
from research.parallel.layout import AXES, Layout
from research.parallel.topology import Target
from research.tasks.task import Batch, Task
from research.training.budget import COUNTED_AS, training_flops
from research.training.program import state_specs
from research.training.step import State, batch_shapes, make_init, objective

WORKING, COPIES = 0.38, 4.0

UTILIZATION = 0.55
"""Part of the peak at which products run, those that remat repeats included.

Published model FLOPs utilizations of tuned programs: 46 % (PaLM on v4, Chowdhery 2022, table 3), 46
to 67 % on v5e and 64 to 71 % on v5p for 16B parameters and more, 45 % on v6e for 8B (MaxText).
"""

SKIPPING, BLOCK = ("splash", "blockwise", "ring"), 512
"""Implementations that leave out blocks which the mask forbids, and how large these are taken."""


class Memory(NamedTuple):
    """Bytes on one device.

    Attributes:
      parameters, optimizer, best, data: kept between steps.
      gradients, activations: needed in a step.
    """

    parameters: float
    optimizer: float
    best: float
    data: float
    gradients: float
    activations: float

    @property
    def temporaries(self) -> float:
        """What a step needs beside what is kept."""
        return self.gradients + self.activations

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


class Estimate(NamedTuple):
    """What is known of training without compiling it.

    Attributes:
      implementation: how the mixers are computed.
      memory: of one device.
      model_flops: of one step of the whole population as the budget counts them, every query with
        every key, and without what remat computes again.
      flops: with it, and without the blocks that a mask forbids where they are left out.
      parameters: trained values of one member.
    """

    implementation: str
    memory: Memory
    model_flops: float
    flops: float
    parameters: int


def estimate(
    config: ConfigDict, task: Task, layout: Layout, members: int, platform: str
) -> Estimate:
    """Returns what training a population on a layout needs.

    Args:
      config: the whole config.
      task: see `abstract_task`.
      layout: which devices do what.
      members: P.
      platform: "tpu", "cpu" or "gpu", which implementations depend on.

    Raises UserError for a config that makes no sense.
    """
    # What the state looks like does not depend on how mixers are computed.
    model = make_model(config.model, task.vocab_size, task.length, SLOW_TO_TRACE)
    state = jax.eval_shape(jax.vmap(make_init(config, task, model)), member_shapes(members))
    # Neither the platform nor devices of a slice need to be here to trace for them.
    with jax.default_device(platform):
        implementation, activations, layer = _step(config, local_task(task, layout), layout)
        model_flops, _ = _flops(apply_deltas(config, {"model.remat": False}), task)
        _, flops = _flops(config, task)
    kept = _kept(model, state, task, layout)
    sums = kept["parameters"] if config.optimizer.accumulate > 1 else 0.0
    here = members // layout.member
    return Estimate(
        implementation,
        Memory(**kept, gradients=here * COPIES * layer + sums, activations=here * activations),
        *(members * config.task.batch_size * f for f in (model_flops, flops)),
        parameters=sum(math.prod(a.shape[1:]) for a in jax.tree.leaves(state.params)),
    )


def _kept(model: Model, state: State, task: Task, layout: Layout) -> dict[str, float]:
    """Returns the bytes that one device keeps: parameters, optimizer, best, data."""
    sizes = dict(zip(AXES, layout.shape, strict=True))
    lies = state_specs(model, state, sizes, layout.fsdp)

    def part(leaf: Any, where: PartitionSpec) -> float:
        return _bytes(leaf) / math.prod(sizes[axis] for axis in where if axis)

    def size(tree: Any, specs: Any) -> float:
        return sum(map(part, jax.tree.leaves(tree), jax.tree.leaves(specs)))

    return {
        "parameters": size(state.params, lies.params),
        "optimizer": size(state.optimizer, lies.optimizer),
        "best": size(state.best, lies.best),
        "data": float(sum(map(_bytes, jax.tree.leaves(task.data)))),
    }


def _bytes(array: Any) -> float:
    return math.prod(array.shape) * getattr(array.dtype, "itemsize", 4)


def _step(config: ConfigDict, local: Task, layout: Layout) -> tuple[str, float, float]:
    """Returns the implementation, and bytes of activations and of one layer's parameters.

    All are of one member on one device, for a part of an accumulated batch.
    """
    model = config.model
    width = model.head_width or model.width // max(model.num_heads, 1)
    shapes = {
        "model.head_width": width if layout.model > 1 else model.head_width,
        "model.num_heads": model.num_heads // layout.model,
        "model.num_kv_heads": -(-model.num_kv_heads // layout.model),
        "model.feedforward": model.feedforward // layout.model,
    }
    batch = batch_shapes(local, local.batch_size // config.optimizer.accumulate)
    found = {}
    for remat in (False, True):
        changed = apply_deltas(config, shapes | {"model.remat": remat})
        made = make_model(changed.model, local.vocab_size, local.length)
        params = jax.eval_shape(make_init(changed, local, made), member_shapes()).params
        found[remat] = residuals(made, local, params, batch)
    working = WORKING * max(found[False] - found[True], 0.0) / model.num_layers
    logits = batch["inputs"].size * local.vocab_size * jnp.dtype(model.dtype).itemsize
    weights = sum(map(_bytes, jax.tree.leaves(params["layers"]))) / model.num_layers
    return made.implementation, found[model.remat] + logits + working, weights


def residuals(model: Model, task: Task, params: Any, batch: Batch) -> float:
    """Returns the bytes that the gradient of a batch keeps from the forward pass.

    Args:
      model, task: what is trained on what.
      params, batch: shapes; they are there anyway and do not count.
    """

    def loss(params: Any, batch: Batch) -> jax.Array:
        rngs = {"dropout": jax.random.key(0)}
        outputs = model.apply(
            {"params": params}, batch, deterministic=False, rngs=rngs, method="of_batch"
        )
        return objective(task.metrics(outputs, batch)).total

    def backward(params: Any, batch: Batch) -> Any:
        return jax.vjp(lambda params: loss(params, batch), params)[1]

    jaxpr = jax.make_jaxpr(backward)(params, batch).jaxpr
    kept = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    return sum(_bytes(v.aval) for v in kept.difference(jaxpr.invars))


SHORT = 2048
"""Tokens up to which products are counted: a mask of a great length would fill the memory."""


def _flops(config: ConfigDict, task: Task) -> tuple[float, float]:
    """Returns the FLOPs of one training step of one sequence: all, and those not left out.

    They are counted as the budget counts them, at two short lengths, and taken to be a T + b T^2,
    where what is quadratic is attention.
    """
    length = task.length
    short = max(min(length, SHORT) // 2, 1)
    one, two = (_counted(config, task, n) for n in (short, 2 * short))
    square = (two - 2 * one) / (2 * short**2)
    whole = (one / short - square * short) * length + square * length**2
    layers = read_model(config.model).layers()
    seen = [_visited(layer.spec(length), length) for layer in layers]
    return whole, whole - (1 - sum(seen) / len(seen)) * square * length**2


def _counted(config: ConfigDict, task: Task, length: int) -> float:
    model = make_model(config.model, task.vocab_size, length, COUNTED_AS)
    return training_flops(model, {"inputs": jax.ShapeDtypeStruct((1, length), jnp.int32)})


def _visited(spec: MixerSpec, length: int) -> float:
    """Returns the part of all blocks of pairs that attention computes."""
    if spec.implementation not in SKIPPING or spec.mask is None:
        return 1.0
    first = np.arange(0, length, BLOCK)
    last = np.minimum(first + BLOCK, length) - 1
    some, _ = spec.mask.blocks(first[:, None], last[:, None], first[None], last[None])
    return float(np.mean(some))


def step_seconds(target: Target, devices: int, flops: float) -> float | None:
    """Returns the seconds of a step of `flops` on so many devices; None where no peak is known."""
    chip = target.chip
    if chip is None:
        return None
    return flops / (devices / chip.devices * chip.flops) / UTILIZATION
