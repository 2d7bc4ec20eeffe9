"""Estimates memory and time of training without compiling: bytes from shapes, seconds from FLOPs.

Parameters, optimizer state, best parameters (float32) and data are kept between steps. Their size
on one device is exact: array sizes divided by the mesh axes that shard them. A step adds

    activations   residuals of the forward pass, as `jax.vjp` saves them for one device's part of
                  the batch, positions, heads and vocabulary; the gradient of the logits; and
                  `WORKING` times the residuals of one layer without remat, for the current layer.
                  Or, if that is more, half of the latter, half of what belongs to the logits, and
                  `PADDING` times what a TPU's rows of 128 add to what the kernel of attention reads
                  and writes, see `kernels`
    gradients     `COPIES` times one layer's float32 parameters, which are gathered, cast and
                  differentiated while the layer runs; the gradient sums of an accumulated batch

The three factors are fitted to programs that libtpu 0.0.42.1 compiled for v5e. The ratio of the
estimate to their temporaries (`memory_analysis().temp_size_in_bytes`) is 0.88 to 1.08 for 125M and
1.3B parameters with remat, splash or blockwise, heads of 16 to 128, 2,048 to 50,304 tokens in the
vocabulary, 2 to 32 sequences on a device; 0.84 and 1.04 for 8,192 and 131,072 tokens over 8
devices; 0.88 without remat; 1.16 with one head of 768; 1.16 dense, on v6e.

The device's FLOPs count padded heads for these kernels only. What the compiler does with narrow
heads in other implementations is not known.
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
from research.cloud.data import bytes_of, data_bytes, local_task
from research.cloud.kernels import Kernel, padded_kernel
from research.cloud.step import member_shapes
from research.configuration import apply_deltas
from research.models.layers import SLOW_TO_TRACE
from research.models.model import Model
from research.models.registry import make_model, read_model
from research.parallel.layout import AXES, Layout
from research.parallel.topology import Target
from research.tasks.task import Batch, Task
from research.training.budget import COUNTED_AS, training_flops
from research.training.program import state_specs
from research.training.step import State, batch_shapes, make_init, objective

WORKING, PADDING, COPIES = 0.38, 5.7, 4.0

UTILIZATION = 0.55
"""Fraction of peak FLOP/s at which matrix products run, counting those that remat recomputes.

Published model FLOPs utilizations of tuned programs: 46 % (PaLM on v4, Chowdhery 2022, table 3), 46
to 67 % on v5e and 64 to 71 % on v5p for 16B parameters and more, 45 % on v6e for 8B (MaxText).
"""

KERNELS = ("splash",)
"""Implementations that are a Pallas kernel."""
SKIPPING, BLOCK = ("splash", "blockwise", "ring"), 512
"""Implementations that skip fully masked blocks, and the block size assumed for them, in tokens."""


class Memory(NamedTuple):
    """Bytes on one device.

    Attributes:
      parameters, optimizer, best, data: kept between steps.
      gradients, activations: needed only during a step.
    """

    parameters: float
    optimizer: float
    best: float
    data: float
    gradients: float
    activations: float

    @property
    def temporaries(self) -> float:
        """Bytes needed only during a step."""
        return self.gradients + self.activations

    @property
    def total(self) -> float:
        """Bytes in total."""
        return sum(self)


class Estimate(NamedTuple):
    """Estimated cost of training, without compiling.

    Attributes:
      implementation: implementation of the mixers.
      memory: memory on one device.
      model_flops: FLOPs of one step of the whole population as the budget counts them: every query
        with every key, without recomputation by remat.
      flops: FLOPs that are executed: with recomputation by remat, and without the masked blocks
        that the implementation skips.
      parameters: number of trained parameters of one member.
    """

    implementation: str
    memory: Memory
    model_flops: float
    flops: float
    parameters: int


def estimate(
    config: ConfigDict, task: Task, layout: Layout, members: int, platform: str
) -> Estimate:
    """Returns the estimated cost of training a population on a layout.

    Args:
      config: the whole config.
      task: the task, see `abstract_task`.
      layout: sizes of the mesh axes.
      members: population size P.
      platform: "tpu", "cpu" or "gpu"; determines the implementation.

    Raises UserError for an invalid config.
    """
    # The shapes of the state do not depend on the implementation, so a fast one to trace is used.
    model = make_model(config.model, task.vocab_size, task.length, SLOW_TO_TRACE)
    state = jax.eval_shape(jax.vmap(make_init(config, task, model)), member_shapes(members))
    # Tracing for a platform needs none of its devices.
    with jax.default_device(platform):
        step = _step(config, local_task(task, layout), layout)
        model_flops, _ = _flops(apply_deltas(config, {"model.remat": False}), task)
        _, flops = _flops(config, task, step.padding)
    sizes = dict(zip(AXES, layout.shape, strict=True))
    kept = _kept(model, state, layout) | {"data": data_bytes(config, task, members, sizes)}
    sums = kept["parameters"] if config.optimizer.accumulate > 1 else 0.0
    here = members // layout.member
    return Estimate(
        step.implementation,
        Memory(
            **kept,
            gradients=here * COPIES * step.layer + sums,
            activations=here * step.activations,
        ),
        *(members * config.task.batch_size * f for f in (model_flops, flops)),
        parameters=sum(math.prod(a.shape[1:]) for a in jax.tree.leaves(state.params)),
    )


def _kept(model: Model, state: State, layout: Layout) -> dict[str, float]:
    """Returns the bytes that one device keeps between steps, without the data."""
    sizes = dict(zip(AXES, layout.shape, strict=True))
    lies = state_specs(model, state, sizes, layout.fsdp)

    def part(leaf: Any, where: PartitionSpec) -> float:
        return bytes_of(leaf) / math.prod(sizes[axis] for axis in where if axis)

    def size(tree: Any, specs: Any) -> float:
        return sum(map(part, jax.tree.leaves(tree), jax.tree.leaves(specs)))

    return {
        "parameters": size(state.params, lies.params),
        "optimizer": size(state.optimizer, lies.optimizer),
        "best": size(state.best, lies.best),
    }


class _Step(NamedTuple):
    """A step of one member on one device, of one micro-batch if gradients are accumulated.

    Attributes:
      implementation: implementation of the mixers.
      activations: bytes.
      layer: bytes of a layer's parameters.
      padding: factor by which the kernel of attention pads heads, see `Kernel`.
    """

    implementation: str
    activations: float
    layer: float
    padding: float


def _step(config: ConfigDict, local: Task, layout: Layout) -> _Step:
    model = config.model
    width = model.head_width or model.width // max(model.num_heads, 1)
    shapes = {
        "model.head_width": width if layout.model > 1 else model.head_width,
        "model.num_heads": model.num_heads // layout.model,
        "model.num_kv_heads": -(-model.num_kv_heads // layout.model),
        "model.feedforward": model.feedforward // layout.model,
    }
    batch = batch_shapes(local, local.batch_size // config.optimizer.accumulate)
    found, kernel = {}, Kernel()
    for remat in (False, True):
        changed = apply_deltas(config, shapes | {"model.remat": remat})
        made = make_model(changed.model, local.vocab_size, local.length)
        params = jax.eval_shape(make_init(changed, local, made), member_shapes()).params
        traced = trace_backward(made, local, params, batch)
        found[remat], kernel = residuals(traced), padded_kernel(traced)
    working = WORKING * max(found[False] - found[True], 0.0) / model.num_layers
    rows, length = batch["inputs"].shape
    positions = min(model.get("loss_chunk") or length, length)
    logits = rows * positions * local.vocab_size
    gradient = logits * jnp.dtype(model.dtype).itemsize
    # With much padding, the peak is not at the logits but in a layer, when half of them are gone.
    in_layer = working / 2 + PADDING * kernel.extra - (4 * logits + gradient) / 2
    padded = 0.0 if model.remat else model.num_layers * kernel.extra
    weights = sum(map(bytes_of, jax.tree.leaves(params["layers"]))) / model.num_layers
    activations = found[model.remat] + padded + gradient + max(working, in_layer)
    return _Step(made.implementation, activations, weights, kernel.padding)


def trace_backward(model: Model, task: Task, params: Any, batch: Batch) -> Any:
    """Returns a jaxpr whose outputs are the residuals that the backward pass of a batch needs.

    Args:
      model, task: the model and its task.
      params, batch: shapes; parameters and inputs are in memory anyway and are not counted.
    """

    def loss(params: Any, batch: Batch) -> jax.Array:
        rngs = {"dropout": jax.random.key(0)}
        outputs = model.apply(
            {"params": params}, batch, deterministic=False, rngs=rngs, method="forward"
        )
        return objective(task.metrics(outputs, batch)).total

    def backward(params: Any, batch: Batch) -> Any:
        # The vjp function is a pytree: its leaves, the outputs of the jaxpr, are the residuals.
        return jax.vjp(lambda params: loss(params, batch), params)[1]

    return jax.make_jaxpr(backward)(params, batch).jaxpr


def residuals(jaxpr: Any) -> float:
    """Returns the bytes of the outputs of `trace_backward`, without parameters and inputs."""
    kept = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    return sum(bytes_of(v.aval) for v in kept.difference(jaxpr.invars))


SHORT = 2048
"""Maximum length at which FLOPs are counted: the mask of a longer one would fill the memory."""


def _flops(config: ConfigDict, task: Task, padding: float = 1.0) -> tuple[float, float]:
    """Returns the FLOPs of one training step on one sequence: model's, and the device's.

    The device skips blocks that are masked, and multiplies padded heads (`padding` times as wide).

    They are counted as in the budget, at two short lengths, and extrapolated as a T + b T^2, where
    the quadratic term is attention.
    """
    length = task.length
    short = max(min(length, SHORT) // 2, 1)
    one, two = (_counted(config, task, n) for n in (short, 2 * short))
    square = (two - 2 * one) / (2 * short**2)
    whole = (one / short - square * short) * length + square * length**2
    layers = read_model(config.model).layers()
    done = [_multiplied(layer.spec(length), length, padding) for layer in layers]
    return whole, whole - (1 - sum(done) / len(done)) * square * length**2


def _counted(config: ConfigDict, task: Task, length: int) -> float:
    model = make_model(config.model, task.vocab_size, length, COUNTED_AS)
    return training_flops(model, {"inputs": jax.ShapeDtypeStruct((1, length), jnp.int32)})


def _multiplied(spec: MixerSpec, length: int, padding: float) -> float:
    """Returns the FLOPs that attention computes per FLOP of all (query, key) pairs."""
    wider = padding if spec.implementation in KERNELS else 1.0
    if spec.implementation not in SKIPPING or spec.mask is None:
        return wider
    first = np.arange(0, length, BLOCK)
    last = np.minimum(first + BLOCK, length) - 1
    some, _ = spec.mask.classify_blocks(first[:, None], last[:, None], first[None], last[None])
    return wider * float(np.mean(some))


def step_seconds(target: Target, devices: int, flops: float) -> float | None:
    """Returns the seconds for `flops` on `devices` devices; None if their peak is unknown."""
    chip = target.chip
    if chip is None:
        return None
    return flops / (devices / chip.devices * chip.flops) / UTILIZATION
