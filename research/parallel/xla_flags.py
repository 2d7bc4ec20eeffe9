"""Named profiles of compiler flags: `parallel.xla_flags`.

The compiler reads its flags once, from an environment variable, when JAX first uses a device. A
command therefore applies the profile of its config before that. A profile changes how a program is
scheduled over devices, and results only in the order of sums, as a layout does: it is no part of a
run's id. What was in effect is in the run's environment.json.
"""

import os
from typing import NamedTuple

import jax

from research.errors import UserError
from research.parallel.processes import is_first

VARIABLES = {"tpu": "LIBTPU_INIT_ARGS", "gpu": "XLA_FLAGS"}
"""Environment variable that the compiler of a platform reads; the TPU's is part of libtpu."""


class Profile(NamedTuple):
    """Flags for the compiler of one platform."""

    platform: str
    flags: tuple[str, ...]


COLLECTIVE_MATMUL = "--xla_jf_spmd_threshold_for_windowed_einsum_mib"
PROFILES = {
    # Sizes above which a product with a gathered matrix is computed piece by piece, while the next
    # piece is on its way (Wang et al. 2023). Gathered whole, a matrix makes fewer, larger products:
    # pieces of less than 128 rows leave a part of the matrix unit idle.
    "collective_matmul": Profile("tpu", (f"{COLLECTIVE_MATMUL}=0",)),
    "no_collective_matmul": Profile("tpu", (f"{COLLECTIVE_MATMUL}=1000000",)),
    # MaxText, benchmarks/xla_flags_library.py: CF_FOR_ALL_REDUCE_AND_ALL_GATHER.
    "async_collectives": Profile(
        "tpu",
        (
            "--xla_enable_async_all_reduce=true",
            "--xla_enable_async_all_gather=true",
            "--xla_tpu_overlap_compute_collective_tc=true",
            "--xla_tpu_enable_async_collective_fusion=true",
            "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
            "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
        ),
    ),
    # The same, DENSE_VMEM_LIMIT: 96 MiB of fast memory for a fusion.
    "large_vmem": Profile("tpu", ("--xla_tpu_scoped_vmem_limit_kib=98304",)),
    # JAX's GPU performance tips.
    "gpu_latency_hiding": Profile("gpu", ("--xla_gpu_enable_latency_hiding_scheduler=true",)),
}
"""Profiles by name; "" stands for the compiler's own defaults."""


def use_profile(name: str) -> None:
    """Adds the flags of a profile to the environment; flags that are set there already win.

    Must be called before JAX uses a device. Raises UserError for an unknown name.
    """
    if not name:
        return
    if name not in PROFILES:
        raise UserError(f"parallel.xla_flags={name!r} must be one of '', {', '.join(PROFILES)}.")
    profile = PROFILES[name]
    variable = VARIABLES[profile.platform]
    given = os.environ.get(variable, "").split()
    added = [flag for flag in profile.flags if flag not in given]
    os.environ[variable] = " ".join([*added, *given])


def check_profile_in_use(name: str) -> None:
    """Raises UserError if this process was started without the flags of a profile."""
    if not name:
        return
    profile = PROFILES[name]
    variable = VARIABLES[profile.platform]
    if not set(profile.flags) <= set(os.environ.get(variable, "").split()):
        raise UserError(
            f"parallel.xla_flags={name!r} is for a whole process, from its start: set it in the "
            f"config, in common, or by --parallel, not in an arm; or start Python with "
            f"{variable}='{' '.join(profile.flags)}'."
        )


def say_if_useless(name: str) -> None:
    """Prints a line, on process 0, if a profile is for another platform than the devices here.

    Training goes on: a config that is meant for a slice can be tried on a laptop.
    """
    here = jax.local_devices()[0].platform
    if name and PROFILES[name].platform != here and is_first():
        wanted = PROFILES[name].platform.upper()
        print(f"parallel.xla_flags={name!r} is for a {wanted} and does nothing on this {here}.")


def flags_in_use() -> dict[str, str]:
    """Returns {environment variable: compiler flags}, for those that are set."""
    return {name: os.environ[name] for name in VARIABLES.values() if os.environ.get(name)}
