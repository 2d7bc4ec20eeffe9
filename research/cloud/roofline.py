"""How long a step takes, at the rates that programs reach.

The time is that of the slowest of three things that go on at once: products, memory traffic, and
messages between the chips of a slice; messages between slices come on top. Each runs at a stated
part of its peak (Williams 2009, the roofline model, with the roof lowered). Published model FLOPs
utilizations of tuned programs: 46 % (PaLM on v4, Chowdhery 2022, table 3), 46 to 67 % on v5e and 64
to 71 % on v5p for 16B parameters and more, 45 % on v6e for 8B (MaxText's tables). Products, those
that remat repeats included, are taken to run at 55 %; the other two parts are guesses.
"""

from collections.abc import Iterable
from typing import NamedTuple

from research.cloud.collectives import Collective
from research.parallel.topology import Chip, Target

PRODUCTS, MEMORY, LINKS = 0.55, 0.8, 0.7
"""Parts of the peak that are reached."""


class Times(NamedTuple):
    """Seconds of a step.

    Attributes:
      products, memory, links, network: what each takes by itself.
    """

    products: float
    memory: float
    links: float
    network: float

    @property
    def step(self) -> float:
        """Of the whole."""
        return max(self.products, self.memory, self.links) + self.network

    @property
    def limit(self) -> str:
        """What the step waits for."""
        named = {**self._asdict()}
        return max(named, key=lambda name: named[name])


def estimate(
    target: Target, devices: int, flops: float, moved: float, collectives: Iterable[Collective]
) -> Times | None:
    """Returns the seconds of a step on a slice; None on devices of which no figures are known.

    Args:
      target: the slice.
      devices: how many of its devices the layout uses.
      flops: of one step, on all devices.
      moved: bytes that one device moves to and from its memory in a step.
      collectives: of a step.
    """
    chip = target.chip
    if chip is None or target.slice is None:
        return None
    collectives = list(collectives)
    dimensions = [int(n) for n in target.slice.topology.split("x")]
    within = target.slice.chips * chip.devices
    links = network = 0.0
    for c in collectives:
        slices = c.group // within
        if slices > 1:
            # Within a slice first: each chip then sends its part of the array to its peers.
            twice = 2 if c.kind == "all-reduce" else 1
            network += c.count * twice * c.bytes / within * (slices - 1) / slices / chip.network
        links += c.moved / bandwidth(chip, dimensions, min(c.group, within))
    return Times(
        products=flops / (devices / chip.devices * chip.flops) / PRODUCTS,
        memory=moved * chip.devices / chip.bandwidth / MEMORY,
        links=links / LINKS,
        network=network / LINKS,
    )


def bandwidth(chip: Chip, dimensions: Iterable[int], group: int) -> float:
    """Returns the bytes/s that one device can send in a collective over `group` neighbours.

    A group takes as few dimensions of the torus as it fits in. A ring is used in both directions; a
    line, which is what a dimension that does not wrap has, half as well.
    """
    total, reached = 0.0, 1
    for size in sorted(dimensions, reverse=True):
        if size == 1 or (reached >= group and total):
            continue
        reached *= size
        total += chip.link * (2 if size % chip.wraps == 0 else 1)
    return (total or chip.link) / chip.devices
