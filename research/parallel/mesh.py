"""Builds device meshes for layouts."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from research.errors import UserError
from research.parallel.layout import AXES, Layout


def make_mesh(layout: Layout, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of a layout, with all of `AXES`, over the first devices that it needs.

    The network between TPU slices is far slower than that within one, so several slices split only
    the members or the batch, whichever is divisible by their number.

    Args:
      layout: number of devices along each axis.
      devices: devices to use; None: all of this process and its peers. May be device descriptions
        without hardware, as in ahead-of-time compilation.

    Raises UserError if a process would be idle, or if the slices cannot be split evenly.
    """
    devices = list(jax.devices() if devices is None else devices)
    used = _evenly(devices, layout.devices)
    idle = {d.process_index for d in devices} - {d.process_index for d in used}
    if idle:
        raise UserError(
            f"{len(devices)} devices of {len(idle) + len({d.process_index for d in used})} "
            f"processes, but the layout ({layout}) uses {layout.devices}: {len(idle)} processes "
            "would have nothing to do. Raise task.batch_size or members, or start fewer processes."
        )
    types = (AxisType.Auto,) * len(AXES)
    slices = len({_slice(d) for d in used})
    if slices == 1:
        return jax.make_mesh(layout.shape, AXES, devices=used, axis_types=types)
    within, across = list(layout.shape), [1] * len(AXES)
    axis = next((i for i in (0, 1) if layout.shape[i] % slices == 0), None)
    if axis is None:
        raise UserError(
            f"{slices} slices divide neither parallel.member={layout.member} nor "
            f"parallel.data={layout.data}."
        )
    within[axis], across[axis] = within[axis] // slices, slices
    grid = mesh_utils.create_hybrid_device_mesh(within, across, used)
    return Mesh(grid, AXES, axis_types=types)


def _slice(device: Any) -> int:
    return getattr(device, "slice_index", None) or 0


def _evenly(devices: list[Any], number: int) -> list[Any]:
    """Returns the first `number` devices, taken equally from all slices if that divides evenly."""
    slices = sorted({_slice(d) for d in devices})
    if number % len(slices):
        return devices[:number]
    each = number // len(slices)
    return [d for i in slices for d in [d for d in devices if _slice(d) == i][:each]]
