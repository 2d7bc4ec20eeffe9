"""Model FLOPs utilization (MFU): the fraction of the devices' peak that a model achieves.

Defined as in Chowdhery et al. 2022 (PaLM), appendix B: the FLOPs that a model needs, without
recomputation, over the peak of the devices in bfloat16. Arithmetic in float32 cannot reach that
peak, so its MFU is low.
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
"""{device_kind of JAX: TPU generation}."""

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
"""{prefix of device_kind: dense bfloat16 FLOP/s} from NVIDIA's data sheets; first match wins."""


def peak_flops(kind: str) -> float | None:
    """Returns the peak FLOP/s of one JAX device in bfloat16, or None if it is not known.

    Args:
      kind: `device_kind` of the device.
    """
    if kind in TPU_KINDS:
        chip = CHIPS[TPU_KINDS[kind]]
        return chip.flops / chip.devices
    return next((peak for start, peak in GPU_PEAKS.items() if kind.startswith(start)), None)


def step_utilization(flops: float, devices: int) -> float | None:
    """Returns the utilization at one step per second, or None if the peak is not known.

    Args:
      flops: FLOPs of one training step of all members.
      devices: number of devices that share the step.
    """
    peak = peak_flops(jax.devices()[0].device_kind)
    return None if peak is None else flops / (peak * devices)
