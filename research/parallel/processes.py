"""Joins several processes into one computation and coordinates their files and messages.

Every process runs the same command. Arrays are global and each process computes its part; process 0
reads and writes all files other than checkpoints, and broadcasts the results to the others.
"""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from research.errors import UserError, told

ENVIRONMENT = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
"""Environment variables used for flags of `define_process_flags` that are not set."""


def start() -> None:
    """Joins the other processes if the flags or the environment describe any.

    Must be called before any device is used. Raises UserError for an incomplete description, or if
    the other processes cannot be reached.
    """
    options = flags.FLAGS
    given = {
        name: str(options[name].value) if options[name].present else os.environ.get(variable, "")
        for name, variable in ENVIRONMENT.items()
    }
    if not any(given.values()) and not options.distributed:
        return
    # JAX's preemption service would replace our SIGTERM handler; we agree on stopping ourselves.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**_described(given, options.distributed))
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the processes could not be joined: {reason}") from None


def _described(given: dict[str, str], autodetect: bool) -> dict[str, Any]:
    """Returns the arguments of `jax.distributed.initialize`.

    With `autodetect`, arguments that are not given are left for JAX to detect.
    """
    if autodetect and not all(given.values()):
        named = {"coordinator_address": given["coordinator"]} if given["coordinator"] else {}
        numbers = ("num_processes", "process_id")
        return named | {name: int(given[name]) for name in numbers if given[name].isdigit()}
    missing = [name for name, value in given.items() if not value]
    if missing:
        also = ", ".join(f"--{name} (or {ENVIRONMENT[name]})" for name in missing)
        raise UserError(f"several processes also need {also}.")
    host, _, port = given["coordinator"].rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator={given['coordinator']!r} must be HOST:PORT.")
    try:
        count, index = int(given["num_processes"]), int(given["process_id"])
    except ValueError:
        count, index = 0, 0
    if not 0 <= index < count:
        raise UserError(
            f"--process_id={given['process_id']} and --num_processes={given['num_processes']} "
            "must be 0 <= process_id < num_processes."
        )
    return {
        "coordinator_address": given["coordinator"],
        "num_processes": count,
        "process_id": index,
    }


class RaisedByAll(Exception):
    """Base class of exceptions that all processes raise at the same point, by agreement."""


def is_first() -> bool:
    """Returns whether this is process 0, which prints messages and writes files."""
    return jax.process_index() == 0


def on_first(action: Callable[[], Any]) -> Any:
    """Runs `action` on process 0 only and returns its result on every process.

    The result must be serializable as JSON. No process returns before the action is done. If it
    raises, every process raises: process 0 the original exception, the others a UserError if it was
    one, otherwise a RuntimeError.
    """
    if jax.process_count() == 1:
        return action()
    outcome: dict[str, Any] = {}
    raised: Exception | None = None
    if is_first():
        try:
            outcome = {"value": action()}
        except Exception as error:
            raised = error
            kind = "mistake" if isinstance(error, UserError) else "error"
            outcome = {kind: str(error)}
    text = json.dumps(outcome).encode()
    # Broadcasts need arrays of the same size on every process, so broadcast the size first.
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.frombuffer(text[:size].ljust(size), np.uint8)
    outcome = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))))
    if raised is not None:
        raise raised
    if "mistake" in outcome:
        raise UserError(outcome["mistake"])
    if "error" in outcome:
        raise RuntimeError(f"process 0 failed: {outcome['error']}")
    return outcome["value"]


def any_process(flag: bool) -> bool:
    """Returns whether the flag is set on any process; all processes must call it.

    With several processes, it waits for the computations dispatched before it.
    """
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.bool_(flag))))


@contextlib.contextmanager
def exit_with_peers() -> Generator[None]:
    """Exits at once on an unexpected exception if there are other processes.

    A normal exit would wait for the other processes, which wait for this one in a collective; with
    this process gone they fail too. A UserError is expected: all processes find the same mistakes.
    """
    try:
        yield
    except BaseException as error:
        foreseen = isinstance(error, UserError | SystemExit | RaisedByAll)
        if foreseen or jax.process_count() == 1:
            raise
        if isinstance(error, OSError):
            print(f"error: {told(error)}.", file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def fetch(x: jax.Array) -> np.ndarray:
    """Returns a global array as a full NumPy array, on every process."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
