"""What a trained sequence-to-sequence model decodes, and how it reads the source."""

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from research.ablation.store import write_text
from research.decoding.decode import decode_all, static_lengths
from research.decoding.lines import progress_of
from research.decoding.search import Search, search_of
from research.interpret.alignment_measures import alignment_scores
from research.models.model import Model
from research.tasks.task import Batch, Sums, Task
from research.training.program import Program

SPEED = "decoded_tokens_per_second"


def score_names(task: Task, split: str) -> Sequence[str]:
    """Returns the metrics of a split that are known only when training has ended, no sliced ones.

    Those of alignments are not those of a model without attention.
    """
    decoded = (*task.scores, SPEED) if split in task.decoded else ()
    return (*decoded, *task.aligned)


def score_decoded(
    program: Program, config: ConfigDict, params: Any, run: Path
) -> dict[str, dict[str, Any]]:
    """Returns {split: {metric: value}} of what the task wants decoded, and of known alignments.

    What the task keeps of it, such as the hypotheses, is written into the run.

    Args:
      program: of the run.
      config: its config, of which `decoding` says how to search.
      params: of one member, host arrays.
      run: its directory.
    """
    task, model = program.task, program.model
    search = search_of(config)
    found: dict[str, dict[str, Any]] = {}
    for split in task.splits:
        found[split] = _decoded(task, model, params, search, split, run)
        if task.aligned:
            found[split] |= _aligned(model, params, task.alignments(split))
    return found


def _decoded(
    task: Task, model: Model, params: Any, search: Search, split: str, run: Path
) -> dict[str, Any]:
    if split not in task.decoded:
        return {}
    sources = {name: np.asarray(leaf) for name, leaf in task.sources(split).items()}
    number = len(sources["source_length"])
    began = time.perf_counter()
    found = decode_all(
        model,
        params,
        sources["source"],
        sources["source_length"],
        search,
        lengths=static_lengths(sources["source"].shape[1]),
        progress=progress_of(number, "sequences"),
    )
    hypotheses = [ranked[0].tokens for ranked in found]
    seconds = time.perf_counter() - began
    scored = task.score(split, hypotheses)
    for name, text in scored.files.items():
        write_text(run / name, text)
    # Compiling counts too: that is what whoever decodes a test set waits for.
    tokens = sum(len(h) + 1 for h in hypotheses)
    return {**scored.metrics, **scored.slices, SPEED: tokens / seconds}


def _aligned(model: Model, params: Any, batch: Batch) -> dict[str, float]:
    """Measures of the weights averaged over all heads; nothing for models that have none."""
    sums = _alignment_sums(model, params, batch)
    return {name: float(s.total[0] / s.count[0]) for name, s in sums.items()}


@functools.partial(jax.jit, static_argnums=0)  # compiled once for all members
def _alignment_sums(model: Model, params: Any, batch: Batch) -> dict[str, Sums]:
    weights = model.apply({"params": params}, batch, method="weights")
    if not weights.shape[1]:
        return {}
    return alignment_scores(weights.mean(1, keepdims=True), batch)
