"""Runs that a test can open without training them: random weights, saved as a finished run is."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from research.models.model import parameter_shapes
from research.runs.store import CONFIG, RESULT, write_json
from research.training.loop import POPULATION
from research.training.program import cached_task, model_of, task_id
from research.training.records.checkpoints import Checkpoints
from research.training.records.data_record import write_data
from research.training.schema import run_record
from research.training.step import Best, State, batch_shapes

STEP = 7
"""At which the parameters were best."""


def random_params(program: Any, scale: float) -> Any:
    """Returns random parameters of a population of one, or of as many as a program splits."""
    random = np.random.default_rng(0)
    shapes = program.state.params
    return jax.tree.map(lambda s: (scale * random.normal(size=s.shape)).astype(s.dtype), shapes)


def write_run(run: Path, config: ConfigDict, scale: float = 0.5, seed: int = 0) -> Any:
    """Writes what a finished run leaves; returns its task and model.

    Args:
      run: the directory.
      config: of the run.
      scale: standard deviation of the parameters.
      seed: of them.
    """
    task = cached_task(task_id(config))
    model = model_of(config, task)
    shapes = parameter_shapes(model, batch_shapes(task, 1))
    random = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda s: (scale * random.normal(size=(1, *s.shape))).astype(s.dtype), shapes
    )
    value = np.zeros(1, np.float32)
    best: Any = Best(params, value, np.full(1, STEP, np.int32))
    with Checkpoints(run / "checkpoints", 1) as checkpoints:
        checkpoints.save(STEP, State(params, {"count": value}, -np.ones(1, np.int32), best))
    write_json(run / POPULATION, {"checkpoints": "checkpoints", "member": 0})
    write_data(task, run)
    write_json(run / CONFIG, run_record(config))
    write_json(run / RESULT, {"status": "completed"})
    return task, model
