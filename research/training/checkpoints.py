"""Checkpoints of a population, by Orbax.

A checkpoint has two items: "training" (what is needed to go on) and "best" (each member's best
parameters), so that a reader of the model does not load the optimizer. Every checkpoint holds each
member's own best, which is why keeping the latest few is enough.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from research.errors import UserError
from research.training.step import Best, State

DIRECTORY = "checkpoints"


class Checkpoints:
    """Saves in the background and restores. As a context manager it waits for saves at the end."""

    def __init__(self, directory: Path, keep: int):
        policy = ocp.checkpoint_managers.LatestN(keep)
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy, enable_async_checkpointing=True, create=True
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: State) -> None:
        """Starts saving; returns when the values are copied, before they are written."""
        items = ocp.args.Composite(
            training=ocp.args.StandardSave(_training(state)),
            best=ocp.args.StandardSave(state.best._asdict()),
        )
        self._manager.save(step, args=items)

    def restore(self, step: int, abstract: State) -> State:
        """Returns the state at `step`; `abstract` gives shapes and shardings.

        Raises UserError when the checkpoint is of another model.
        """
        items = ocp.args.Composite(
            training=ocp.args.StandardRestore(_training(abstract)),
            best=ocp.args.StandardRestore(abstract.best._asdict()),
        )
        try:
            restored = self._manager.restore(step, args=items)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"the checkpoint {self._manager.directory}/{step} is of another model: "
                f"{str(error).splitlines()[0][:300]}"
            ) from None
        return State(**restored["training"], best=Best(**restored["best"]))


def _training(state: State) -> dict[str, Any]:
    return {k: v for k, v in state._asdict().items() if k != "best"}


def load_best(directory: Path, member: int) -> tuple[Any, dict[str, float]]:
    """Returns the best parameters of one member and {"value", "step"} of when they were best.

    Args:
      directory: the checkpoints directory.
      member: index on the population axis.

    Raises UserError when there is no checkpoint.
    """
    if not directory.is_dir():
        raise UserError(f"there are no checkpoints in {directory}; the run has not saved yet.")
    # Told what the items are, Orbax can say the shapes of one before it reads it, and does not warn
    # of the other.
    handlers = {item: ocp.StandardCheckpointHandler() for item in ("best", "training")}
    with ocp.CheckpointManager(directory.absolute(), item_handlers=handlers) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(f"there are no checkpoints in {directory}; the run has not saved yet.")
        # Onto one device, wherever it was when it was saved.
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            manager.item_metadata(step)["best"],
        )
        items = ocp.args.Composite(best=ocp.args.StandardRestore(target))
        best = manager.restore(step, args=items)["best"]
    best = jax.tree.map(lambda leaf: leaf[member], best)
    return best["params"], {"value": float(best["value"]), "step": int(best["step"])}
