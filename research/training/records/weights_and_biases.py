"""Sends the metrics of a run to Weights & Biases, if WANDB_PROJECT names a project.

All other settings are those of the library: WANDB_MODE=offline keeps the rows on this machine for
`wandb sync`, WANDB_ENTITY names the team. See https://docs.wandb.ai/guides/track/environment-variables.
"""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.errors import UserError
from research.runs.store import CONFIG, read_json, write_json

PROJECT = "WANDB_PROJECT"
IDENTITY = "wandb.json"
"""File of a run with its id there, so that a resumed run goes on in the same chart."""


def project() -> str:
    """Returns the project that metrics are sent to; "" for none."""
    return os.environ.get(PROJECT, "")


class OnlineRun:
    """A run on Weights & Biases, with its rows.

    Args:
      directory: run directory; its name and that of its parent name the run and its group.

    Raises UserError if the library is missing or refuses the project.
    """

    def __init__(self, directory: Path):
        try:
            import wandb  # ty: ignore[import-not-found]  # optional
        except ImportError:
            raise UserError(
                f"{PROJECT}={project()!r} needs the package wandb: pip install wandb. Or unset it."
            ) from None
        known = read_json(directory / IDENTITY) or {"id": secrets.token_hex(4)}
        write_json(directory / IDENTITY, known)
        try:
            self._run: Any = wandb.init(
                project=project(),
                id=known["id"],
                resume="allow",
                # Members of a population are open side by side.
                reinit="create_new",
                dir=directory,
                name=directory.name,
                group=directory.absolute().parent.name,
                config=read_json(directory / CONFIG) or {},
                settings=wandb.Settings(silent=True, console="off"),
            )
        except (wandb.Error, ValueError) as error:
            raise UserError(f"{PROJECT}={project()!r}: {' '.join(str(error).split())}") from None

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the scalars of a step, {name: value}; a step that was sent before is left as is."""
        self._run.log(dict(values), step=step, commit=True)

    def close(self) -> None:
        """Waits until all rows are sent."""
        self._run.finish()
