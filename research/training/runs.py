"""Opening a finished or running training run."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from research.ablation.store import CONFIG, read_json
from research.configuration import from_plain
from research.errors import UserError
from research.training.checkpoints import load_best
from research.training.loop import POPULATION


def load_config_of(run: Path) -> ConfigDict:
    """Returns the config of a run. Raises UserError when `run` is not a run directory."""
    plain = read_json(run / CONFIG)
    if plain is None:
        raise UserError(
            f"{run} is not a run: it has no {CONFIG}. Runs are written by "
            "python -m research.train --workdir=DIR, or one per directory by research.sweep."
        )
    return from_plain(plain)


def load_best_of(run: Path) -> tuple[Any, dict[str, float]]:
    """Returns the best parameters of a run on validation, and {"value", "step"} of them."""
    population = read_json(run / POPULATION)
    if population is None:
        raise UserError(f"{run} has no {POPULATION}, so its checkpoints cannot be found.")
    return load_best(run / population["checkpoints"], population["member"])
