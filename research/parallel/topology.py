"""TPU slices for planning: the specifications of their chips, and descriptions of their devices.

Specifications are from cloud.google.com/tpu/docs (pages v4, v5e, v5p, v6e, tpu7x; read
2026-11-22). The memory available to a program is the figure that the compiler of libtpu 0.0.42.1
reports when a program does not fit.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from research.errors import UserError
from research.parallel.slices import Slice, parse_slice

GIB = 2**30
LOCAL = "local"
NO_LIBTPU = (
    'TPU compilation needs libtpu: pip install "jax[tpu]=={version}" (no TPU is needed), or add '
    "--estimate to plan without compiling."
)


@dataclass(frozen=True)
class Chip:
    """A generation of TPU chips.

    Attributes:
      devices: JAX devices per chip.
      memory: bytes available to a program on one device.
      flops: peak FLOP/s of a chip in bfloat16.
      options: extra options for the topology description of its devices.
    """

    devices: int
    memory: float
    flops: float
    options: tuple[tuple[str, Any], ...] = ()


CHIPS = {
    # Kernels need both cores of a v4 chip as one device ("megacore"), the default on hardware.
    "v4": Chip(1, 30.75 * GIB, 275e12, (("chip_config_name", "megacore"),)),
    "v5e": Chip(1, 15.75 * GIB, 197e12),
    "v5p": Chip(1, 95.74 * GIB, 459e12),
    "v6e": Chip(1, 31.25 * GIB, 918e12),
    "tpu7x": Chip(2, 94.75 * GIB, 2307e12),
}


@dataclass(frozen=True)
class Target:
    """Target of a plan: a TPU slice, or the local devices (slice None).

    Attributes:
      name: the name as given by the user.
      slice: the TPU slice, or None.
      devices: number of JAX devices.
    """

    name: str
    slice: Slice | None
    devices: int

    @property
    def chip(self) -> Chip | None:
        """Specifications of its chips; None for local devices, where they are unknown."""
        return CHIPS[self.slice.generation] if self.slice else None

    @property
    def chips(self) -> int:
        """Number of chips of all slices; each local device counts as a chip."""
        return self.slice.chips * self.slice.count if self.slice else self.devices

    @property
    def memory(self) -> float:
        """Bytes available to a program on one device; infinite if unknown, as on CPUs."""
        if self.chip:
            return self.chip.memory
        known = jax.local_devices()[0].memory_stats() or {}
        return known.get("bytes_limit", math.inf)

    @property
    def platform(self) -> str:
        """The platform of its devices: "tpu", "gpu" or "cpu"."""
        return "tpu" if self.slice else jax.local_devices()[0].platform


def parse_target(text: str) -> Target:
    """Parses a target such as "v5e:4x4", "2*v5e:16x16" or "local".

    Raises UserError for a slice that does not exist.
    """
    if text == LOCAL:
        return Target(text, None, jax.device_count())
    found = parse_slice(text)
    chips = found.chips * found.count
    return Target(text, found, chips * CHIPS[found.generation].devices)


def parse_targets(text: str, suggested: str) -> list[Target]:
    """Parses a comma-separated list of targets; if `text` is empty, parses `suggested` instead.

    Raises UserError if both are empty.
    """
    names = [name.strip() for name in (text or suggested).split(",") if name.strip()]
    if not names:
        raise UserError(
            "--topology is missing and the config's parallel.slice is empty; for example "
            "--topology=v5e:4x4, --topology=v5e:4x4,v6e:2x4 or --topology=local."
        )
    return [parse_target(name) for name in names]


def target_devices(target: Target) -> Sequence[Any]:
    """Returns the devices of a target; for a slice, descriptions to compile for but not to run on.

    Raises UserError if libtpu is missing or does not know the slice.
    """
    if target.slice is None:
        return jax.devices()
    from jax.experimental import topologies

    # Keep libtpu from querying the metadata of a TPU VM, and let several processes load it.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", target.slice.accelerator_type)
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    options = dict(CHIPS[target.slice.generation].options)
    if target.slice.count > 1:
        options["num_slices"] = target.slice.count
    if target.slice.chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    name = f"{target.slice.generation}:{target.slice.topology}"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:
        if _has_libtpu():
            raise UserError(
                f"--topology={target.name!r}: libtpu has no such slice: {error}."
            ) from None
        raise UserError(NO_LIBTPU.format(version=jax.__version__)) from None
    return found.devices


def _has_libtpu() -> bool:
    import importlib.util

    return importlib.util.find_spec("libtpu") is not None
