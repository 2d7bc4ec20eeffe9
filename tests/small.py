"""Configs of runs that take a second: shared by the tests, so that they share compiled programs."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from research.configuration import apply_deltas, load_config

BASE = str(Path(__file__).parent.parent / "configs" / "base.py")

RECALL = {
    "task.length": 16,
    "task.batch_size": 4,
    "task.vocab_size": 16,
    "task.num_pairs": (2, 3),
    "model.width": 8,
    "model.num_layers": 2,
    "model.feedforward": 16,
    "model.num_heads": 2,
    "optimizer.warmup_steps": 4,
    "optimizer.learning_rate": 1e-2,
    "train.steps": 24,
    "train.log_every": 5,
    "train.eval_every": 8,
    "train.eval_batches": 2,
    "train.checkpoint_every": 6,
}


def recall(**deltas: Any) -> ConfigDict:
    """Returns a tiny recall run; recall(model__width=4) changes model.width."""
    changes = {key.replace("__", "."): value for key, value in deltas.items()}
    return apply_deltas(load_config(BASE), RECALL | changes)


def text(path: Path, **deltas: Any) -> ConfigDict:
    """Returns a tiny language modelling run on the file at `path`."""
    changes = {key.replace("__", "."): value for key, value in deltas.items()}
    mine = {"task.name": "text", "task.path": str(path)}
    return apply_deltas(load_config(BASE), RECALL | mine | changes)


def as_flags(deltas: dict[str, Any]) -> list[str]:
    """Returns the deltas as options of research.train."""
    return [f"--config.{key}={value}" for key, value in deltas.items()]
