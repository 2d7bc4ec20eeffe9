"""Which part of what a device could compute a model makes use of.

Model FLOPs utilization (Chowdhery et al. 2022, PaLM, appendix B): the FLOPs that a model needs,
without those of recomputation, over the peak of the devices in bfloat16. Where arithmetic is wider
that peak is not within reach, and the figure says so.
"""

import jax

from research.parallel.topology import CHIPS

TPU_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}
"""device_kind -> generation."""

GPU_PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L4": 121e12,
}
"""Start of device_kind -> FLOP/s in bfloat16, dense, from NVIDIA's data sheets; first match."""


def peak_flops(kind: str) -> float | None:
    """Returns the peak FLOP/s of one JAX device in bfloat16, or None where it is not known.

    Args:
      kind: `device_kind` of the device.
    """
    if kind in TPU_KINDS:
        chip = CHIPS[TPU_KINDS[kind]]
        return chip.flops / chip.devices
    return next((peak for start, peak in GPU_PEAKS.items() if kind.startswith(start)), None)


def utilization_of_a_step(flops: float, devices: int) -> float | None:
    """Returns the utilization at one step per second, or None where the peak is not known.

    Args:
      flops: of one step of all members.
      devices: that share it.
    """
    peak = peak_flops(jax.devices()[0].device_kind)
    return None if peak is None else flops / (peak * devices)
