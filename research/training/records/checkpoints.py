"""Saves and restores checkpoints of a population with Orbax.

A checkpoint has two items: "training" (everything needed to resume) and "best" (each member's best
parameters), so that inference does not load the optimizer state. Every checkpoint contains the best
parameters so far, so it is enough to keep the latest few.
"""

import contextlib
import errno
import gc
import os
import re
import sys
from collections.abc import Generator
from logging import LogRecord, getLogger
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from research.errors import UserError
from research.parallel.processes import any_process, on_first
from research.runs.bucket import whereabouts
from research.training.step import Best, State

DIRECTORY = "checkpoints"
DAMAGED = "damaged"
"""Suffix of a checkpoint that was set aside; Orbax ignores directories not named by a number."""

COMMIT = "commit_success.txt"
"""File of a checkpoint that Orbax writes last."""

MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
"""Error numbers that mean missing checkpoint files; any others mean that the disk failed."""


COMMITTED = ocp.options.AtomicityOptions(ocp.options.AtomicityMode.COMMIT_FILE)
"""A checkpoint is whole once it has its commit file, which is written last. Orbax's other way is to
rename the directory, which mounted buckets (gcsfuse) refuse, or do by copying every file."""


class DamagedError(Exception):
    """Some files of a checkpoint are missing or cannot be read."""


class Checkpoints:
    """Saves checkpoints in the background, and restores them.

    As a context manager it waits for pending saves at exit. Errors in the background are raised by
    the next call or at exit; disk errors as OSError with the checkpoint's path.
    """

    def __init__(self, directory: Path, keep: int):
        self._directory = whereabouts(directory.absolute())
        self._saving: int | None = None
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_handlers=_handlers(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(keep),
                enable_async_checkpointing=True,
                create=True,
                # Remnants of an interrupted or failed save take space that the next one needs.
                cleanup_tmp_directories=True,
                atomicity_options=COMMITTED,
            ),
        )
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Checkpoints":
        self._open.enter_context(_told_once())
        return self

    def __exit__(self, raised: object, *_: object) -> None:
        failed = raised is not None
        with self._open:
            try:
                self._settle()
            except BaseException:
                failed = True
                raise
            finally:
                # The saves that a disk refused are known by now; a later one may fail here again.
                with contextlib.suppress(OSError), _naming_disk(Path(self._manager.directory)):
                    self._manager.close()
                del self._manager
                # Objects of a failed save log errors when they are garbage collected: collect them
                # now, while these messages are still suppressed.
                if failed:
                    gc.collect()

    def save(self, step: int, state: State) -> None:
        """Starts a save and returns once the values are copied, before they are written."""
        self._settle()
        items = ocp.args.Composite(
            training=ocp.args.StandardSave(_training(state)),
            best=ocp.args.StandardSave(state.best._asdict()),
        )
        self._saving = step
        with _naming_disk(self._directory / str(step)):
            self._manager.save(step, args=items)

    def check(self) -> None:
        """Raises the error of a save that has failed in the background; does not wait."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self._settle()

    def _settle(self) -> None:
        """Waits for the pending save, if any, and raises its error."""
        if self._saving is None:
            return
        path, self._saving = self._directory / str(self._saving), None
        with _naming_disk(path):
            self._manager.wait_until_finished()
        if not path.is_dir():
            raise OSError(errno.EIO, "the checkpoint was not written", str(path))

    def restore(self, abstract: State) -> tuple[int, State] | None:
        """Restores the newest readable checkpoint as (step, state); None if nothing was saved.

        A checkpoint with truncated, damaged or missing files is renamed, not deleted, and the
        previous one is tried.

        Args:
          abstract: state with shapes and shardings.

        Raises UserError if the checkpoint is of another model, or none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            failure = self._attempt(step, abstract)
            if isinstance(failure, State):
                return step, failure
            path, why = self._directory / str(step), str(failure)
            on_first(lambda path=path, why=why: _set_aside(path, why))
            # Otherwise Orbax would consider the step saved when training reaches it again.
            self._manager.reload()
        if on_first(lambda: any(self._directory.glob(f"*.{DAMAGED}*"))):
            raise UserError(
                f"none of the checkpoints in {self._directory} can be read. To start over, choose "
                "another --workdir or delete that directory."
            )
        return None

    def _attempt(self, step: int, abstract: State) -> State | DamagedError:
        """Returns the state at a step, or a DamagedError on all processes if any cannot read it."""
        found: State | DamagedError
        try:
            found = self._read(step, abstract)
        except DamagedError as error:
            found = error
        if any_process(isinstance(found, DamagedError)) and isinstance(found, State):
            return DamagedError("another process could not read it")
        return found

    def _read(self, step: int, abstract: State) -> State:
        path, training, best = self._directory / str(step), _training(abstract), abstract.best
        items = ocp.args.Composite(
            training=ocp.args.StandardRestore(training),
            best=ocp.args.StandardRestore(best._asdict()),
        )
        with _finding_damage():
            try:
                restored = self._manager.restore(step, args=items)
            except (ValueError, KeyError):
                if different := _differences(self._manager, step, training, best._asdict()):
                    raise UserError(
                        f"the checkpoint {path} is of another model: {different}"
                    ) from None
                raise
        return State(**restored["training"], best=Best(**restored["best"]))


def has_saved(directory: Path) -> bool:
    """Returns whether there is a whole checkpoint in a directory, damaged or not."""
    where = whereabouts(directory.absolute())
    return where.is_dir() and any((one / COMMIT).exists() for one in where.iterdir())


def _training(state: State) -> dict[str, Any]:
    return {k: v for k, v in state._asdict().items() if k != "best"}


def _handlers() -> dict[str, ocp.StandardCheckpointHandler]:
    """Returns a handler per item; Orbax needs them to report shapes before reading an item."""
    return {item: ocp.StandardCheckpointHandler() for item in ("best", "training")}


def _differences(manager: ocp.CheckpointManager, step: int, training: Any, best: Any) -> str:
    """Describes how the arrays of a checkpoint differ from the expected ones; "" if they do not.

    Also returns "" if the checkpoint has no readable metadata: then it is damaged.
    """
    with contextlib.suppress(Exception):  # whatever a damaged file makes Orbax raise
        there = manager.item_metadata(step)
        for item, wanted in (("training", training), ("best", best)):
            have = {"/".join(k): v.shape for k, v in ocp.tree.to_flat_dict(there[item]).items()}
            want = {"/".join(k): v.shape for k, v in ocp.tree.to_flat_dict(wanted).items()}
            # Without metadata Orbax invents names; real states always share some, so require that.
            known = have.keys() & want.keys()
            for name in sorted(have.keys() | want.keys()) if known else ():
                a, b = have.get(name, "absent"), want.get(name, "absent")
                if a != b:
                    return f"{item}/{name} is {a} there, {b} here."
    return ""


def _set_aside(path: Any, why: str) -> None:
    """Renames a damaged checkpoint so that it no longer counts as a step, and prints a message.

    Where directories cannot be renamed, as in buckets, a file has the name that it would have got,
    and the checkpoint loses its commit file.
    """
    number, aside = 0, path.with_name(f"{path.name}.{DAMAGED}")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.{DAMAGED}.{number}")
    try:
        if not isinstance(path, Path):
            raise OSError(errno.ENOTSUP, "a bucket would copy every file")
        path.rename(aside)
    except OSError as error:
        if error.errno in MISSING:
            raise
        aside.write_text(f"{why}\n")
        (path / COMMIT).unlink(missing_ok=True)
        print(f"{path} is damaged ({why}): it no longer counts.", file=sys.stderr)
    else:
        print(f"{path} is damaged ({why}): set aside as {aside.name}.", file=sys.stderr)


def load_best(directory: Path, member: int) -> tuple[Any, dict[str, float]]:
    """Returns the best parameters of one member, and their {"value", "step"}.

    They come from the newest readable checkpoint.

    Args:
      directory: the checkpoints directory.
      member: index on the population axis.

    Raises UserError if there is no checkpoint, or none can be read.
    """
    # Paths in a bucket are taken as they are, ".." included.
    directory = whereabouts(Path(os.path.normpath(directory.absolute())))
    if not directory.is_dir():
        raise UserError(f"there are no checkpoints in {directory}; the run has not saved yet.")
    with (
        _told_once(),
        ocp.CheckpointManager(
            directory,
            item_handlers=_handlers(),
            options=ocp.CheckpointManagerOptions(atomicity_options=COMMITTED),
        ) as manager,
    ):
        steps = sorted(manager.all_steps(), reverse=True)
        for step in steps:
            try:
                best = _best_at(directory / str(step) / "best")
            except DamagedError as error:
                print(f"{directory / str(step)} is damaged ({error}).", file=sys.stderr)
                continue
            # Index on the host: on the device, each shape would compile a program.
            best = jax.device_put(jax.tree.map(lambda leaf: np.asarray(leaf)[member], best))
            return best["params"], {"value": float(best["value"]), "step": int(best["step"])}
    if steps or any(directory.glob(f"*.{DAMAGED}*")):
        raise UserError(f"none of the checkpoints in {directory} can be read; train the run again.")
    raise UserError(f"there are no checkpoints in {directory}; the run has not saved yet.")


def _best_at(path: Any) -> Any:
    """Returns the item "best" of a checkpoint, even if another item is damaged."""
    # Restore onto one device, whatever the sharding was when it was saved.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    handler = ocp.StandardCheckpointHandler()
    with _finding_damage():
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            handler.metadata(epath.Path(path)).tree,
        )
        return handler.restore(epath.Path(path), args=ocp.args.StandardRestore(target))


@contextlib.contextmanager
def _finding_damage() -> Generator[None]:
    """Turns Orbax's exceptions into DamagedError, except those of the disk or the device."""
    try:
        yield
    except (UserError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        refused = _os_error(error)
        if refused is not None and refused.errno not in MISSING:
            raise refused from None
        why = _root(error)
    else:
        return
    raise DamagedError(why)


@contextlib.contextmanager
def _naming_disk(path: Path) -> Generator[None]:
    """Turns disk errors raised by Orbax into OSError with the checkpoint's path."""
    try:
        yield
    except Exception as error:
        refused = _os_error(error)
        if refused is None:
            raise
        number, what = refused.errno, refused.strerror
    else:
        return
    # Raised outside the except block, so that the error has no context, which would keep Orbax's
    # objects alive.
    raise OSError(number, f"the checkpoint cannot be written: {what}", str(path))


def _chain(error: BaseException | None) -> Generator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _os_error(error: BaseException) -> OSError | None:
    """Returns the OSError behind an exception; tensorstore has it only in its message."""
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno:
            return cause
        if number := re.search(r"os_error_code='(\d+)'", str(cause)):
            return OSError(int(number[1]), os.strerror(int(number[1])))
    return None


def _root(error: BaseException) -> str:
    """Returns the message of the root cause (tensorstore or a parser), without details."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).partition(" [")[0].split())[:200] or type(error).__name__


@contextlib.contextmanager
def _told_once() -> Generator[None]:
    """Suppresses what Orbax's threads log about errors, which are also raised and reported once.

    The threads log tracebacks, and coroutines that wait for a read or a write print warnings if it
    fails after their event loop is closed.
    """
    before, loggers = sys.unraisablehook, (logging.get_absl_logger(), getLogger("asyncio"))

    def unraisable(what: Any) -> None:
        closed = str(what.exc_value) == "Event loop is closed"
        module = getattr(getattr(what.object, "cr_code", None), "co_filename", "")
        if not closed and not _of_orbax(module):
            before(what)

    def told(record: LogRecord) -> bool:
        unretrieved = "exception was never retrieved" in record.getMessage()
        return not (record.exc_info and (unretrieved or _of_orbax(record.pathname)))

    sys.unraisablehook = unraisable
    for logger in loggers:
        logger.addFilter(told)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(told)
        sys.unraisablehook = before


def _of_orbax(path: str) -> bool:
    return f"{os.sep}orbax{os.sep}" in path
