"""Reads and writes the files of run directories; every file is written atomically.

<workdir>/<run id>/config.json        the resolved config
                   environment.json   versions, device, git commit, command line
                   data.json          sha256 of every file that the task read, if it read any
                   metrics.jsonl      one row per logged step
                   items.npz          results of each item of a test set that all seeds share
                   result.json        written last: the run is finished when it exists
"""

import contextlib
import io
import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research.errors import UserError, naming

CONFIG, ENVIRONMENT, DATA, METRICS, ITEMS, RESULT = (
    "config.json",
    "environment.json",
    "data.json",
    "metrics.jsonl",
    "items.npz",
    "result.json",
)

POPULATION = "population.json"
"""File in a run directory with the path of the population's checkpoints and the member's index."""

COMPLETED, DIVERGED, FAILED = "completed", "diverged", "failed"
"""Values of result["status"]: trained to the end; the loss became NaN; an exception was raised."""

TIMINGS: Mapping[str, bool | None] = {
    "train_seconds": False,
    "compile_seconds": False,
    "steps_per_second": True,
    "tokens_per_second": True,
    "model_flops_utilization": True,
    "members": None,
}
"""{key of result["timing"]: whether higher is better}; None if neither direction is better."""
BUDGET: Mapping[str, bool | None] = {
    "parameters": False,
    "flops_per_token": False,
    "state_bytes": False,
    "tokens": False,
    "steps": False,
}
"""{key of result["budget"]: whether higher is better}. An ablation should hold these costs equal,
or declare them as ablated."""


def json_safe(value: Any) -> Any:
    """Returns `value` with NaN and infinities replaced by None, because JSON cannot hold them."""
    if isinstance(value, Mapping):
        return {str(k): json_safe(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a temporary file and renames it, so that no reader sees a partial file.

    Raises OSError with the name of the target if writing fails; the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path), open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            # Before the rename: a power failure must not leave an empty file under the final name.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON atomically."""
    write_text(path, json.dumps(json_safe(value), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Returns the parsed JSON file, or None if it does not exist.

    Raises UserError if it is not valid JSON, for example because it was truncated.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read: it was cut short or damaged ({error}). Delete it, and the "
            "command that wrote it writes it again."
        ) from None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays of numbers as a compressed .npz file atomically."""
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_bytes(path, content.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz file, {} if it does not exist.

    Raises UserError if it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        return {}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: it was cut short or damaged ({error}).") from None


def read_metrics(run: Path) -> list[dict]:
    """Returns the rows of metrics.jsonl in order, without a last line truncated by a kill.

    Raises UserError if any other line is not JSON.
    """
    path = run / METRICS
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate([*lines, last] if last else lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number <= len(lines):
                raise UserError(f"{path}, line {number}: damaged, this is no JSON.") from None
    return rows


def read_result(run: Path) -> dict | None:
    """Returns the run's result, or None while it is unfinished."""
    return read_json(run / RESULT)
