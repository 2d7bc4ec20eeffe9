"""Memory of a training step on one device: what is kept between steps, and what a step needs.

Kept: the parameters and the best ones so far (float32), the optimizer's state, the data. They are
exact: sizes of arrays, divided by what the layout's rules divide them by.

Temporaries are what a step needs beside them. They are predicted without compiling, as

    1.05 (L + min(S, A - S)),  L = A + W

A is the most that is alive at once by the model of `liveness`, on the shapes of one device. Its
largest part is usually the logits, once in the activations' dtype and once in float32, beside S,
the residuals that the layers keep for their gradients: one (B, T, M) per layer with remat, some ten
without. W is the layers' parameters once more as the loop over layers wants them: cast (bfloat16)
and in another order of axes (float32). min(S, A - S) is what XLA's allocator for TPUs was seen to
lose between the two large groups of buffers, which take each other's place in every step, and 1.05
the rest. Both are fitted to 10 compiled programs (TPU v5e, libtpu 0.0.42.1: 125M and 1.3B
parameters, with and without remat, splash, blockwise and dense, 1 to 16 sequences on a device, fsdp
on 16 and 64 devices, heads on 4), of which the prediction is 0.90 to 1.14. Of 8 others it is
1.01 (v5p, blockwise), 1.04 (v6e, dense), 0.97 and 1.09 (v5e without fsdp, one and two slices), 1.05
and 1.11 (32 and 128 sequences), 1.03 (131,072 tokens on 8 devices) and 0.78 (8,192 tokens on 8
devices, 0.4 GB). What is predicted is `memory_analysis().temp_size_in_bytes`: what the runtime
reserves, losses included.

On CPUs and GPUs no loss was seen; there the prediction is A, and coarse.
"""

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from research.cloud.liveness import Need
from research.models.model import Model
from research.parallel.layout import AXES, Layout
from research.training.program import state_specs
from research.training.step import State

LOST = 1.05


class Memory(NamedTuple):
    """Bytes on one device.

    Attributes:
      parameters, optimizer, best, data: kept between steps.
      temporaries: what a step needs beside them.
    """

    parameters: float
    optimizer: float
    best: float
    data: float
    temporaries: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


def predict_temporaries(need: Need, weights: float, dtype: str, platform: str) -> float:
    """Returns the predicted bytes of temporaries.

    Args:
      need: of one device, see `liveness.measure`.
      weights: bytes of the layers' float32 parameters on one device.
      dtype: of activations.
      platform: "tpu", "cpu" or "gpu".
    """
    if platform != "tpu":
        return need.peak
    alive = need.peak + weights * (1.5 if dtype == "bfloat16" else 1.0)
    return LOST * (alive + min(need.saved, max(need.peak - need.saved, 0.0)))


def kept(
    config: ConfigDict, model: Model, state: State, data: Any, layout: Layout
) -> dict[str, float]:
    """Returns the bytes that one device keeps: parameters, optimizer, best, data.

    Args:
      config: the whole config.
      model: what is trained.
      state: shapes of a population.
      data: shapes of the task's data, which every device has whole.
      layout: which devices do what.
    """
    sizes = dict(zip(AXES, layout.shape, strict=True))
    lies = state_specs(model, state, sizes, layout.fsdp)

    def size(tree: Any, specs: Any) -> float:
        return sum(map(part, jax.tree.leaves(tree), jax.tree.leaves(specs)))

    def part(leaf: Any, where: PartitionSpec) -> float:
        shards = math.prod(sizes[axis] for axis in where if axis)
        return math.prod(leaf.shape) * leaf.dtype.itemsize / shards

    return {
        "parameters": size(state.params, lies.params),
        "optimizer": size(state.optimizer, lies.optimizer),
        "best": size(state.best, lies.best),
        "data": float(sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(data))),
    }
