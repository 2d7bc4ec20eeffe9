"""Parameters of a run in one file of safetensors, by our names: runs that were imported have it.

Arrays are written and read one by one, so that the file may be nearly as large as the memory.
"""

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from research.errors import UserError, naming

PARAMETERS = "parameters.safetensors"
NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""{dtype: its name in the format}, of the numbers that parameters can be."""


class Described(NamedTuple):
    """Shape and dtype ("float32"...) of an array that is not there yet."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Size of the array in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * (4 if self.dtype == "float32" else 2)


def write_parameters(
    path: Path, described: Mapping[str, Described], make: Callable[[str], np.ndarray]
) -> None:
    """Writes a file of safetensors, of which only one array at a time is in memory.

    Format: https://github.com/huggingface/safetensors#format.

    Args:
      path: the file; it appears whole, or not at all.
      described: {name: shape and dtype}, in the order in which they are written.
      make: returns the array of a name.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, one in described.items():
        places = [start, start + one.bytes]
        header[name] = {
            "dtype": NAMES[one.dtype],
            "shape": list(one.shape),
            "data_offsets": places,
        }
        start = places[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path), open(unfinished, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name, one in described.items():
                array = make(name)
                if array.shape != one.shape or array.dtype.name != one.dtype:
                    raise ValueError(f"{name} is {array.dtype} {array.shape}, not {one}")
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_parameters(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, array) of a file of safetensors, one by one.

    Raises UserError if it is damaged.
    """
    try:
        with safe_open(path, "numpy") as file:
            names = list(file.keys())
        for name in names:
            # Opened anew, because the pages of a mapped file stay in memory until it is closed.
            with safe_open(path, "numpy") as file:
                array = file.get_tensor(name)
            yield name, array
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}.") from None
