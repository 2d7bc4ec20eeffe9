"""Counts the cost of a run before it starts: parameters, FLOPs, size of the decoding state."""

import functools
import json
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from ml_collections import ConfigDict

from research.configuration import from_plain
from research.models.mixer_layer import LOSSES
from research.models.model import Model, parameter_shapes
from research.training.program import cached_task, model_of, static_id, task_id
from research.training.step import batch_shapes


def measure_budget(config: ConfigDict) -> dict[str, Any]:
    """Returns the budget of one run.

    Returns:
      parameters: number of trained scalars.
      flops_per_token: FLOPs per token of a training step (forward and backward), by `count_flops`.
      state_bytes: bytes of the decoding state of one sequence of `task.length` tokens; None for a
        model that looks ahead and so has none.
      tokens: number of training tokens, without padding.
      steps: number of training steps.
    """
    return {
        **_measure_model(static_id(config)),
        "tokens": round(config.train.steps * cached_task(task_id(config)).tokens),
        "steps": config.train.steps,
    }


def count_parameters(config: ConfigDict) -> int:
    """Returns the number of trained scalars of a config, without compiling anything."""
    task = cached_task(task_id(config))
    model = model_of(config, task, COUNTED_AS)
    return _number(parameter_shapes(model, batch_shapes(task, 1)))


def _number(params: Any) -> int:
    return sum(math.prod(p.shape) for p in jax.tree.leaves(params))


COUNTED_AS = {
    "blockwise": "dense",
    "jax_cudnn": "dense",
    "splash": "dense",
    "ring": "dense",
    "gather": "dense",
}
"""Substitutes for counting: implementations whose products a jaxpr does not show -> one that does.

Blocks that a mask excludes are therefore counted, as for the dense implementation.
"""


@functools.cache
def _measure_model(static: str) -> dict[str, Any]:
    config = from_plain(json.loads(static))
    task = cached_task(task_id(config))
    counted = model_of(config, task, COUNTED_AS)
    params = parameter_shapes(counted, batch_shapes(task, 1))
    flops = sum(
        part * training_flops(counted, batch_shapes(task, bucket=bucket), params)
        for bucket, part in enumerate(task.frequencies_in(config.train.steps or 1))
    )
    model = model_of(config, task)
    return {
        "parameters": _number(params),
        "flops_per_token": flops / task.tokens,
        "state_bytes": model.state_bytes(task.length),
    }


def training_flops(model: Model, batch: Any, params: Any = None) -> float:
    """Returns the FLOPs of computing the gradient on one batch, by `count_flops`.

    Args:
      model: a model whose implementations show their products in a jaxpr; see `COUNTED_AS`.
      batch: shapes of the batch.
      params: shapes of the model's parameters; None: computed here.
    """

    def loss(params: Any, batch: Any) -> jax.Array:
        outputs = model.apply({"params": params}, batch, method="forward", mutable=[LOSSES])
        return sum((a.sum() for a in jax.tree.leaves(outputs)), jnp.float32(0.0))

    params = params or parameter_shapes(model, batch)
    return count_flops(jax.make_jaxpr(jax.grad(loss))(params, batch).jaxpr)


def count_flops(jaxpr: core.Jaxpr) -> float:
    """Returns the floating-point operations of the products in a jaxpr.

    A multiply-add counts as two. Counts dot_general, convolution and FFT (5 n log2 n, the usual
    convention), but no elementwise operations. The body of a scan counts once per iteration, unlike
    in XLA's cost analysis, which counts it once.

    Raises ValueError for a product inside a loop of unknown length.
    """
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: core.JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    inputs = [math.prod(_shape(v)) for v in equation.invars]
    out = math.prod(_shape(equation.outvars[0])) if equation.outvars else 0
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = _shape(equation.invars[0])
        return 2.0 * out * math.prod(shape[i] for i in contracted)
    if name == "conv_general_dilated":
        outputs = _shape(equation.invars[1])[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * out * inputs[1] / outputs
    if name == "fft":
        points = math.prod(params["fft_lengths"])
        real = params["fft_type"] not in (jax.lax.FftType.FFT, jax.lax.FftType.IFFT)
        return max(out, inputs[0]) * 5.0 * math.log2(max(points, 2)) / (2 if real else 1)
    inside = [count_flops(body) for body in sub_jaxprs(params)]
    if name == "scan":
        return params["length"] * sum(inside)
    if name == "cond":
        return max(inside)
    if name == "while" and sum(inside):
        raise ValueError("FLOPs cannot be counted: a product inside a loop of unknown length")
    return sum(inside)


def _shape(variable: Any) -> tuple[int, ...]:
    """Returns the shape of a variable; abstract values such as keys and tokens have none."""
    return getattr(variable.aval, "shape", ())


def sub_jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """Yields the jaxprs among an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
