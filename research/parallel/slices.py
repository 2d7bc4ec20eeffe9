"""Names of TPU slices, and the accelerator types and runtimes that Google Cloud uses for them.

A slice is written GENERATION:TOPOLOGY, with the topology in chips as in JAX's compile-only
topologies and GKE ("v5e:4x4"), and "N*" in front for N slices that are connected by the
data-center network ("2*v5e:16x16").

The unit in Google Cloud's accelerator types depends on the generation: chips for v5e and v6e
("v5litepod-16" and "v6e-16" are 16 chips), TensorCores, two per chip, for v4, v5p and TPU7x
("v5p-16" is 8 chips). Sources: the pages of cloud.google.com/tpu/docs on v4, v5e, v5p, v6e and
tpu7x; the table of runtimes in cloud.google.com/tpu/docs/runtimes, which also says that TPU7x is
not offered by the Cloud TPU API.
"""

import math
import re
from dataclasses import dataclass

from research.errors import UserError

CHIPS_PER_HOST = 4
"""Chips per host of every slice with several hosts, in all generations."""


@dataclass(frozen=True)
class Generation:
    """A TPU generation.

    Attributes:
      name: prefix of its accelerator types in Google Cloud.
      cores: units per chip in an accelerator type: 1 for chips, 2 for TensorCores.
      runtime: software version of a Cloud TPU VM; "" if the Cloud TPU API has none.
      topologies: default topology for each size of an accelerator type.
    """

    name: str
    cores: int
    runtime: str
    topologies: tuple[str, ...]


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")

GENERATIONS = {
    "v4": Generation("v4", 2, "tpu-ubuntu2204-base", (*_CUBES, "8x16x16")),
    "v5e": Generation("v5litepod", 1, "v2-alpha-tpuv5-lite", _FLAT),
    "v5p": Generation("v5p", 2, "v2-alpha-tpuv5", (*_CUBES, "8x16x16", "16x16x16")),
    "v6e": Generation("v6e", 1, "v2-alpha-tpuv6e", _FLAT),
    "tpu7x": Generation("tpu7x", 2, "", (*_CUBES, "8x16x16", "16x16x16")),
}


@dataclass(frozen=True)
class Slice:
    """One or several equal TPU slices."""

    generation: str
    topology: str
    count: int = 1

    @property
    def chips(self) -> int:
        """Number of chips of one slice."""
        return math.prod(map(int, self.topology.split("x")))

    @property
    def accelerator_type(self) -> str:
        """Accelerator type of one slice in Cloud TPU and xpk, for example "v5litepod-16"."""
        generation = GENERATIONS[self.generation]
        return f"{generation.name}-{self.chips * generation.cores}"

    @property
    def runtime(self) -> str:
        """Software version of its Cloud TPU VMs, or "" if there is none."""
        return GENERATIONS[self.generation].runtime

    @property
    def distributed(self) -> bool:
        """Whether it may span several hosts, whose processes `jax.distributed` must join."""
        return self.chips > CHIPS_PER_HOST or self.count > 1

    def __str__(self) -> str:
        prefix = f"{self.count}*" if self.count > 1 else ""
        return f"{prefix}{self.generation}:{self.topology}"


def parse_slice(text: str) -> Slice:
    """Parses a slice such as "v5e:4x4" or "2*v5e:16x16".

    Raises UserError for a slice that is not offered, listing those that are.
    """
    match = re.fullmatch(r"(?:([1-9][0-9]*)\*)?([a-z0-9]+):([0-9]+(?:x[0-9]+)*)", text)
    if not match:
        raise UserError(
            f"slice={text!r} must be generation:topology, for example v5e:4x4, or 2*v5e:16x16 for "
            "two slices."
        )
    count, generation, topology = int(match[1] or 1), match[2], match[3]
    if generation not in GENERATIONS:
        raise UserError(
            f"slice={text!r}: the generation {generation!r} is unknown. "
            f"Known: {', '.join(GENERATIONS)}."
        )
    known = GENERATIONS[generation].topologies
    if topology not in known:
        raise UserError(
            f"slice={text!r}: {generation} has no topology {topology!r}. Known: {', '.join(known)}."
        )
    return Slice(generation, topology, count)
