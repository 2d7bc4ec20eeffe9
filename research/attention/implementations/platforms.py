"""The platform that the computation will run on, as far as it is known while tracing."""

import jax


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu": that of `jax.default_device` if set, else JAX's default."""
    device = jax.config.jax_default_device  # ty: ignore[missing-attribute]
    if device is None:
        return jax.default_backend()
    name = device if isinstance(device, str) else device.platform
    return "gpu" if name in ("cuda", "rocm") else name
