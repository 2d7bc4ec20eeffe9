"""What the computation will run on, as far as can be told while tracing."""

import jax


def platform() -> str:
    """ "cpu", "gpu" or "tpu": that of `jax.default_device` if it is set, else JAX's default."""
    device = jax.config.jax_default_device  # ty: ignore[missing-attribute]
    if device is None:
        return jax.default_backend()
    name = device if isinstance(device, str) else device.platform
    return "gpu" if name in ("cuda", "rocm") else name
