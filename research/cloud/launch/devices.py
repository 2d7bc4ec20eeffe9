"""Dealing the devices of this machine out to processes. Imports no jax: it would take them all."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from research.errors import UserError

CHIP_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
"""How the chips of a process lie on the board, as JAX's own multi-process tests tell libtpu."""
FIRST_PORT = 8476
SHARED_MEMORY = 0.9
"""Fraction of a GPU's memory that all processes on it take together."""


@dataclass(frozen=True)
class Devices:
    """What this machine computes with.

    Attributes:
      kind: "gpu", "tpu" or "cpu".
      ids: of the accelerators, as CUDA_VISIBLE_DEVICES or TPU_VISIBLE_CHIPS name them.
      cores: CPU cores that this process may use.
    """

    kind: str
    ids: tuple[str, ...]
    cores: tuple[int, ...]


@dataclass(frozen=True)
class Binding:
    """What one process gets: variables of its environment, and CPU cores, () for all."""

    label: str
    environment: Mapping[str, str]
    cores: tuple[int, ...] = ()


def local_devices(environment: Mapping[str, str] = os.environ) -> Devices:
    """Returns the devices of this machine that the environment leaves to us."""
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
    """Returns the TPU chips of this host: /dev/accel* up to v4, /dev/vfio/* after."""
    chosen = environment.get("TPU_VISIBLE_CHIPS")
    if chosen:
        return tuple(chosen.split(","))
    found = [p for p in root.glob("accel*") if re.fullmatch(r"accel[0-9]+", p.name)]
    if not found and _is_tpu_vm():
        found = [p for p in root.glob("vfio/*") if p.name.isdigit()]
    return tuple(str(i) for i in range(len(found)))


def _is_tpu_vm() -> bool:
    # Other devices than TPUs are handed through VFIO too.
    google = Path("/sys/bus/pci/devices").glob("*/vendor")
    return any(p.read_text().strip() == "0x1ae0" for p in google)


def cuda_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the NVIDIA GPUs, or those of them that CUDA_VISIBLE_DEVICES leaves."""
    if not shutil.which("nvidia-smi"):
        return ()
    if "CUDA_VISIBLE_DEVICES" in environment:
        return tuple(i for i in environment["CUDA_VISIBLE_DEVICES"].split(",") if i.strip())
    query = ("nvidia-smi", "--query-gpu=index", "--format=csv,noheader")
    done = subprocess.run(query, capture_output=True, text=True)
    return tuple(done.stdout.split()) if done.returncode == 0 else ()


def deal(devices: Devices, shards: int) -> list[Binding]:
    """Returns what each of `shards` processes gets, all alike. Raises UserError.

    GPUs: an equal number each; with more processes than GPUs they share, each with its part of
    the memory. TPU chips: an equal number each, never shared. CPU: an equal number of cores each;
    with more processes than cores they share.
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
    """Returns equal parts of `items`; one item each, in turn, where there are too few."""
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
