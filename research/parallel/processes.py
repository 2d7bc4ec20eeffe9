"""Several processes that train one thing: how they find each other, and who speaks.

Every process runs the same command. Arrays are global and each process computes its part; process 0
reads and writes files other than checkpoints, and the others are told what it found.
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
"""Environment variables that stand in for the flags of `define_process_flags`."""


def start() -> None:
    """Joins the other processes that the flags or the environment speak of, if they do.

    Has to come before any device is touched. Raises UserError for a description with a part
    missing, or when the others cannot be found.
    """
    options = flags.FLAGS
    given = {
        name: str(options[name].value) if options[name].present else os.environ.get(variable, "")
        for name, variable in ENVIRONMENT.items()
    }
    if not any(given.values()) and not options.distributed:
        return
    # Its handler would take SIGTERM from ours; processes agree on stopping by themselves.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**_described(given, options.distributed))
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the processes could not be joined: {reason}") from None


def _described(given: dict[str, str], autodetect: bool) -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize`; what is not given is left to be detected."""
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


class Agreed(Exception):
    """What every process raises at the same point, because they agreed on it."""


def is_first() -> bool:
    """Whether this process is the one that speaks and writes."""
    return jax.process_index() == 0


def on_first(action: Callable[[], Any]) -> Any:
    """Returns on every process what `action` returned on process 0, where alone it runs.

    The value must be JSON. Nobody returns before the action is done. What it raises is raised on
    every process: as it was there, a UserError also elsewhere, anything else as a RuntimeError.
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
    # Every process has to bring an array of the same size.
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
    """Returns on every process whether the flag is set on any of them.

    With several processes it waits for what was dispatched before.
    """
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.bool_(flag))))


@contextlib.contextmanager
def together() -> Generator[None]:
    """Ends this process at once when something unforeseen is raised and there are others.

    An ordinary exit would wait for them, and they wait for it in a collective; without it they
    fail too. A UserError is no such thing: all processes find the same mistakes.
    """
    try:
        yield
    except BaseException as error:
        foreseen = isinstance(error, UserError | SystemExit | Agreed)
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
    """Returns a global array as a host array, on every process."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
