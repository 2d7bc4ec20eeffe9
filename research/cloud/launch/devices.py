"""Assigns this machine's devices to processes. Does not import jax, which would claim them all."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from research.errors import UserError

CHIP_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
"""Chip layout of one process for libtpu, by number of chips; from JAX's multi-process tests."""
FIRST_PORT = 8476
SHARED_MEMORY = 0.9
"""Fraction of a GPU's memory that all processes sharing it may use together."""


@dataclass(frozen=True)
class Devices:
    """The devices of this machine.

    Attributes:
      kind: "gpu", "tpu" or "cpu".
      ids: ids of the accelerators, as in CUDA_VISIBLE_DEVICES or TPU_VISIBLE_CHIPS.
      cores: CPU cores that this process may use.
    """

    kind: str
    ids: tuple[str, ...]
    cores: tuple[int, ...]


@dataclass(frozen=True)
class Binding:
    """Devices of one process: environment variables, and CPU cores (() for all cores)."""

    label: str
    environment: Mapping[str, str]
    cores: tuple[int, ...] = ()


def local_devices(environment: Mapping[str, str] = os.environ) -> Devices:
    """Returns the devices of this machine that the environment variables make visible."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    wanted = environment.get("JAX_PLATFORMS", "")
    if wanted.split(",")[0] not in ("cpu",):
        chips = tpu_chips(environment)
        if chips:
            return Devices("tpu", chips, cores)
        gpus = cuda_gpus(environment)
        if gpus:
            return Devices("gpu", gpus, cores)
    return Devices("cpu", (), cores)


def tpu_chips(environment: Mapping[str, str], root: Path = Path("/dev")) -> tuple[str, ...]:
    """Returns the ids of this host's TPU chips: /dev/accel* up to v4, then /dev/vfio/*."""
    chosen = environment.get("TPU_VISIBLE_CHIPS")
    if chosen:
        return tuple(chosen.split(","))
    found = [p for p in root.glob("accel*") if re.fullmatch(r"accel[0-9]+", p.name)]
    if not found and _is_tpu_vm():
        found = [p for p in root.glob("vfio/*") if p.name.isdigit()]
    return tuple(str(i) for i in range(len(found)))


def _is_tpu_vm() -> bool:
    # VFIO also passes through other devices, so look for Google's PCI vendor id.
    google = Path("/sys/bus/pci/devices").glob("*/vendor")
    return any(p.read_text().strip() == "0x1ae0" for p in google)


def cuda_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the ids of the NVIDIA GPUs that CUDA_VISIBLE_DEVICES makes visible; default: all."""
    if not shutil.which("nvidia-smi"):
        return ()
    if "CUDA_VISIBLE_DEVICES" in environment:
        return tuple(i for i in environment["CUDA_VISIBLE_DEVICES"].split(",") if i.strip())
    query = ("nvidia-smi", "--query-gpu=index", "--format=csv,noheader")
    done = subprocess.run(query, capture_output=True, text=True)
    return tuple(done.stdout.split()) if done.returncode == 0 else ()


def assign_devices(devices: Devices, shards: int) -> list[Binding]:
    """Returns the devices of each of `shards` processes, in equal shares. Raises UserError.

    GPUs and CPU cores are divided equally. If there are more processes than GPUs, processes share a
    GPU and divide its memory; if there are more than cores, they share cores. TPU chips are divided
    equally and never shared.
    """
    if shards == 1:
        return [Binding("all devices", {})]
    if devices.kind == "tpu":
        return _deal_chips(devices.ids, shards)
    if devices.kind == "gpu":
        return _deal_gpus(devices.ids, shards)
    return [
        Binding(f"cores {','.join(map(str, part))}", {}, part)
        for part in _parts(devices.cores, shards)
    ]


def _parts(items: Sequence, shards: int) -> list[tuple]:
    """Splits `items` into equal parts; if there are too few, each part is one item, in turn."""
    each = len(items) // shards
    if each == 0:
        return [(items[i % len(items)],) for i in range(shards)]
    return [tuple(items[i * each : (i + 1) * each]) for i in range(shards)]


def _deal_gpus(ids: Sequence[str], shards: int) -> list[Binding]:
    sharing = -(-shards // len(ids))
    memory = (
        {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{SHARED_MEMORY / sharing:.3f}"} if sharing > 1 else {}
    )
    return [
        Binding(f"GPU {','.join(part)}", {"CUDA_VISIBLE_DEVICES": ",".join(part), **memory})
        for part in _parts(ids, shards)
    ]


def _deal_chips(ids: Sequence[str], shards: int) -> list[Binding]:
    each = len(ids) // shards
    if each not in CHIP_BOUNDS or each * shards > len(ids):
        fitting = [len(ids) // n for n in CHIP_BOUNDS if n <= len(ids)]
        raise UserError(
            f"--shards={shards}: a TPU chip belongs to one process, and {len(ids)} chips can be "
            f"cut into {', '.join(map(str, sorted(set(fitting))))}."
        )
    return [
        Binding(
            f"TPU chip {','.join(part)}",
            {
                "TPU_VISIBLE_CHIPS": ",".join(part),
                "TPU_CHIPS_PER_PROCESS_BOUNDS": CHIP_BOUNDS[each],
                "TPU_PROCESS_BOUNDS": "1,1,1",
                "TPU_PROCESS_ADDRESSES": f"localhost:{FIRST_PORT + i}",
                "TPU_PROCESS_PORT": str(FIRST_PORT + i),
                "CLOUD_TPU_TASK_ID": "0",
                "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            },
        )
        for i, part in enumerate(_parts(ids, shards))
    ]
