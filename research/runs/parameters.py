"""Parameters of a run in one file of safetensors, by our names: runs that were imported have it.

Arrays are written and read one by one, or in parts, so that the file may be nearly as large as the
memory, and larger than that of one device.
"""

import contextlib
import json
import os
import struct
from collections.abc import Callable, Generator, Iterator, Mapping
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
    with _reading(path):
        with safe_open(path, "numpy") as file:
            names = list(file.keys())
        for name in names:
            # Opened anew, because the pages of a mapped file stay in memory until it is closed.
            with safe_open(path, "numpy") as file:
                array = file.get_tensor(name)
            yield name, array


class Stored:
    """An array of a file that is read in the parts that are asked for, as float32.

    It is no array, so that nothing reads it whole unless asked; `to_global_arrays` puts on each
    device the part that lies there.

    Attributes:
      shape, dtype: as of an array.
    """

    dtype = np.dtype("float32")

    def __init__(self, path: Path, name: str, shape: tuple[int, ...]):
        self._path, self._name, self.shape = path, name, shape

    def __getitem__(self, index: Any) -> np.ndarray:
        """Returns a part: `index` is an int, a slice, a tuple of them, or `...`."""
        index = index if isinstance(index, tuple) else (index,)
        asked = () if index == (...,) else index
        # Slices of a file may not end after it, unlike those of arrays.
        within = tuple(
            slice(*one.indices(size)) if isinstance(one, slice) else one
            for one, size in zip(asked, self.shape, strict=False)
        )
        with _reading(self._path), safe_open(self._path, "numpy") as file:
            if within:
                part = file.get_slice(self._name)[within]
            else:
                part = file.get_tensor(self._name)
        return np.asarray(part).astype(np.float32, copy=False)


def stored_parameters(path: Path) -> dict[str, Stored]:
    """Returns {name: array} of a file of safetensors, of which none is read yet.

    Raises UserError if it is damaged.
    """
    with _reading(path), safe_open(path, "numpy") as file:
        names = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    return {name: Stored(path, name, shape) for name, shape in names.items()}


@contextlib.contextmanager
def _reading(path: Path) -> Generator[None]:
    try:
        yield
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}.") from None
