"""Loads the model, data and config of a finished or running training run."""

import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import PyTree
from ml_collections import ConfigDict

from research.errors import UserError
from research.models.model import parameter_shapes
from research.models.registry import make_model
from research.runs.parameters import PARAMETERS, read_parameters, stored_parameters
from research.runs.store import CONFIG, POPULATION, RESULT, read_json, read_result
from research.tasks.registry import GENERATED, make_task
from research.tasks.special_tokens import SpecialTokens
from research.tasks.synthetic.rule import LABELS
from research.tasks.task import EOS, Task
from research.tasks.text.tokenizer import CORPUS, FILE, load_tokenizer
from research.training.records.checkpoints import load_best
from research.training.records.data_record import check_same_data
from research.training.records.environment import enable_compilation_cache
from research.training.schema import resolve_recorded

COMMANDS = {
    "text": "research.generate",
    "tokens": "research.generate",
    "translation": "research.translate",
    "speech": "research.transcribe",
    "sentiment": "research.classify",
}
"""{task name: command that uses a model trained on it}."""


class LoadedRun(NamedTuple):
    """A loaded run.

    Attributes:
      path: its directory.
      config: its config.
      model: the model.
      params: the parameters that were best on validation.
      best: {"value", "step"} of these parameters.
      tokenizer: the run's `Tokenizer`; None if the task's tokens are not text, or of a corpus.
      labels: class names of a classifier; () for other models.
      corpus: facts about the data, from corpus.json.
      special: ids of the tokens that are no text.
    """

    path: Path
    config: ConfigDict
    model: Any
    params: Any
    best: Mapping[str, float]
    tokenizer: Any
    labels: tuple[str, ...]
    corpus: Mapping[str, Any]
    special: SpecialTokens = SpecialTokens()


def load_run_config(run: Path, tasks: Sequence[str] = ()) -> ConfigDict:
    """Returns the config of a run.

    Args:
      run: its directory.
      tasks: names of accepted tasks; empty: all.

    Raises UserError if `run` is not a run directory, or its task is not accepted.
    """
    plain = read_json(run / CONFIG)
    if plain is None:
        raise UserError(
            f"{run} is not a run: it has no {CONFIG}. Runs are written by "
            "python -m research.train --workdir=DIR, or one per directory by research.sweep."
        )
    try:
        config = resolve_recorded(plain)
    except UserError as error:
        raise UserError(f"{run / CONFIG}: {error}") from None
    if tasks and config.task.name not in tasks:
        other = COMMANDS.get(config.task.name)
        raise UserError(
            f"{run} is a run of task.name={config.task.name!r}; this command takes one of "
            f"{', '.join(map(repr, tasks))}" + (f"; python -m {other} takes it." if other else ".")
        )
    return config


def load_best_params(run: Path, in_parts: bool = False) -> tuple[Any, dict[str, float]]:
    """Returns the parameters that were best on validation, and their {"value", "step"}.

    Those of an imported run are of step 0, and have no value; `in_parts`, they are `Stored`, so
    that nothing of them is read.

    Raises UserError if there are none, or if they are not the ones that result.json reports, as
    when the last checkpoint is damaged.
    """
    if (run / PARAMETERS).is_file():
        path = run / PARAMETERS
        tree = unflatten_dict(stored_parameters(path), sep="/") if in_parts else read_tree(path)
        return tree, {"value": math.nan, "step": 0}
    population = read_json(run / POPULATION)
    if population is None:
        raise UserError(f"{run} has no {POPULATION}, so its checkpoints cannot be found.")
    params, best = load_best(run / population["checkpoints"], population["member"])
    result = read_result(run)
    if result and result.get("best_step", best["step"]) != best["step"]:
        raise UserError(
            f"{run} was best at step {result['best_step']:,}, and the checkpoint that can be read "
            f"has the parameters of step {best['step']:,}. Delete {run / RESULT} and run the "
            "command that trained it again: it goes on from there."
        )
    return params, best


def read_tree(path: Path) -> Any:
    """Returns the parameters of a file as a tree of float32 arrays, read one by one.

    Raises UserError if the file is damaged.
    """
    flat = {
        name: jnp.asarray(array.astype(np.float32, copy=False))
        for name, array in read_parameters(path)
    }
    return unflatten_dict(flat, sep="/")


def open_run(run: Path, config: ConfigDict, in_parts: bool = False) -> LoadedRun:
    """Loads a run whose config was loaded by `load_run_config`.

    Args:
      run: its directory.
      config: its config.
      in_parts: see `load_best_params`.

    Raises UserError if nothing is saved yet, or if the saved files do not match each other.
    """
    enable_compilation_cache()
    tokenizer, labels, known = None, (), read_json(run / CORPUS) or {}
    size = config.task.get("vocab_size", 0)
    if config.task.name == "tokens" or "vocab_size" in known:
        # Shards of other projects come without a tokenizer, and so may pretrained models, whose
        # vocabulary may be larger than that of their tokenizer.
        size = known.get("vocab_size", 0)
        if not size:
            raise UserError(f"{run} has no {CORPUS} with the size of its vocabulary.")
        tokenizer = load_tokenizer(run) if (run / FILE).is_file() else None
    elif config.task.name not in GENERATED:
        tokenizer = load_tokenizer(run)
        size = tokenizer.vocab_size
    if config.task.name == "rule":
        labels = LABELS[config.task.kind]
    elif config.model.name == "classifier":
        labels = tuple(known.get("labels", ()))
        if not labels:
            raise UserError(f"{run} has no {CORPUS} with the names of its labels.")
    model = make_model(config.model, size, config.task.length, classes=len(labels))
    params, best = load_best_params(run, in_parts)
    shapes = parameter_shapes(model, shapes_of_a_batch(config))
    of_shape = operator.attrgetter("shape")
    if jax.tree.map(of_shape, params) != jax.tree.map(of_shape, shapes):
        kept = f"{FILE} has {size:,} tokens" if tokenizer else CONFIG
        named = f" and {CORPUS} {len(labels)} labels" if known.get("labels") else ""
        raise UserError(
            f"{run}: {kept}{named}, with which the model does not have the shapes of its "
            "parameters: they are those of another run."
        )
    special = _special_tokens(config, known)
    return LoadedRun(run, config, model, params, best, tokenizer, labels, known, special)


def _special_tokens(config: ConfigDict, known: Mapping[str, Any]) -> SpecialTokens:
    """Returns the ids that corpus.json has of a pretrained model, else those of our tasks."""
    if "special" in known:
        found: Any = {
            k: tuple(v) if isinstance(v, list) else v for k, v in known["special"].items()
        }
        return SpecialTokens(**found)
    reads_text = config.model.name in ("decoder", "classifier", "speech")
    return SpecialTokens() if reads_text else SpecialTokens(after=(EOS,))


def load_run_task(run: LoadedRun) -> Task:
    """Returns the task of a run, with its data.

    Raises UserError if the data differ from those that the run was trained on, or an imported run
    was given none, or none in its tokens.
    """
    if "special" in run.corpus:
        raise UserError(
            f"{run.path} was imported, and the data of task.name={run.config.task.name!r} are not "
            f"in its tokens; python -m {COMMANDS[run.config.task.name]} takes texts."
        )
    path = run.config.task.get("path", "")
    if (run.path / PARAMETERS).is_file() and not Path(path).expanduser().exists():
        raise UserError(
            f"{run.path} was imported without data: give --input, or import it again with "
            "--data, a corpus that research.prepare made with its tokenizer."
        )
    task = make_task(run.config.task)
    check_same_data(task, run.path)
    return task


def shapes_of_a_batch(config: ConfigDict) -> PyTree:
    """Returns the shapes of a small batch with the arrays that the model takes."""
    tokens: Any = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    length: Any = jax.ShapeDtypeStruct((1,), jnp.int32)
    if config.model.name == "decoder":
        return {"inputs": tokens}
    if config.model.name == "classifier":
        return {"inputs": tokens, "length": length}
    source = tokens
    if config.model.name == "speech":
        source = jax.ShapeDtypeStruct((1, 16, config.task.num_mels), jnp.float32)
    return {"source": source, "source_length": length, "inputs": tokens, "targets": tokens}
